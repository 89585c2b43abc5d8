"""``optim.lr=auto``: a range test, which trains a copy of the network at growing rates."""

import copy
from collections.abc import Iterable
from typing import Any

import torch

from sppcls.data.loader import IGNORED, ImageBatch
from sppcls.errors import ConfigError
from sppcls.models.classifier import SppClassifier
from sppcls.settings import OptimSpec
from sppcls.training.loss import image_losses
from sppcls.training.optim import build_optimizer

LOWEST, HIGHEST, STEPS = 3e-5, 10.0, 100
_SMOOTH = 0.9  # of the loss's moving average
_FIRST = 10  # steps that only fill the average
_NEAR = 1.03  # times the lowest loss
_DIVERGED = 2.0  # times the first loss


def find_rate(
    network: SppClassifier, spec: OptimSpec, batches: Iterable[ImageBatch], device: torch.device | str = "cpu"
) -> float:
    """Return half of the largest rate that a network bears: the smoothed loss there is within 3 % of the lowest.

    The rates are those of ``STEPS`` steps from ``LOWEST`` to ``HIGHEST``, or to where the loss is twice the first one.
    The loss is that of whole images, each with the same weight: without mixup, cutmix and class weights. The network
    and the random numbers stay as they are (a range test: Smith 2017, arXiv:1506.01186).

    Args:
        network: The network to train.
        spec: Its optimiser; ``lr`` is not read.
        batches: ``STEPS`` training batches.
        device: Where to train the copy.

    Raises:
        ConfigError: The loss grows from the first steps on, or there is no image to read.
    """
    with torch.random.fork_rng():
        rates, losses = _ramp(copy.deepcopy(network).to(device).train(), spec, batches, device)
    rates, losses = rates[_FIRST:], losses[_FIRST:]
    if not losses:
        raise ConfigError("optim.lr=auto: the loss grew at the lowest rates already; name a number")
    near = _NEAR * min(losses)
    return float(f"{max(rate for rate, loss in zip(rates, losses, strict=True) if loss <= near) / 2:.2g}")


def _ramp(
    network: SppClassifier, spec: OptimSpec, batches: Iterable[ImageBatch], device: Any
) -> tuple[list[float], list[float]]:
    """Return the rates that were tried and the smoothed loss before the step at each."""
    optimizer = build_optimizer(network, spec.model_copy(update={"lr": 1.0}))
    shares = [group["lr"] for group in optimizer.param_groups]
    rates: list[float] = []
    losses: list[float] = []
    average = 0.0
    for step, batch in enumerate(batches):
        kept = batch["targets"] != IGNORED
        if not bool(kept.any()):
            continue
        images, targets = batch["images"][kept].to(device), batch["targets"][kept].to(device)
        loss = image_losses(network(network.normalize(images)), targets, None, spec.label_smoothing).mean()
        average = _SMOOTH * average + (1 - _SMOOTH) * loss.item()
        smooth = average / (1 - _SMOOTH ** (len(losses) + 1))
        if not smooth < _DIVERGED * (losses[0] if losses else float("inf")):
            break
        rate = LOWEST * (HIGHEST / LOWEST) ** (step / (STEPS - 1))
        rates.append(rate)
        losses.append(smooth)
        for group, share in zip(optimizer.param_groups, shares, strict=True):
            group["lr"] = rate * share
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return rates, losses
