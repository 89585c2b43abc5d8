"""Pyramids of regions: any number of boxes on one feature map (He et al., arXiv 1406.4729, section 4)."""

from collections.abc import Iterator, Sequence
from functools import reduce
from itertools import product

import torch
from torch import Tensor
from torch.nn import functional as F

from sppcls.ops.bins import bin_edges, bins, check_levels
from sppcls.ops.pyramid import Mode, spatial_pyramid_pool2d

_AT_ONCE = 256  # bins: few enough to stay in the CPU cache
Size = tuple[int, int]


def region_pyramid_pool2d(
    features: Tensor,
    boxes: Sequence[Tensor],
    levels: Sequence[int],
    stride: int,
    mode: Mode = "max",
    image_size: Size | None = None,
) -> Tensor:
    """Pool the cells of each box (`region_cells`), bit for bit as `spatial_pyramid_pool2d` pools that part of the map.

    Gradients are those of the parts, too. Without them, the time of "max" does not depend on the size of the boxes.

    Args:
        features: [N, C, h, w], floating point, in any memory layout.
        boxes: N tensors [K_i, 4], x1 y1 x2 y2 in input pixels, of any real dtype; K_i may be 0.
        levels, mode: as for a whole map.
        stride: input pixels from one cell to the next.
        image_size: (H, W) of the input; boxes must then lie inside it, and the whole image is always the whole map.

    Returns:
        [sum K_i, C * bins], images in order.

    Raises:
        TypeError, ValueError: an invalid map, levels or mode; boxes of the wrong shape or number; a box that
            is empty, negative, not finite or outside the image; a stride below 1.

    >>> features, image = torch.arange(12.0).view(1, 1, 3, 4), torch.tensor([[0, 0, 64, 48], [16, 0, 48, 15]])
    >>> region_pyramid_pool2d(features, [image], (2, 1), stride=16)
    tensor([[ 5.,  7.,  9., 11., 11.],
            [ 1.,  2.,  1.,  2.,  2.]])
    """
    levels = check_levels(levels)
    if stride < 1:
        raise ValueError(f"stride: got {stride}; expected at least 1, the input pixels from one cell to the next")
    if features.ndim != 4 or len(boxes) != len(features):
        raise ValueError(f"boxes: got {len(boxes)} tensors for features {list(features.shape)}; expected one per image")
    pooled = [spatial_pyramid_pool2d(features[:0], levels, mode)]  # rejects a wrong map or mode
    regions = torch.empty(0, 5, dtype=torch.int64)
    for image, some in enumerate(boxes):
        cells = region_cells(_checked(some, image, image_size), stride, features.shape[2:], image_size)
        regions = torch.cat([regions, F.pad(cells, (1, 0), value=image)])
    if mode == "max" and not (features.requires_grad and torch.is_grad_enabled()):
        return _by_table(features, regions, levels)
    maps = torch.split(features, 1)  # not features[i]: a three-dimensional map is not recognised as channels-last
    for i, top, left, bottom, right in regions.tolist():
        pooled.append(spatial_pyramid_pool2d(maps[i][:, :, top:bottom, left:right], levels, mode))
    return torch.cat(pooled)


def region_cells(
    boxes: Tensor, stride: int, map_size: Sequence[int], image_size: Size | None = None, *, touched: bool = False
) -> Tensor:
    """Return top, left, bottom and right, ends exclusive, of the cells of each box: [K, 4], at least one cell per box.

    They are the cells wholly inside: the surroundings of a box harm more than its edge helps. With ``touched`` they are
    also those partly inside, for parts of one picture. A box that ends with the image (if its size is not given: in the
    map's last cell) ends with the map.

    >>> region_cells(torch.tensor([[16, 0, 80, 15], [90, 13, 95, 18]]), 8, (4, 12))
    tensor([[ 0,  2,  1, 10],
            [ 1, 11,  2, 12]])
    """
    size, low, high = torch.tensor(map_size), boxes[:, :2].flip(1), boxes[:, 2:].flip(1)
    # Floor division is exact, while rounding a quotient first could move an edge.
    below, above = -(-low // stride), -(-high // stride)
    start, end = (low // stride, above) if touched else (below, high // stride)
    end = size.where(above >= size if image_size is None else high >= torch.tensor(image_size), end)
    start = start.where(start < end, (low + high) // (2 * stride)).minimum(size - 1)
    return torch.cat([start, end.minimum(size).maximum(start + 1)], 1).long()


def _by_table(features: Tensor, regions: Tensor, levels: tuple[int, ...]) -> Tensor:
    """Look each bin up among maxima over windows of 2**a x 2**b cells: one to four overlapping windows cover it."""
    channels, height, width = features.shape[1:]
    out = features.new_empty(len(regions), channels * bins(levels))
    grids = list(_grids(out, regions, levels, (height, width)))
    tall = features.detach().permute(0, 2, 3, 1).contiguous()
    for a in range(height.bit_length()):
        window = tall = torch.maximum(tall[:, : -(1 << a - 1)], tall[:, 1 << a - 1 :]) if a else tall
        for b in range(width.bit_length()):
            window = torch.maximum(window[:, :, : -(1 << b - 1)], window[:, :, 1 << b - 1 :]) if b else window
            for grid, rows, columns in grids:
                fit = (rows.diff() >> a == 1) & (columns.diff() >> b == 1).mT
                for k, i, j in (some.unbind(1) for some in torch.split(fit.nonzero(), _AT_ONCE)):
                    (y1, y2), (x1, x2) = rows[k, i].unbind(1), columns[k, j].unbind(1)
                    corners = product((y1, y2 - (1 << a))[: a + 1], (x1, x2 - (1 << b))[: b + 1])
                    grid[k, :, i, j] = reduce(torch.maximum, (window[regions[k, 0], y, x] for y, x in corners))
    return out


def _grids(out: Tensor, regions: Tensor, levels: tuple[int, ...], size: Sequence[int]) -> Iterator[tuple[Tensor, ...]]:
    """Yield, per level, the view [K, C, n, n] of ``out`` and the edges of its rows and columns of bins: [K, n, 2]."""
    channels, _, top, left, bottom, right = out.shape[1] // bins(levels), *regions[:, :, None, None].unbind(1)
    for n, part in zip(levels, torch.split(out, [channels * n * n for n in levels], 1), strict=True):
        edges = torch.tensor([bin_edges(length, n) for length in range(max(size) + 1)])
        rows, columns = (edges[(end - start).flatten()] + start for start, end in ((top, bottom), (left, right)))
        yield part.view(-1, channels, n, n), rows, columns


def _checked(boxes: Tensor, image: int, image_size: Size | None) -> Tensor:
    """Return an image's boxes as float64, in which integers are exact, on the CPU."""
    if boxes.ndim != 2 or boxes.shape[1] != 4:
        raise ValueError(f"boxes: image {image} has shape {list(boxes.shape)}; expected [K, 4], also with K=0")
    box = boxes.detach().cpu().double()
    sane = (box.isfinite() & (box >= 0)).all(1) & (box[:, 2:] > box[:, :2]).all(1)
    inside = (box[:, 2:].flip(1) <= torch.tensor(image_size or torch.inf)).all(1)
    for k in (~(sane & inside)).nonzero()[:1, 0].tolist():
        says = "not 0 <= x1 < x2 and 0 <= y1 < y2, all finite; give x1 y1 x2 y2 in pixels"
        if sane[k]:
            size = "x".join(map(str, image_size or ()))
            says = f"outside the image of {size} (H x W); clip it, or give boxes in the pixels of this image"
        raise ValueError(f"boxes: image {image}, box {k} is {box[k].tolist()}, {says}")
    return box
