"""The images of a step at several scales: smaller ones made of the largest, and how far their answers are apart."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from sppcls.data.geometry import shrunk_size
from sppcls.data.schedule import Schedule


def seen_at(batches: Sequence[Tensor], schedule: Schedule, multiple: int = 1) -> list[list[Tensor]]:
    """Return batches [N, 3, H, W] at their scale, and resized to each of the others that the schedule sees them at.

    >>> both = seen_at([torch.zeros(2, 3, 64, 96)], Schedule("all", (64, 32)), 8)
    >>> [list(one.shape) for [one] in both]
    [[2, 3, 64, 96], [2, 3, 32, 48]]
    """
    scale = schedule.choices[-1]
    again = [[_resized(images, scale, to, multiple) for images in batches] for to in schedule.beside]
    return [list(batches), *again]


def _resized(images: Tensor, scale: int, to: int, multiple: int) -> Tensor:
    size = shrunk_size((images.shape[2], images.shape[3]), scale, to, multiple)
    return F.interpolate(images, size, mode="bilinear", antialias=True)


def disagreement(logits: Sequence[Tensor]) -> Tensor:
    """Return [N], how far the answers [N, K] at each scale are from those of all of them together.

    It is the mean over scales of the divergence from the softmax of the mean logits, which no gradient goes through.

    Source: distillation from the ensemble as in Wang et al., "Resolution Switchable Networks", ECCV 2020.

    >>> disagreement([torch.tensor([[1.0, 0.0]]), torch.tensor([[1.0, 0.0]])]).tolist()
    [0.0]
    """
    together = torch.stack(list(logits))
    return divergence(together, together.float().mean(0)).mean(0)


def divergence(logits: Tensor, teacher: Tensor) -> Tensor:
    """Return [..., N], how far the answers ``logits`` [..., N, K] are from those of ``teacher`` [N, K].

    No gradient goes through the teacher.
    """
    said, wanted = logits.float().log_softmax(-1), teacher.detach().float().log_softmax(-1)
    return F.kl_div(said, wanted.expand_as(said), reduction="none", log_target=True).sum(-1)
