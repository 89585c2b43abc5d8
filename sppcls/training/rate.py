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

LOWEST, HIGHEST, STEPS = 1e-5, 10.0, 90
_SMOOTH = 0.9  # of the loss's moving average
_DIVERGED = 2.0  # times the first loss


def find_rate(
    network: SppClassifier, spec: OptimSpec, batches: Iterable[ImageBatch], device: torch.device | str = "cpu"
) -> float:
    """Return the rate at which the smoothed loss was lowest, by ten, of ``STEPS`` steps from ``LOWEST`` to ``HIGHEST``.

    It ends early where the loss reaches twice the first one. The network and the random numbers stay as they are
    (Smith 2017, arXiv:1506.01186).

    Args:
        network: The network to train.
        spec: Its optimiser; ``lr`` is not read.
        batches: ``STEPS`` training batches.
        device: Where to train the copy.

    Raises:
        ConfigError: The loss is not finite from the first steps on, or never falls.
    """
    with torch.random.fork_rng():
        rates, losses = _ramp(copy.deepcopy(network).to(device).train(), spec, batches, device)
    lowest = min(range(len(losses)), key=losses.__getitem__, default=0)
    if lowest < 3:
        raise ConfigError("optim.lr=auto: the loss did not fall at any rate; name a number")
    return float(f"{rates[lowest] / 10:.2g}")


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
