"""The loss of each image, and the weights that make classes count alike."""

import numpy as np
import torch
from torch.nn import functional

from sppcls.data.source import Source


def image_losses(
    logits: torch.Tensor, targets: torch.Tensor, weights: torch.Tensor | None = None, smoothing: float = 0.0
) -> torch.Tensor:
    """Return the loss [N] of each image: its cross entropy times the weight of its class.

    A mixture of classes, as mixup makes it, has the mixture of its classes' losses, each with its own weight.

    Args:
        logits: [N, K].
        targets: [N] classes or [N, K] probabilities.
        weights: [K] weights of the classes.
        smoothing: Label smoothing.
    """
    if weights is None:
        return functional.cross_entropy(logits, targets, reduction="none", label_smoothing=smoothing)
    if targets.ndim == 1:
        weight = weights[targets]
    else:
        targets = targets * weights
        weight = targets.sum(1)
        targets = targets / weight[:, None]
    return weight * functional.cross_entropy(logits, targets, reduction="none", label_smoothing=smoothing)


def balanced_weights(source: Source) -> torch.Tensor:
    """Return weights [K] that give every class with images the same share of the loss; 1 in the mean over images."""
    counts = np.bincount(source.targets, minlength=len(source.classes))
    return torch.tensor(len(source.targets) / (np.count_nonzero(counts) * counts.clip(1)), dtype=torch.float32)
