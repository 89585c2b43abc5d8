"""Planning: an epoch of millions of images, compared with collecting images by aspect until a batch is full."""

import re
import time
from collections import defaultdict
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np

from sppcls.bench import BenchReport, Row, paired
from sppcls.data.cut import Sizes, aspect_buckets
from sppcls.data.planner import Planner
from sppcls.data.schedule import Schedule
from sppcls.settings import DataSpec

CASES = ((1_280_000, 256, 64), (14_000_000, 256, 8))  # images, batch size, ranks: ImageNet's, ImageNet-21k's
FEW = 200_000
SCHEDULE = Schedule("alternate", (160, 224))


def plan() -> BenchReport:
    """Time the cut, and an epoch until rank 0 has its steps, mixed as by default, each case in its own process.

    The ratio is for an epoch's steps, without the cut, at 200,000 images.
    """
    with ProcessPoolExecutor(1, get_context("spawn"), max_tasks_per_child=1) as fresh:
        measured = list(fresh.map(_measure, *zip(*CASES, strict=True)))
    rows: list[Row] = [(*(f"{n:,}" for n in case), *found) for case, found in zip(CASES, measured, strict=True)]
    sizes = photographs(FEW)
    planner = _planner(sizes, 256)
    ratio = paired(lambda: list(planner.plan(0)), lambda: grouped(sizes), 5)[2]
    summary = {"slowest_seconds": max(cutting + epoch for cutting, epoch, _ in measured), "ratio_to_grouping": ratio}
    columns = ("images", "batch size", "ranks", "seconds to cut, once", "seconds per epoch", "peak MB")
    return BenchReport("plan: assigning images to batches", columns, rows, summary)


def photographs(count: int) -> Sizes:
    """Return sizes [N, 2]: six in ten with a camera's aspect, the others with any, as in ImageNet."""
    rng = np.random.default_rng(0)
    cameras = rng.choice([4 / 3, 3 / 4, 3 / 2, 2 / 3, 1], count, p=[0.5, 0.2, 0.15, 0.05, 0.1])
    aspect = np.where(rng.random(count) < 0.6, cameras, np.exp(rng.normal(0.15, 0.35, count)))
    short = rng.integers(200, 700, count)
    factors = np.maximum(np.column_stack([1 / aspect, aspect]), 1)
    sizes: Sizes = np.rint(short[:, None] * factors).astype(np.int64)
    return sizes


def grouped(sizes: Sizes) -> list[list[int]]:
    """Return an epoch's batches in the straightforward way: one list per aspect, handed out when it is full."""
    buckets = aspect_buckets(sizes, 4.0).tolist()
    waiting: dict[int, list[int]] = defaultdict(list)
    batches = []
    for index in np.random.default_rng(0).permutation(len(sizes)).tolist():
        group = waiting[buckets[index]]
        group.append(index)
        if len(group) == 256:
            batches.append(waiting.pop(buckets[index]))
    return batches + list(waiting.values())


def _planner(sizes: Sizes, batch_size: int) -> Planner:
    return Planner(sizes, SCHEDULE, batch_size, mix=DataSpec().mix)


def _measure(count: int, batch_size: int, world: int) -> tuple[float, float, float]:
    """Return the seconds of the cut and of an epoch, and the peak memory of this process in MB."""
    sizes, started = photographs(count), time.perf_counter()
    planner = _planner(sizes, batch_size)
    planner.plan(0, world)
    cut_at = time.perf_counter()
    for _ in planner.plan(1, world).of_rank(0):
        pass
    # getrusage would also count the parent process before the exec.
    peak = re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1]  # type: ignore[index]
    return cut_at - started, time.perf_counter() - cut_at, float(peak) / 1e3
