"""One offline HTML page of a run folder: curves, accuracy by test scale, settings. Reads files only."""

import csv
import html
import json
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

from sppcls.atomic import write_text
from sppcls.report.plots import line_plot

STYLE = """
:root { color-scheme: light dark; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
table { border-collapse: collapse; margin: 1rem 0; display: block; overflow-x: auto; }
th, td { border-bottom: 1px solid #8884; padding: .3rem .8rem; text-align: right; }
th:first-child, td:first-child { text-align: left; }
svg { max-width: 100%; height: auto; } details { margin: 1rem 0; } pre { overflow-x: auto; }
.note { opacity: .7; }
"""


def write_run_page(folder: Path) -> Path:
    """Write report.html into a run folder from its own files and return its path; works on an unfinished run too."""
    status = _json(folder / "status.json")
    summary = _json(folder / "summary.json")
    epochs = _rows(folder / "metrics.csv")
    parts = [
        f"<h1>{html.escape(folder.resolve().name)}</h1>",
        f"<p>State: <b>{html.escape(str(status.get('state', 'unknown')))}</b>"
        + (f", {html.escape(status['error'])}" if status.get("error") else "")
        + "</p>",
        _headline(summary),
        _scales(summary),
        _curves(epochs),
        _settings(folder),
    ]
    page = (
        "<!doctype html><html lang='en'><head><meta charset='utf-8'>"
        "<meta name='viewport' content='width=device-width, initial-scale=1'>"
        f"<title>{html.escape(folder.resolve().name)}</title><style>{STYLE}</style></head><body>{''.join(parts)}"
        f"<p class='note'>sppcls {version('sppcls')}, Python {platform.python_version()}, {platform.machine()}</p>"
        "</body></html>"
    )
    return write_text(folder / "report.html", page)


def _json(path: Path) -> dict[str, Any]:
    try:
        loaded = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return loaded if isinstance(loaded, dict) else {}


def _rows(path: Path) -> list[dict[str, str]]:
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def _table(columns: list[str], rows: list[list[str]]) -> str:
    head = "".join(f"<th>{html.escape(column)}</th>" for column in columns)
    body = "".join("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _headline(summary: dict[str, Any]) -> str:
    if not summary:
        return "<p>No summary yet: the run has not finished.</p>"
    names = {
        "acc1": f"top-1 at scale {summary.get('last_scale')}",
        "generalization_gap": "generalization gap",
        "scale_spread": "scale spread",
        "scale_consistency": "scale consistency",
    }
    rows = [[said, f"{summary[name]:.1%}"] for name, said in names.items() if summary.get(name) is not None]
    rows += [[name, f"{summary[name]:,}"] for name in ("epochs", "seconds", "parameters", "seed") if name in summary]
    return _table(["measure", "value"], rows)


def _scales(summary: dict[str, Any]) -> str:
    rows = summary.get("scales") or []
    if not rows:
        return ""
    plot = line_plot(
        {"validation": [(row["scale"], row["acc1"]) for row in rows]},
        x="test scale (pixels, shorter side)",
        y="top-1",
        marks=[row["scale"] for row in rows if row["trained"]],
    )
    columns = ["scale", "top-1", "top-5", "loss", "ECE", "images"]
    cells = [
        [
            f"{row['scale']}{' (trained)' if row['trained'] else ''}",
            f"{row['acc1']:.1%}",
            f"{row['acc5']:.1%}",
            f"{row['loss']:.3f}",
            f"{row['ece']:.3f}",
            str(row["images"]),
        ]
        for row in rows
    ]
    return f"<h2>Accuracy by test scale</h2>{plot}{_table(columns, cells)}"


def _curves(rows: list[dict[str, str]]) -> str:
    if not rows:
        return ""
    curves = {
        name: [(int(row["epoch"]) + 1, float(row[key])) for row in rows if row.get(key)]
        for name, key in (("training (augmented, while learning)", "train_acc1"), ("validation", "val_acc1"))
    }
    plot = line_plot({name: curve for name, curve in curves.items() if curve}, x="epoch", y="top-1")
    columns = ["epoch", "scale", "train_loss", "train_acc1", "val_loss", "val_acc1", "images_per_s"]
    table = _table(columns, [[row.get(column) or "-" for column in columns] for row in rows])
    return f"<h2>Training</h2>{plot}<details><summary>Every epoch</summary>{table}</details>"


def _settings(folder: Path) -> str:
    path = folder / "config.yaml"
    text = html.escape(path.read_text()) if path.exists() else "config.yaml is missing"
    return f"<h2>Settings</h2><details><summary>config.yaml</summary><pre>{text}</pre></details>"
