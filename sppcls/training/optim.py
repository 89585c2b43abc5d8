"""Optimiser, parameter groups and the rate over time."""

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from sppcls.models.classifier import SppClassifier
from sppcls.plugins import plugin
from sppcls.settings import OPTIMIZERS, OptimSpec


def parameter_groups(network: SppClassifier, spec: OptimSpec) -> list[dict[str, Any]]:
    """Return groups: trunk and head apart, and no weight decay on norms and biases."""
    trunk = {id(p) for p in network.trunk.parameters()}
    trained = [p for p in network.parameters() if p.requires_grad]

    def group(parameters: Iterable[nn.Parameter], lr: float, decay: float) -> dict[str, Any]:
        return {"params": list(parameters), "lr": lr, "weight_decay": decay}

    groups = []
    for in_trunk, lr in ((True, spec.rate * spec.backbone_lr), (False, spec.rate)):
        side = [p for p in trained if (id(p) in trunk) == in_trunk]
        groups.append(group((p for p in side if p.ndim > 1), lr, spec.weight_decay))
        groups.append(group((p for p in side if p.ndim <= 1), lr, 0.0))
    return [g for g in groups if g["params"]]


def build_optimizer(network: SppClassifier, spec: OptimSpec) -> torch.optim.Optimizer:
    """Return SGD (nesterov where there is momentum), AdamW, or what another package has under the name.

    Such an optimiser is a callable ``(groups, spec) -> Optimizer`` in the entry point group ``sppcls.optimizers``.
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
