"""Pyramid pooling, forward and backward, against one adaptive_max_pool2d a level (CPU)."""

from collections.abc import Callable, Iterator
from itertools import product
from statistics import geometric_mean

import torch
from torch import Tensor
from torch.nn import functional as F

from sppcls.bench import BenchReport, paired
from sppcls.ops import spatial_pyramid_pool2d

# Last maps of ZF-5, a ResNet and Overfeat at 224, and of a 640 x 480 picture at stride 16.
SHAPES = ((64, 256, 13, 13), (64, 512, 7, 7), (64, 512, 14, 14), (16, 512, 40, 30))
LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
LEVELS = ((4, 2, 1), (6, 3, 2, 1))
Pool = Callable[[Tensor, tuple[int, ...]], Tensor]


def run(repeats: int = 15) -> BenchReport:
    """Measure every shape, layout, pyramid and number of threads (1 and all)."""
    threads = torch.get_num_threads()
    try:
        rows = [row for count in sorted({1, threads}) for row in _rows(count, repeats)]
    finally:
        torch.set_num_threads(threads)
    ratios = [float(row[-1]) for row in rows]
    columns = ("threads", "shape", "layout", "levels", "ours_ms", "naive_ms", "ratio")
    return BenchReport("pool", columns, rows, {"worst_ratio": min(ratios), "geometric_mean": geometric_mean(ratios)})


def naive(x: Tensor, levels: tuple[int, ...]) -> Tensor:
    """Pool the map anew for each level."""
    return torch.cat([F.adaptive_max_pool2d(x, n).flatten(1) for n in levels], 1)


def _rows(threads: int, repeats: int) -> Iterator[tuple[str | float, ...]]:
    torch.set_num_threads(threads)
    for shape, (layout, memory_format), levels in product(SHAPES, LAYOUTS.items(), LEVELS):
        x = torch.randn(shape).contiguous(memory_format=memory_format).requires_grad_()
        grad = torch.randn_like(naive(x, levels))
        ours, slow, ratio = paired(
            _step(spatial_pyramid_pool2d, x, levels, grad), _step(naive, x, levels, grad), repeats
        )
        yield float(threads), str(shape), layout, str(levels), ours * 1e3, slow * 1e3, ratio


def _step(pool: Pool, x: Tensor, levels: tuple[int, ...], grad: Tensor) -> Callable[[], None]:
    def step() -> None:
        x.grad = None
        pool(x, levels).backward(grad)  # type: ignore[no-untyped-call]

    return step
