"""Our numbers against the obvious way, in one process."""

import json
from importlib import import_module


def run_bench(name: str, *, data: str | None = None, as_json: bool = False) -> int:
    """Run one bench, print its table and summary (or one JSON object), and return the exit status.

    ``data`` is a folder of class folders, for the benches that read images.
    """
    module = import_module(f"sppcls.bench.{name}")
    report = module.run() if name in ("pool", "views") else module.run(data)
    if as_json:
        rows = [dict(zip(report.columns, row, strict=True)) for row in report.rows]
        print(json.dumps({"name": report.name, "rows": rows, "summary": report.summary}))
        return 0
    from rich.console import Console
    from rich.table import Table

    table = Table(*report.columns, title=report.name)
    for row in report.rows:
        table.add_row(*(f"{cell:.4g}" if isinstance(cell, float) else str(cell) for cell in row))
    console = Console(highlight=False)
    console.print(table)
    for key, value in report.summary.items():
        console.print(f"{key}: {value:.4g}")
    return 0
