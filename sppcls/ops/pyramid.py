"""Spatial pyramid pooling: any map size in, one length out (He et al., arXiv 1406.4729)."""

from collections.abc import Iterable
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sppcls.errors import did_you_mean
from sppcls.ops.bins import bin_edges, bins, check_levels, sliding_window

Mode = Literal["max", "avg"]
Rule = Literal["adaptive", "sliding"]


def spatial_pyramid_pool2d(x: Tensor, levels: Iterable[int], mode: Mode = "max", rule: Rule = "adaptive") -> Tensor:
    """Pool a map of any size into n x n bins for each level n, side by side in the order of ``levels``.

    Bit for bit ``cat([adaptive_max_pool2d(x, n).flatten(1) for n in levels], 1)`` with mode "max" and rule
    "adaptive", but faster. If several elements of a bin are the maximum, one of them gets the gradient.

    Args:
        x: [N, C, H, W] or [C, H, W], floating point, in any memory layout.
        levels: grid sizes, positive, in any order.
        mode: "max" as in the paper, or "avg".
        rule: "adaptive", bins of appendix A, defined for every H and W; or "sliding", the window ceil(a / n) and
            stride floor(a / n) of the paper's training (section 2.3), defined where that gives n windows.

    Returns:
        [N, C * bins] or [C * bins]; within a level channel by channel, rows of bins first.

    Raises:
        TypeError: x is not floating point, or a level is not an int.
        ValueError: x has another number of dimensions or is empty in C, H or W; levels, mode or rule make no
            sense; the sliding rule does not give n windows.

    >>> x = torch.tensor([[[1.0, 2, 3], [4, 5, 6], [7, 8, 9]]])
    >>> spatial_pyramid_pool2d(x, [2])
    tensor([5., 6., 8., 9.])
    >>> spatial_pyramid_pool2d(x, [2], rule="sliding")
    tensor([5., 6., 8., 9.])
    """
    levels = check_levels(levels)
    _check_names(mode, rule)
    _check_map(x)
    batch = x if x.ndim == 4 else x[None]
    if rule == "adaptive" and mode == "max" and not torch.compiler.is_exporting():
        out: Tensor = _MaxPyramid.apply(batch, levels)
    else:
        pool = _sliding if rule == "sliding" else _masked if torch.compiler.is_exporting() else _adaptive_avg
        out = torch.cat([pool(batch, n, mode).flatten(1) for n in levels], 1)
    return out if x.ndim == 4 else out[0]


def spatial_pyramid_levels2d(
    x: Tensor, levels: Iterable[int], mode: Mode = "max", rule: Rule = "adaptive"
) -> list[Tensor]:
    """Return the parts of :func:`spatial_pyramid_pool2d`, one per level: [N, C * n * n] or [C * n * n].

    They are views of one tensor: do not write to them in place.

    >>> [tuple(part.shape) for part in spatial_pyramid_levels2d(torch.rand(2, 5, 7, 9), (3, 1))]
    [(2, 45), (2, 5)]
    """
    levels = check_levels(levels)
    pooled = spatial_pyramid_pool2d(x, levels, mode, rule)
    return list(torch.split(pooled, [x.shape[-3] * n * n for n in levels], -1))


class SpatialPyramidPool2d(nn.Module):
    """Module form of :func:`spatial_pyramid_pool2d`; outputs ``bins`` values per channel.

    >>> SpatialPyramidPool2d([4, 2, 1])
    SpatialPyramidPool2d(levels=(4, 2, 1), mode='max', rule='adaptive')
    """

    def __init__(self, levels: Iterable[int], mode: Mode = "max", rule: Rule = "adaptive") -> None:
        super().__init__()
        _check_names(mode, rule)
        self.levels, self.mode, self.rule = check_levels(levels), mode, rule
        self.bins = bins(self.levels)

    def forward(self, x: Tensor) -> Tensor:
        """Return [N, C * bins] for [N, C, H, W]."""
        return spatial_pyramid_pool2d(x, self.levels, self.mode, self.rule)

    def extra_repr(self) -> str:
        """Return the settings, as the constructor takes them."""
        return f"levels={self.levels}, mode={self.mode!r}, rule={self.rule!r}"


class _Context(torch.autograd.function.FunctionCtx):
    """What the backward pass is given by the forward pass."""

    levels: tuple[int, ...]
    saved_tensors: tuple[Tensor, ...]


class _MaxPyramid(torch.autograd.Function):
    """Adaptive max pooling of all levels, coarse ones from fine ones; gradients go the same way back.

    Autograd alone allocates and adds a gradient for each edge of the plan, and the pieces of the result are copied
    twice: up to 1.4 times the time. ``scatter_add`` also has a deterministic form on CUDA, where the backward of
    adaptive_max_pool2d has none.
    """

    @staticmethod
    def forward(ctx: _Context, x: Tensor, levels: tuple[int, ...]) -> Tensor:
        maps, indices = {0: x}, []
        # Channels-last is 3 to 8 times faster to pool on the CPU, far more than the conversion costs.
        layout = torch.channels_last if x.device.type == "cpu" else torch.contiguous_format
        for n, source in _plan(levels).items():
            fine = maps[source].contiguous(memory_format=layout)
            maps[n], index = F.adaptive_max_pool2d(fine, n, return_indices=True)
            indices.append(index)
        ctx.levels = levels
        ctx.save_for_backward(x, *indices)
        out = x.new_empty(x.shape[0], x.shape[1] * bins(levels))
        for n, part in zip(levels, _grids(out, levels), strict=True):
            part.copy_(maps[n])
        return out

    @staticmethod
    def backward(ctx: _Context, grad: Tensor) -> tuple[Tensor, None]:
        x, *indices = ctx.saved_tensors
        channels_last = x.is_contiguous(memory_format=torch.channels_last)
        layout = torch.channels_last if channels_last else torch.contiguous_format
        grads = {0: torch.zeros_like(x, memory_format=layout)}
        for n, part in zip(ctx.levels, _grids(grad, ctx.levels), strict=True):
            # A level given twice adds up; cloned, because the coarser levels add to it in place.
            grads[n] = grads[n].add_(part) if n in grads else part.clone(memory_format=torch.channels_last)
        for (n, source), index in reversed(list(zip(_plan(ctx.levels).items(), indices, strict=True))):
            _scatter_add(grads[source], index, grads[n])
        return grads[0], None


def _plan(levels: tuple[int, ...]) -> dict[int, int]:
    """Return each level, finest first, and its source: the nearest level that it divides, or 0 for the map.

    Where m divides n, each m x m bin is exactly a union of n x n bins, whatever the size of the map.
    """
    return {n: min((m for m in levels if m > n and m % n == 0), default=0) for n in sorted(set(levels), reverse=True)}


def _grids(pooled: Tensor, levels: tuple[int, ...]) -> list[Tensor]:
    """Return views [N, C, n, n] of the levels in [N, C * bins]."""
    channels = pooled.shape[1] // bins(levels)
    parts = torch.split(pooled, [channels * n * n for n in levels], 1)
    return [part.view(-1, channels, n, n) for n, part in zip(levels, parts, strict=True)]


def _scatter_add(target: Tensor, index: Tensor, values: Tensor) -> None:
    """Add [N, C, n, n] values to the cells h * W + w of target [N, C, H, W], walking it in its memory order."""
    if target.is_contiguous(memory_format=torch.channels_last):
        rows, index, values = (t.permute(0, 2, 3, 1).flatten(1, 2) for t in (target, index, values))
        rows.scatter_add_(1, index, values)
    else:
        target.flatten(2).scatter_add_(2, index.flatten(2), values.flatten(2))


def _adaptive_avg(x: Tensor, n: int, _mode: Mode) -> Tensor:
    # Not from a finer level: the mean of its means differs if its bins differ in size.
    return F.adaptive_avg_pool2d(x, n)


def _masked(x: Tensor, n: int, mode: Mode) -> Tensor:
    # For exporters: ONNX has no adaptive pooling and silently freezes the windows of the traced size; and a
    # slice whose length the size decides is traced as one of length 1 or as a longer one, not as both.
    for axis in (2, 3):
        place = torch.arange(x.shape[axis], device=x.device).view((-1, 1) if axis == 2 else (-1,))
        parts = [
            _amax_or_mean(x, (place >= start) & (place < end), end - start, axis, mode)
            for start, end in bin_edges(x.shape[axis], n)
        ]
        x = torch.stack(parts, axis)
    return x


def _amax_or_mean(x: Tensor, inside: Tensor, count: int, axis: int, mode: Mode) -> Tensor:
    if mode == "max":
        return x.masked_fill(~inside, float("-inf")).amax(axis)
    return x.masked_fill(~inside, 0).sum(axis) / count


def _sliding(x: Tensor, n: int, mode: Mode) -> Tensor:
    (rows, down), (columns, right) = (sliding_window(size, n) for size in x.shape[2:])
    pool = F.max_pool2d if mode == "max" else F.avg_pool2d
    return pool(x, (rows, columns), (down, right))


def _check_names(mode: str, rule: str) -> None:
    for key, got, allowed in (("mode", mode, get_args(Mode)), ("rule", rule, get_args(Rule))):
        if got not in allowed:
            raise ValueError(f"{key}: got {got!r}{did_you_mean(str(got), allowed)}")


def _check_map(x: Tensor) -> None:
    shape = tuple(x.shape)
    if x.ndim not in (3, 4):
        raise ValueError(f"x: got {x.ndim} dimensions, shape {shape}; expected [N, C, H, W] or [C, H, W]")
    if 0 in shape[-3:]:
        raise ValueError(f"x: got shape {shape}; C, H and W must be at least 1")
    if not x.is_floating_point():
        raise TypeError(f"x: got {x.dtype}, shape {shape}; expected a floating point tensor, e.g. x.float()")
