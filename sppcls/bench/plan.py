"""Planning: an epoch of millions of images, and against images gathered by aspect one by one until a batch is full."""

import json
import re
import subprocess
import sys
import time
from collections import defaultdict
from pathlib import Path

import numpy as np

from sppcls.bench import BenchReport, paired
from sppcls.data.cut import Sizes, aspect_buckets, cut_images
from sppcls.data.plan import TrainingPlan
from sppcls.data.schedule import Schedule
from sppcls.files import to_json
from sppcls.terminal import say

CASES = ((1_280_000, 256, 64), (14_000_000, 256, 8))  # images, batch size, ranks: ImageNet's, ImageNet-21k's
FEW = 200_000
SCHEDULE = Schedule("alternate", (160, 224))


def run() -> BenchReport:
    """Time the cut, and an epoch until rank 0 has had its batches, each case in a process of its own.

    The ratio is of an epoch's batches, the cut being made, at 200,000 images.
    """
    rows: list[tuple[str | float, ...]] = []
    for case in CASES:
        command = [sys.executable, "-m", "sppcls.bench.plan", *map(str, case)]
        measured = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
        rows.append((*(f"{number:,}" for number in case), *measured))
    sizes = photographs(FEW)
    cut = cut_images(sizes, batch_size=256)
    ratio = paired(lambda: list(TrainingPlan(cut, SCHEDULE, 0, 0)), lambda: grouped(sizes), 5)[2]
    summary = {"slowest_seconds": max(float(row[3]) + float(row[4]) for row in rows), "ratio_to_grouping": ratio}
    columns = ("images", "batch size", "ranks", "seconds to cut, once", "seconds an epoch", "peak MB")
    return BenchReport("plan: which images meet in which batch", columns, rows, summary)


def photographs(count: int) -> Sizes:
    """Return sizes [N, 2]: six in ten of a camera's aspect, the others of any, as in ImageNet."""
    rng = np.random.default_rng(0)
    cameras = rng.choice([4 / 3, 3 / 4, 3 / 2, 2 / 3, 1], count, p=[0.5, 0.2, 0.15, 0.05, 0.1])
    aspect = np.where(rng.random(count) < 0.6, cameras, np.exp(rng.normal(0.15, 0.35, count)))
    short = rng.integers(200, 700, count)
    factors = np.maximum(np.column_stack([1 / aspect, aspect]), 1)
    sizes: Sizes = np.rint(short[:, None] * factors).astype(np.int64)
    return sizes


def grouped(sizes: Sizes) -> list[list[int]]:
    """Return an epoch's batches in the obvious way: a list an aspect, handed out when it is full."""
    buckets = aspect_buckets(sizes, 4.0).tolist()
    waiting: dict[int, list[int]] = defaultdict(list)
    batches = []
    for index in np.random.default_rng(0).permutation(len(sizes)).tolist():
        group = waiting[buckets[index]]
        group.append(index)
        if len(group) == 256:
            batches.append(waiting.pop(buckets[index]))
    return batches + list(waiting.values())


def _measure(count: int, batch_size: int, world: int) -> tuple[float, float, float]:
    """Return the seconds of the cut and of an epoch, and the most MB that this process has taken."""
    sizes, started = photographs(count), time.perf_counter()
    cut, cut_at = cut_images(sizes, batch_size=batch_size, world=world), time.perf_counter()
    list(map(len, (batch.indices for batch in TrainingPlan(cut, SCHEDULE, 0, 0).of_rank(0))))
    return cut_at - started, time.perf_counter() - cut_at, _peak()


def _peak() -> float:
    # getrusage would also count the process that started this one, before it became another program.
    status = Path("/proc/self/status").read_text()
    return float(re.search(r"VmHWM:\s+(\d+)", status)[1]) / 1e3  # type: ignore[index]


if __name__ == "__main__":
    say(to_json(_measure(*map(int, sys.argv[1:]))), sys.stdout)
