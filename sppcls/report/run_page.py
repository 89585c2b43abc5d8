"""The report of one run: report.html, and beside a finished run's own summary.json summary.csv and summary.md."""

from collections.abc import Sequence
from contextlib import suppress
from math import isfinite
from pathlib import Path
from typing import Any

import yaml

from sppcls.files import write_csv, write_text
from sppcls.report.page import duration, percent, points, scale_cells, scale_columns, write_page
from sppcls.report.plots import Curve, accuracy_curve, line_plot, scale_plot
from sppcls.report.runs import Run, flat, read_run
from sppcls.report.sweep_page import confused, data_rows
from sppcls.terminal import markdown

_KEYS = (
    "data.name", "data.root", "data.fit", "data.batch_size", "model.backbone", "model.weights", "model.pool",
    "model.levels", "schedule.kind", "schedule.scales", "optim.name", "optim.lr", "seed",
)  # fmt: skip
_EPOCH = ("epoch", "scale", "train_loss", "train_acc1", "val_loss", "val_acc1", "lr", "megapixels", "images_per_s")


def write_run_page(folder: Path) -> Path:
    """Write report.html into a run folder from its own files and return its path; works on an unfinished run too."""
    run = read_run(folder)
    return write_page(
        "run",
        folder / "report.html",
        folder.resolve().name,
        run=run,
        tiles=_tiles(run.summary),
        facts=_facts(run.summary),
        keys=_key_settings(run.config),
        scales=_scales(run.summary),
        agreement=_agreement(run.summary),
        gaps=_gaps(run),
        tracks=_tracks(run),
        epochs=[_EPOCH, [_epoch_cells(row) for row in run.epochs]],
        data=[row[1:] for row in data_rows({"": run.summary})],
        confusion=confused([run], run.mistakes.get("scale", 0)),
        config=yaml.safe_dump(run.config, sort_keys=False),
        log=run.last_lines(),
    )


class Plots(dict[str, str]):
    """SVG by name, which a notebook draws."""

    def _repr_html_(self) -> str:
        return "".join(f"<h4>{name}</h4>{svg}" for name, svg in self.items())


def plots(folder: str | Path) -> Plots:
    """Return the plots of a run as SVG by name: ``scales``, ``gap``, ``loss`` and ``learning rate``, those it has.

    In a notebook the value draws itself. Raises ``ConfigError`` where ``folder`` is not a run.
    """
    run = read_run(Path(folder))
    found = {"scales": _scales(run.summary), "gap": _gaps(run)}
    drawn = {name: one["svg"] for name, one in found.items() if one}
    return Plots(drawn | {title.lower(): svg for title, (svg, *_) in _tracks(run).items()})


def _epoch_cells(row: dict[str, str]) -> list[str]:
    cells = [row.get(column) or "-" for column in _EPOCH]
    return [str(int(cells[0]) + 1) if cells[0].isdecimal() else cells[0], *cells[1:]]  # from 1, as everywhere else


def write_run_tables(folder: Path) -> None:
    """Write summary.csv, a row a test scale, and summary.md."""
    summary = read_run(folder).summary
    if not summary.get("scales"):
        return
    write_csv(folder / "summary.csv", summary["scales"])
    tables = [
        markdown(["measure", "value"], [*_tiles(summary), *_facts(summary)]),
        markdown(_scale_columns(summary), _scale_rows(summary)),
    ]
    write_text(folder / "summary.md", "\n\n".join(tables) + "\n")


def _tiles(summary: dict[str, Any]) -> list[tuple[str, str]]:
    """Return the few figures that are read first, each with its name."""
    said = {
        f"top-1 at scale {summary.get('val_scale')}": percent(summary.get("acc1")),
        "generalization gap (points)": points(summary.get("generalization_gap")),
        "scale spread (points)": points(summary.get("scale_spread")).lstrip("+"),
        "scale consistency": percent(summary.get("scale_consistency")),
        "training images": f"{summary['train_images']:,}" if "train_images" in summary else "-",
        "validation images": f"{summary['val_images']:,}" if "val_images" in summary else "-",
        "epochs": f"{summary.get('epochs', '-')}",
        "time": duration(summary["seconds"]) if "seconds" in summary else "-",
    }
    return [(name, value) for name, value in said.items() if value != "-"]


def _facts(summary: dict[str, Any]) -> list[list[str]]:
    names = (
        "scale_area",
        "worst_scale",
        "gap_seconds",
        "train_megapixels",
        "parameters",
        "seed",
    )
    said = {"scale_area": "mean top-1 over log scale"}
    return [
        [said.get(name, name.replace("_", " ")), percent(value) if name == "scale_area" else f"{value:,}"]
        for name in names
        if (value := summary.get(name)) is not None
    ]


def _key_settings(config: dict[str, Any]) -> list[tuple[str, str]]:
    values = flat(config)
    return [(name, str(values[name])) for name in _KEYS if values.get(name) is not None]


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


def _tracks(run: Run) -> dict[str, Any]:
    """Return plot, columns and rows of metrics.csv by title: the losses and the learning rate."""
    lines = {"Loss": {"training": "train_loss", "validation": "val_loss"}, "Learning rate": {"learning rate": "lr"}}
    plots: dict[str, Any] = {}
    for title, sides in lines.items():
        curves = {name: Curve(track) for name, column in sides.items() if (track := _track(run.epochs, column))}
        if curves:
            by_epoch = [dict(curve.points) for curve in curves.values()]
            epochs = sorted({epoch for one in by_epoch for epoch in one})
            rows = [[f"{e:g}", *(f"{one[e]:.4g}" if e in one else "-" for one in by_epoch)] for e in epochs]
            plots[title] = line_plot(curves, x="epoch", y=title.lower(), share=False), ["epoch", *curves], rows
    return plots


def _track(rows: Sequence[dict[str, str]], column: str) -> list[tuple[int, float]]:
    """Return (epoch from 1, value) of the rows of metrics.csv that have a finite number there."""
    found = []
    for row in rows:
        with suppress(KeyError, ValueError):
            found.append((int(row["epoch"]) + 1, float(row[column])))
    return [(epoch, value) for epoch, value in found if isfinite(value)]


def _gaps(run: Run) -> dict[str, Any] | None:
    """Return the curves of gap.csv: validation and training (dashed), a colour and a marker for each scale."""
    curves: dict[str, Curve] = {}
    for number, scale in enumerate(sorted({int(row["scale"]) for row in run.gaps})):
        rows = [row for row in run.gaps if row["scale"] == str(scale)]
        for side, line in (("val", "-"), ("train", "--")):
            track = [(int(row["epoch"]) + 1, float(row[f"{side}_acc1"])) for row in rows]
            curves[f"{side} at {scale}"] = Curve(track, (), line, number)
    if not curves:
        return None
    sides = ("train_acc1", "val_acc1")
    rows_shown = [
        [str(int(row["epoch"]) + 1), row["scale"], *(percent(float(row[s])) for s in sides), points(float(row["gap"]))]
        for row in run.gaps
    ]
    columns = ["epoch", "scale", "training", "validation", "gap"]
    return {"svg": line_plot(curves, x="epoch", y="top-1"), "columns": columns, "rows": rows_shown}
