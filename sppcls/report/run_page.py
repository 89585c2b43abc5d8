"""The report of one run: report.html, and beside a finished run's own summary.json summary.csv and summary.md."""

from pathlib import Path
from typing import Any

import yaml

from sppcls.atomic import write_csv, write_text
from sppcls.report.page import percent, points, scale_cells, scale_columns, write_page
from sppcls.report.plots import Curve, accuracy_curve, line_plot, scale_plot
from sppcls.report.runs import Run, read_run
from sppcls.report.sweep_page import confused, data_rows
from sppcls.terminal import markdown

_EPOCH = ("epoch", "scale", "train_loss", "train_acc1", "val_loss", "val_acc1", "megapixels", "images_per_s")


def write_run_page(folder: Path) -> Path:
    """Write report.html into a run folder from its own files and return its path; works on an unfinished run too."""
    run = read_run(folder)
    return write_page(
        "run",
        folder / "report.html",
        folder.resolve().name,
        run=run,
        headline=_headline(run.summary),
        scales=_scales(run.summary),
        agreement=_agreement(run.summary),
        gaps=_gaps(run),
        epochs=[_EPOCH, [[row.get(column) or "-" for column in _EPOCH] for row in run.epochs]],
        data=[row[1:] for row in data_rows({"": run.summary})],
        confusion=confused([run], run.mistakes.get("scale", 0)),
        config=yaml.safe_dump(run.config, sort_keys=False),
        log=run.last_lines(),
    )


def write_run_tables(folder: Path) -> None:
    """Write summary.csv, a row a test scale, and summary.md."""
    summary = read_run(folder).summary
    if not summary.get("scales"):
        return
    write_csv(folder / "summary.csv", summary["scales"])
    tables = [
        markdown(["measure", "value"], _headline(summary)),
        markdown(_scale_columns(summary), _scale_rows(summary)),
    ]
    write_text(folder / "summary.md", "\n\n".join(tables) + "\n")


def _headline(summary: dict[str, Any]) -> list[list[str]]:
    names = {
        "acc1": f"top-1 at scale {summary.get('last_scale')}",
        "generalization_gap": "generalization gap",
        "scale_area": "mean top-1 over log scale",
        "scale_spread": "scale spread",
        "scale_consistency": "scale consistency",
    }
    rows = [[said, percent(summary[name])] for name, said in names.items() if summary.get(name) is not None]
    plain = ("worst_scale", "epochs", "seconds", "gap_seconds", "train_megapixels", "parameters", "seed")
    return rows + [[name.replace("_", " "), f"{summary[name]:,}"] for name in plain if summary.get(name) is not None]


def _scale_columns(summary: dict[str, Any]) -> list[str]:
    return ["scale", *scale_columns(summary), "images"]


def _scale_rows(summary: dict[str, Any]) -> list[list[str]]:
    return [
        [f"{row['scale']}{' (trained)' if row['trained'] else ''}", *scale_cells(row), str(row["images"])]
        for row in summary["scales"]
    ]


def _scales(summary: dict[str, Any]) -> dict[str, Any] | None:
    rows = summary.get("scales")
    if not rows:
        return None
    plot = scale_plot({"validation": accuracy_curve(rows)}, [row["scale"] for row in rows if row["trained"]])
    return {"svg": plot, "columns": _scale_columns(summary), "rows": _scale_rows(summary)}


def _agreement(summary: dict[str, Any]) -> list[Any] | None:
    rows = summary.get("agreement")
    if not rows or len(rows) < 2:
        return None
    scales = [str(row["scale"]) for row in summary["scales"]]
    return [["scale", *scales], [[scale, *map(percent, row)] for scale, row in zip(scales, rows, strict=True)]]


def _gaps(run: Run) -> dict[str, Any] | None:
    """Return the curves of gap.csv: validation and training (dashed), a colour a scale."""
    curves: dict[str, Curve] = {}
    for number, scale in enumerate(sorted({int(row["scale"]) for row in run.gaps})):
        rows = [row for row in run.gaps if row["scale"] == str(scale)]
        for side, said, style in (("val", "validation", "o-"), ("train", "training", "--")):
            track = [(int(row["epoch"]) + 1, float(row[f"{side}_acc1"])) for row in rows]
            curves[f"{said} at {scale}"] = Curve(track, (), style, number)
    if not curves:
        return None
    sides = ("train_acc1", "val_acc1")
    rows_shown = [
        [str(int(row["epoch"]) + 1), row["scale"], *(percent(float(row[s])) for s in sides), points(float(row["gap"]))]
        for row in run.gaps
    ]
    columns = ["epoch", "scale", "training", "validation", "gap"]
    return {"svg": line_plot(curves, x="epoch", y="top-1"), "columns": columns, "rows": rows_shown}
