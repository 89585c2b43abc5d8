"""``sppcls bench``: benchmark this package against a straightforward baseline."""

import argparse
import sys
from importlib import import_module

from sppcls.commands.arguments import path_text
from sppcls.files import to_json
from sppcls.terminal import say, show, table

# Each with its module in sppcls.bench.
BENCHES = {
    "pool": "pooling", "loader": "loader", "train": "training", "views": "pooling", "regions": "pooling",
    "saves": "training", "plan": "plan",
}  # fmt: skip


def run(name: str, *, data: str | None = None, as_json: bool = False) -> int:
    """Run one bench, print its table and summary (or one JSON object), and return the exit status.

    ``data`` is a folder of class folders, for the benches that read images.
    """
    bench = getattr(import_module(f"sppcls.bench.{BENCHES[name]}"), name)
    report = bench(data) if name in ("loader", "train", "regions") else bench()
    if as_json:
        rows = [dict(zip(report.columns, row, strict=True)) for row in report.rows]
        say(to_json({"name": report.name, "rows": rows, "summary": report.summary}), sys.stdout)
        return 0
    cells = [[f"{cell:.4g}" if isinstance(cell, float) else str(cell) for cell in row] for row in report.rows]
    show(table(report.name, report.columns, cells), *(f"{key}: {value:.4g}" for key, value in report.summary.items()))
    return 0


def options(verb: argparse.ArgumentParser) -> None:
    """Add the options of the verb."""
    add = verb.add_argument
    add("name", choices=BENCHES)
    add("--json", action="store_true", dest="as_json", help="print one JSON object")
    add("--data", type=path_text, metavar="DIR", help="images for loader, train and regions: a folder of class folders")
