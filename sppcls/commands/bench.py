"""``sppcls bench``: benchmark this package against a straightforward baseline."""

import sys
from argparse import ArgumentParser, Namespace
from importlib import import_module

from sppcls.commands.arguments import path_text
from sppcls.files import to_json
from sppcls.terminal import say, show, table

# Each with its module in sppcls.bench.
BENCHES = {
    "pool": "pooling", "loader": "loader", "train": "training", "views": "pooling", "regions": "pooling",
    "saves": "training", "plan": "plan",
}  # fmt: skip


def run(given: Namespace) -> int:
    """Run one bench, and print its table and summary, or one JSON object."""
    bench = getattr(import_module(f"sppcls.bench.{BENCHES[given.name]}"), given.name)
    report = bench(given.data) if given.name in ("loader", "train", "regions") else bench()
    if given.json:
        rows = [dict(zip(report.columns, row, strict=True)) for row in report.rows]
        say(to_json({"name": report.name, "rows": rows, "summary": report.summary}), sys.stdout)
        return 0
    cells = [[f"{cell:.4g}" if isinstance(cell, float) else str(cell) for cell in row] for row in report.rows]
    show(table(report.name, report.columns, cells), *(f"{key}: {value:.4g}" for key, value in report.summary.items()))
    return 0


def options(verb: ArgumentParser) -> None:
    """Add the options of the verb."""
    add = verb.add_argument
    add("name", choices=BENCHES)
    add("--json", action="store_true", help="print one JSON object")
    add("--data", type=path_text, metavar="DIR", help="images for loader, train and regions: a folder of class folders")
