"""The report of one run: report.html and, for a finished run, summary.csv and summary.md next to its summary.json."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from math import isfinite
from pathlib import Path

import yaml

from sppcls.files import write_csv, write_text
from sppcls.report import page
from sppcls.report.plots import Curve, Figure, accuracy_curve, line_figure, scale_plot
from sppcls.report.runs import Run, flat, read_run
from sppcls.run_folder import Summary
from sppcls.terminal import markdown

_KEYS = (
    "data.name", "data.root", "data.fit", "data.align", "data.batch_size", "data.batch_pixels", "data.mix",
    "data.batches", "model.backbone", "model.weights", "model.norm_per_scale", "model.pool", "model.levels",
    "schedule.kind", "schedule.scales", "optim.name", "optim.lr", "seed",
)  # fmt: skip
_EPOCH = ("epoch", "scale", "train_loss", "train_acc1", "val_loss", "val_acc1", "lr", "megapixels", "images_per_s")


def write_run_page(folder: Path) -> Path:
    """Write report.html into a run folder from its own files and return its path; also works for an unfinished run."""
    run = read_run(folder)
    values, answers, mistakes = flat(run.config), run.answers, run.mistakes
    return page.write_page(
        "run",
        folder / "report.html",
        folder.resolve().name,
        run=run,
        tiles=_tiles(run.summary),
        facts=_facts(run.summary),
        keys=[(name, str(values[name])) for name in _KEYS if values.get(name) is not None],
        figures=_figures(run),
        agreement=_agreement(run.summary),
        epochs=[_EPOCH, [_epoch_cells(row) for row in run.epochs]],
        data=[row[1:] for row in page.data_rows({"": run.summary})],
        confusion=answers and page.confusion([answers], mistakes.get("classes", ()), mistakes.get("scale", 0)),
        config=yaml.safe_dump(run.config, sort_keys=False),
        log=run.last_lines(),
    )


class Plots(dict[str, str]):
    """SVG by name, which a notebook draws."""

    def _repr_html_(self) -> str:
        return "".join(f"<h4>{name}</h4>{svg}" for name, svg in self.items())


def plots(folder: str | Path) -> Plots:
    """Return the plots of a run as SVG by name: ``scales``, ``gap``, ``loss`` and ``learning rate``, as available.

    In a notebook the value displays itself. Raises ``ConfigError`` if ``folder`` is not a run.
    """
    return Plots({name: one.svg for name, one in _figures(read_run(Path(folder))).items()})


def write_run_tables(folder: Path) -> None:
    """Write summary.csv, one row per test scale, and summary.md."""
    summary = read_run(folder).summary
    if not summary.get("scales"):
        return
    write_csv(folder / "summary.csv", summary["scales"])
    figures = markdown(["measure", "value"], [*_tiles(summary), *_facts(summary)])
    write_text(folder / "summary.md", f"{figures}\n\n{markdown(*_scale_table(summary))}\n")


def _tiles(summary: Summary) -> list[tuple[str, str]]:
    """Return the headline figures, each with its name."""
    part = ", test part" if summary.get("part") == "test" else ""
    said = {
        f"top-1 at scale {summary.get('val_scale')}{part}": page.percent(summary.get("acc1")),
        "generalization gap (points)": page.points(summary.get("generalization_gap")),
        "scale spread (points)": page.points(summary.get("scale_spread")).lstrip("+"),
        "scale consistency": page.percent(summary.get("scale_consistency")),
        "training images": f"{summary['train_images']:,}" if "train_images" in summary else "-",
        "validation images": f"{summary['val_images']:,}" if "val_images" in summary else "-",
        "epochs": f"{summary.get('epochs', '-')}",
        "time": page.duration(summary["seconds"]) if "seconds" in summary else "-",
    }
    return [(name, value) for name, value in said.items() if value != "-"]


def _facts(summary: Summary) -> list[tuple[str, str]]:
    names = ("worst_scale", "gap_seconds", "train_megapixels", "parameters", "seed")
    values: Mapping[str, object] = summary
    found = [(name.replace("_", " "), f"{values[name]:,}") for name in names if values.get(name) is not None]
    if summary.get("scale_area") is not None:
        found.insert(0, ("mean top-1 over log scale", page.percent(summary["scale_area"])))
    if mixing := summary.get("mixing"):
        found += [
            ("classes a step", f"{mixing['classes']:.1f} (random steps {mixing['classes_random']:.1f})"),
            ("images of a step that meet again", f"{mixing['again']:.1%} (random {mixing['again_random']:.1%})"),
        ]
    return found + [
        (name, "-" if value is None else f"{value:.4g}") for name, value in (summary.get("measures") or {}).items()
    ]


def _epoch_cells(row: dict[str, str]) -> list[str]:
    cells = [row.get(column) or "-" for column in _EPOCH]
    return [str(int(cells[0]) + 1) if cells[0].isdecimal() else cells[0], *cells[1:]]  # from 1, as everywhere else


def _scale_table(summary: Summary) -> tuple[list[str], list[list[str]]]:
    rows = [
        [f"{row['scale']}{' (trained)' if row['trained'] else ''}", *page.scale_cells(row), str(row["images"])]
        for row in summary["scales"]
    ]
    return ["scale", *page.scale_columns(summary), "images"], rows


def _agreement(summary: Summary) -> list[object] | None:
    rows = summary.get("agreement")
    if not rows or len(rows) < 2 or len(rows) != len(summary["scales"]):  # some older runs left out a scale
        return None
    scales = [str(row["scale"]) for row in summary["scales"]]
    return [["scale", *scales], [[scale, *map(page.percent, row)] for scale, row in zip(scales, rows, strict=True)]]


def _figures(run: Run) -> dict[str, Figure]:
    """Return the figures that a run has the numbers for, by name."""
    tracks = ("train_loss", "training"), ("val_loss", "validation"), ("lr", "learning rate")
    curves = {name: Curve(track) for column, name in tracks if (track := _track(run.epochs, column))}
    rate = {name: curves.pop(name) for name in ("learning rate",) if name in curves}
    found = {
        "scales": _scales(run.summary),
        "gap": line_figure(_gaps(run.gaps), x="epoch", y="top-1"),
        "loss": line_figure(curves, x="epoch", y="loss", share=False),
        "learning rate": line_figure(rate, x="epoch", y="learning rate", share=False),
    }
    return {name: figure for name, figure in found.items() if figure}


def _scales(summary: Summary) -> Figure | None:
    rows = summary.get("scales")
    if not rows:
        return None
    plot = scale_plot({page.part_of(summary): accuracy_curve(rows)}, [row["scale"] for row in rows if row["trained"]])
    return Figure(plot, *_scale_table(summary))


def _gaps(gaps: Sequence[dict[str, str]]) -> dict[str, Curve]:
    """Return the curves of gap.csv: validation and training (dashed), a colour and a marker for each scale."""
    curves = {}
    for number, scale in enumerate(sorted({int(row["scale"]) for row in gaps})):
        rows = [row for row in gaps if row["scale"] == str(scale)]
        for side, line in (("val", "-"), ("train", "--")):
            curves[f"{side} at {scale}"] = Curve(_track(rows, f"{side}_acc1"), line, number)
    return curves


def _track(rows: Sequence[dict[str, str]], column: str) -> list[tuple[int, float]]:
    """Return (epoch from 1, value) of the rows of a table that have a finite number there."""
    found: list[tuple[int, float]] = []
    for row in rows:
        with suppress(KeyError, ValueError):
            found.append((int(row["epoch"]) + 1, float(row[column])))
    return [(epoch, value) for epoch, value in found if isfinite(value)]
