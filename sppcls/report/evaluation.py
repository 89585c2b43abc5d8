"""What ``sppcls evaluate`` shows: the table, and evaluation.json, .csv and .svg in a folder."""

from pathlib import Path
from typing import Any

from rich.table import Table

from sppcls.atomic import write_text
from sppcls.build import pick_device
from sppcls.measure.evaluate import Options, evaluate, write_evaluation
from sppcls.report.page import percent, points
from sppcls.report.plots import Curve, line_plot
from sppcls.terminal import show


def run_evaluate(model: str, out: str | None, device: str, **options: Any) -> int:
    """Measure with `Options`, write the three files into ``out`` or beside the model, show the table, and return 0."""
    found = evaluate(model, Options(device=pick_device(device), **options))
    file = Path(model)
    beside = file.parent.parent if file.parent.name == "checkpoints" else file.parent
    folder = Path(out) if out else file if file.is_dir() else beside
    write_evaluation(found, folder)
    write_text(folder / "evaluation.svg", _plot(found))
    show(*evaluation_tables(found), *_lines(found), f"written: {folder}/evaluation.json, .csv, .svg")
    return 0


def evaluation_tables(found: dict[str, Any]) -> list[Table]:
    """Return the table of scales, and that of object sizes where they were asked for."""
    gap = "generalization_gap" in found["scales"][0]
    columns = ["test scale", "top-1", "95 % interval", "top-5", "loss", "ECE", "images/s"]
    title = f"{found['split']} of {found['data']}, fit {found['fit']}, {found['views']} view (* trained)"
    table = Table(*columns, *(["train top-1", "gap"] if gap else []), title=title)
    for row in [*found["scales"], *([found["fused"]] if "fused" in found else [])]:
        scale = row["scale"] if isinstance(row["scale"], int) else "+".join(map(str, row["scale"]))
        cells = [
            f"{scale}{' *' if row['trained'] and isinstance(row['scale'], int) else ''}",
            percent(row["acc1"]),
            f"{percent(row['acc1_low'])} to {percent(row['acc1_high'])}",
            percent(row["acc5"]),
            f"{row['loss']:.3f}",
            f"{row['ece']:.3f}",
            f"{row['images_per_s']:.0f}" if "images_per_s" in row else "-",
        ]
        table.add_row(*cells, *([percent(row.get("train_acc1")), points(row.get("generalization_gap"))] if gap else []))
    return [table, *([_objects(found["object_scale"])] if "object_scale" in found else [])]


def _objects(rows: list[dict[str, Any]]) -> Table:
    scales = list(rows[0]["acc1"])
    table = Table("object / shorter side", "images", *scales, title="Top-1 by the object's true size and test scale")
    for row in rows:
        size = f"{row['from']:.2f} to {row['to']:.2f}"
        table.add_row(size, str(row["images"]), *(percent(row["acc1"][scale]) for scale in scales))
    return table


def _lines(found: dict[str, Any]) -> list[str]:
    if len(found["scales"]) < 2:
        return []
    spread, area = found["scale_spread"] * 100, percent(found["scale_area"])
    scales = [row["scale"] for row in found["scales"]]
    pairs = [
        (found["agreement"][a][b], scales[a], scales[b]) for a in range(len(scales)) for b in range(a + 1, len(scales))
    ]
    least = min(pairs)
    return [
        f"scale spread {spread:.1f} points, worst at {found['worst_scale']}, mean over log scale {area}",
        f"scale consistency {percent(found['scale_consistency'])}; "
        f"least agreement {percent(least[0])}, between {least[1]} and {least[2]}",
    ]


def _plot(found: dict[str, Any]) -> str:
    rows = found["scales"]
    band = [(row["acc1_low"], row["acc1_high"]) for row in rows]
    curves = {found["split"]: Curve([(row["scale"], row["acc1"]) for row in rows], band)}
    if "train_acc1" in rows[0]:
        curves["training"] = Curve([(row["scale"], row["train_acc1"]) for row in rows], (), "o--")
    marks = [row["scale"] for row in rows if row["trained"]]
    return line_plot(curves, x="test scale (pixels, shorter side)", y="top-1", marks=marks, log=True)
