"""Our numbers against the obvious way, in one process."""

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from statistics import median

from sppcls.atomic import to_json
from sppcls.terminal import say, show, table


@dataclass(frozen=True)
class BenchReport:
    """A table of measurements and the few figures that matter; times are in seconds unless a column says otherwise."""

    name: str
    columns: tuple[str, ...]
    rows: list[tuple[str | float, ...]]
    summary: dict[str, float]


def paired(
    ours: Callable[[], object], naive: Callable[[], object], repeats: int = 15, warmup: int = 2
) -> tuple[float, float, float]:
    """Run both in turn and return the median seconds of each and the median of naive / ours over the pairs.

    A pair runs within moments, so a neighbour's load falls on both sides; the median drops the pairs it falls on one.
    """
    for _ in range(warmup):
        ours(), naive()
    pairs = [(_seconds(ours), _seconds(naive)) for _ in range(repeats)]
    return median(a for a, _ in pairs), median(b for _, b in pairs), median(b / a for a, b in pairs)


def _seconds(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def run_bench(name: str, *, data: str | None = None, as_json: bool = False) -> int:
    """Run one bench, print its table and summary (or one JSON object), and return the exit status.

    ``data`` is a folder of class folders, for the benches that read images.
    """
    module = import_module(f"sppcls.bench.{name}")
    report = module.run() if name in ("pool", "views", "plan") else module.run(data)
    if as_json:
        rows = [dict(zip(report.columns, row, strict=True)) for row in report.rows]
        say(to_json({"name": report.name, "rows": rows, "summary": report.summary}), sys.stdout)
        return 0
    cells = [[f"{cell:.4g}" if isinstance(cell, float) else str(cell) for cell in row] for row in report.rows]
    show(table(report.name, report.columns, cells), *(f"{key}: {value:.4g}" for key, value in report.summary.items()))
    return 0
