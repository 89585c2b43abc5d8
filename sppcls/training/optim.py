"""The optimiser, its rates, the weights of the loss and the moving average of the network."""

import copy
import math
from collections.abc import Callable, Iterable

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from sppcls.data.batch import ImageBatch, MixedBatch, batches_in, readable
from sppcls.data.source import Source
from sppcls.errors import ConfigError
from sppcls.models.classifier import SppClassifier
from sppcls.models.norm import ScaleNorm2d
from sppcls.plugins import plugin
from sppcls.training_settings import OPTIMIZERS, OptimSpec


def parameter_groups(network: SppClassifier, spec: OptimSpec) -> list[dict[str, object]]:
    """Return parameter groups: trunk and head separate, and no weight decay on norms and biases."""
    trunk = {id(p) for p in network.trunk.parameters()}
    norms = {id(p) for layer in network.modules() if isinstance(layer, ScaleNorm2d) for p in layer.parameters()}
    trained = [p for p in network.parameters() if p.requires_grad]
    weights = {id(p) for p in trained if p.ndim > 1} - norms
    groups = []
    for in_trunk, lr in ((True, spec.rate * spec.backbone_lr), (False, spec.rate)):
        for is_weight, decay in ((True, spec.weight_decay), (False, 0.0)):
            chosen = [p for p in trained if (id(p) in trunk, id(p) in weights) == (in_trunk, is_weight)]
            groups += [{"params": chosen, "lr": lr, "weight_decay": decay}] if chosen else []
    return groups


def build_optimizer(network: SppClassifier, spec: OptimSpec) -> torch.optim.Optimizer:
    """Return SGD (nesterov if there is momentum), AdamW, or an optimiser registered by another package.

    A registered optimiser is a callable ``(groups, spec) -> Optimizer`` in the entry point group ``sppcls.optimizers``.
    """
    groups = parameter_groups(network, spec)
    if spec.name == "sgd":
        return torch.optim.SGD(groups, momentum=spec.momentum, nesterov=spec.momentum > 0)
    if spec.name == "adamw":
        return torch.optim.AdamW(groups, betas=(spec.momentum, 0.999))
    optimizer: torch.optim.Optimizer = plugin("optimizers", spec.name, "optim.name", OPTIMIZERS)(groups, spec)
    return optimizer


def rate_factor(progress: float, warmup: float, spec: OptimSpec) -> float:
    """Return the factor on the base rate; ``progress`` and ``warmup`` are shares of the run in 0..1.

    >>> [round(rate_factor(p, 0.2, OptimSpec()), 2) for p in (0.1, 0.2, 0.6, 1.0)]
    [0.5, 1.0, 0.5, 0.0]
    """
    if progress < warmup:
        return progress / warmup
    if spec.decay == "cosine":
        return 0.5 * (1 + math.cos(math.pi * min((progress - warmup) / max(1 - warmup, 1e-9), 1)))
    if spec.decay == "step":
        return float(0.1 ** sum(progress >= milestone for milestone in spec.milestones))
    return 1.0


def build_scheduler(
    optimizer: torch.optim.Optimizer, spec: OptimSpec, steps: int, epochs: int
) -> torch.optim.lr_scheduler.LambdaLR:
    """Return the per-step schedule: warm-up, then cosine to zero, steps of ten, or constant."""
    warmup = min(spec.warmup_epochs / max(epochs, 1), 1.0)

    def factor(step: int) -> float:
        return rate_factor((step + 1) / max(steps, 1) if step < warmup * steps else step / max(steps, 1), warmup, spec)

    return torch.optim.lr_scheduler.LambdaLR(optimizer, factor)


def image_losses(logits: Tensor, targets: Tensor, weights: Tensor | None = None, smoothing: float = 0.0) -> Tensor:
    """Return the loss [N] of each image: its cross-entropy times the weight of its class.

    A mixture of classes, as mixup makes it, has the mixture of its classes' losses, each with its own weight.

    Args:
        logits: [N, K].
        targets: [N] classes or [N, K] probabilities.
        weights: [K] weights of the classes.
    """
    weight: Tensor | float = 1.0
    if weights is not None and targets.ndim == 1:
        weight = weights[targets]
    elif weights is not None:
        targets = targets * weights
        weight = targets.sum(1, keepdim=True)
        targets, weight = targets / weight, weight[:, 0]
    return weight * functional.cross_entropy(logits, targets, reduction="none", label_smoothing=smoothing)


def mixer(mixup: float, cutmix: float, classes: int) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Return what mixes a batch and its targets: mixup or cutmix with these alphas, drawn each time, or neither."""
    if not mixup and not cutmix:
        return lambda images, targets: (images, targets)
    from torchvision.transforms import v2

    chosen = [v2.MixUp(alpha=mixup, num_classes=classes)] if mixup else []
    chosen += [v2.CutMix(alpha=cutmix, num_classes=classes)] if cutmix else []
    return chosen[0] if len(chosen) == 1 else v2.RandomChoice(chosen)  # type: ignore[no-any-return]


def balanced_weights(source: Source) -> Tensor:
    """Return weights [K] that give every class with images the same share of the loss; their mean over images is 1."""
    counts = np.bincount(source.targets, minlength=len(source.classes))
    return torch.tensor(len(source.targets) / (np.count_nonzero(counts) * counts.clip(1)), dtype=torch.float32)


def ramped_average(decay: float) -> Callable[[Tensor, Tensor, Tensor | int], Tensor]:
    """Return (average, current, t) -> average after update t, with decay ``min(decay, (1 + t) / (10 + t))``.

    A constant decay near 1 would keep much of the initial, untrained weights throughout a short run.

    >>> average = ramped_average(0.9)
    >>> [round(float(average(torch.ones(1), torch.zeros(1), t)), 3) for t in (1, 10, 79, 80, 1000)]
    [0.182, 0.55, 0.899, 0.9, 0.9]
    """

    def average(before: Tensor, current: Tensor, updates: Tensor | int) -> Tensor:
        done = torch.as_tensor(updates)  # stays on its device: reading its value would wait for the device
        kept = ((1 + done) / (10 + done)).clamp(max=decay)
        return before * kept + current * (1 - kept)

    return average


LOWEST, HIGHEST, STEPS = 3e-5, 10.0, 100
_SMOOTH = 0.9  # of the loss's moving average
_FIRST = 10  # steps that only fill the average
_NEAR = 1.03  # times the lowest loss
_DIVERGED = 2.0  # times the first loss


def find_rate(
    network: SppClassifier,
    spec: OptimSpec,
    batches: Iterable[ImageBatch | MixedBatch],
    device: torch.device | str = "cpu",
) -> float:
    """Return half of the largest learning rate at which the smoothed loss is within 3 % of the lowest.

    The rates are those of ``STEPS`` steps, a batch each, from ``LOWEST`` to ``HIGHEST``, or to where the loss is twice
    the first one. The loss is that of whole images, each with the same weight: without mixup, cutmix and class weights.
    The network and the random generators are unchanged (a range test: Smith 2017, arXiv:1506.01186).

    Raises:
        ConfigError: The loss grows from the first steps on, or no image can be read.
    """
    with torch.random.fork_rng():
        tried = _ramp(copy.deepcopy(network).to(device).train(), spec, batches, device)[_FIRST:]
    if not tried:
        raise ConfigError("optim.lr=auto: the loss already grew at the lowest learning rates; set a number")
    near = _NEAR * min(loss for _, loss in tried)
    return float(f"{max(rate for rate, loss in tried if loss <= near) / 2:.2g}")


def _ramp(
    network: SppClassifier, spec: OptimSpec, batches: Iterable[ImageBatch | MixedBatch], device: torch.device | str
) -> list[tuple[float, float]]:
    """Return (rate, smoothed loss before the step at that rate) of the steps until the loss has grown."""
    optimizer = build_optimizer(network, spec.model_copy(update={"lr": 1.0}))
    shares = [group["lr"] for group in optimizer.param_groups]
    tried: list[tuple[float, float]] = []
    average = 0.0
    for step, batch in enumerate(batches):
        pairs = [pair for pair in map(readable, batches_in(batch)) if len(pair[1])]
        if not pairs:
            continue
        images, of_batch = zip(*pairs, strict=True)
        logits = network([network.normalize(some.to(device)) for some in images])
        loss = image_losses(logits, torch.cat(of_batch).to(device), None, spec.label_smoothing).mean()
        average = _SMOOTH * average + (1 - _SMOOTH) * loss.item()
        smooth = average / (1 - _SMOOTH ** (len(tried) + 1))
        if not smooth < _DIVERGED * (tried[0][1] if tried else float("inf")):
            break
        rate = LOWEST * (HIGHEST / LOWEST) ** (step / (STEPS - 1))
        tried.append((rate, smooth))
        for group, share in zip(optimizer.param_groups, shares, strict=True):
            group["lr"] = rate * share
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
    return tried
