"""Benchmarks against straightforward baselines, in one process."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

Row = tuple[str | float, ...]


@dataclass(frozen=True)
class BenchReport:
    """A table of measurements and a few summary figures; times are in seconds unless a column says otherwise."""

    name: str
    columns: tuple[str, ...]
    rows: list[Row]
    summary: dict[str, float]


def paired(
    ours: Callable[[], object], naive: Callable[[], object], repeats: int = 15, warmup: int = 2
) -> tuple[float, float, float]:
    """Run both alternately and return the median seconds of each and the median of naive / ours over the pairs.

    The two of a pair run close together, so other load affects both; the median drops pairs where it affects only one.
    """
    for _ in range(warmup):
        ours(), naive()
    pairs = [(_seconds(ours), _seconds(naive)) for _ in range(repeats)]
    return median(a for a, _ in pairs), median(b for _, b in pairs), median(b / a for a, b in pairs)


def _seconds(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start
