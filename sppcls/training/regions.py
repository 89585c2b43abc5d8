"""The images of a step side by side on a canvas, so that each is classified as a region among strangers."""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from sppcls.models.classifier import SppClassifier
from sppcls.training.consistency import divergence


def region_losses(
    network: SppClassifier,
    batches: Sequence[Tensor],
    targets: Tensor,
    logits: Tensor,
    losses: Callable[[Tensor, Tensor], Tensor],
) -> Tensor:
    """Return [N], the losses of images as regions and how far these answers are from those to the images alone.

    No gradient goes through the latter. An image that is not on a canvas has 0.

    Args:
        network: The classifier.
        batches: Normalised images [N_i, 3, H, W], a canvas each.
        targets: [N] classes or [N, K] probabilities, of all images in order.
        logits: [N, K], of the images alone.
        losses: From logits and targets to losses.

    Source: distillation from crops to regions as in Wu et al., "CLIPSelf", ICLR 2024.
    """
    canvases, places, boxes = zip(*(canvas(images, network.trunk.stride) for images in batches), strict=True)
    starts = torch.tensor([0, *(len(images) for images in batches)]).cumsum(0)
    chosen = torch.cat([start + place for start, place in zip(starts, places, strict=False)]).to(logits.device)
    said = network.classify_regions(canvases, boxes)
    each = losses(said, targets[chosen]) + divergence(said, logits[chosen])
    return each.new_zeros(len(logits)).index_copy(0, chosen, each)


def canvas(images: Tensor, stride: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return a canvas [1, 3, h, w], the places [M] of the images on it in ``images`` [N, 3, H, W], and their boxes.

    The M images are drawn at random, as many as fill a rectangle that is about as high as wide in images. They begin
    anywhere between two cells of the map; what is beyond the right or lower end of the canvas is at its other end.

    >>> whole, places, boxes = canvas(torch.zeros(7, 3, 32, 48), stride=8)
    >>> whole.shape, len(places), boxes.shape
    (torch.Size([1, 3, 64, 144]), 6, torch.Size([6, 4]))
    """
    count, _, height, width = images.shape
    rows = math.isqrt(count)
    columns = count // rows
    places = torch.randperm(count)[: rows * columns]
    tiles = images[places.to(images.device)].view(rows, columns, -1, height, width)
    whole = tiles.permute(2, 0, 3, 1, 4).reshape(1, 3, rows * height, columns * width)
    down, across = torch.randint(stride, (2,)).tolist()
    row, column = torch.arange(rows).repeat_interleave(columns), torch.arange(columns).repeat(rows)
    left, top = column * width + across, row * height + down
    right, bottom = (left + width).clamp(max=columns * width), (top + height).clamp(max=rows * height)
    return whole.roll((down, across), (2, 3)), places, torch.stack([left, top, right, bottom], 1)
