"""What ``sppcls evaluate`` shows: the table, and evaluation.json, .csv and .svg in a folder."""

from itertools import combinations
from pathlib import Path
from typing import Any

from rich.table import Table

from sppcls.atomic import write_csv, write_json, write_text
from sppcls.build import pick_device
from sppcls.errors import ConfigError
from sppcls.measure.evaluate import Options, evaluate
from sppcls.report.page import percent, points, scale_cells, scale_columns
from sppcls.report.plots import Curve, accuracy_curve, scale_plot
from sppcls.terminal import show, table


def run_evaluate(model: str, out: str | None, device: str, **options: Any) -> int:
    """Measure with `Options`, write the three files into ``out`` or beside the model, show the table, and return 0."""
    found = evaluate(model, Options(device=pick_device(device), **options))
    file = Path(model)
    beside = file.parent.parent if file.parent.name == "checkpoints" else file.parent
    folder = Path(out) if out else file if file.is_dir() else beside
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / "evaluation.json", found)
        write_csv(folder / "evaluation.csv", found["scales"])
        write_text(folder / "evaluation.svg", _plot(found))
    except OSError as error:
        raise ConfigError(f"--out {folder}: {error.strerror}; name a folder that can be written") from None
    show(*evaluation_tables(found), *_lines(found), f"written: {folder}/evaluation.json, .csv, .svg")
    return 0


def evaluation_tables(found: dict[str, Any]) -> list[Table]:
    """Return the table of scales, and that of object sizes where they were asked for."""
    gap = "generalization_gap" in found["scales"][0]
    columns = ["test scale", *scale_columns(found), "images/s", *(["train top-1", "gap"] if gap else [])]
    title = f"{found['split']} of {found['data']}, fit {found['fit']}, {found['views']} view (* trained)"
    rows = []
    for row in found["scales"]:
        gaps = [percent(row["train_acc1"]), points(row["generalization_gap"])] if gap else []
        scale = f"{row['scale']}{' *' if row['trained'] else ''}"
        rows.append([scale, *scale_cells(row), f"{row['images_per_s']:.0f}", *gaps])
    if fused := found.get("fused"):
        rows.append(["+".join(map(str, fused["scale"])), *scale_cells(fused), "-", *(["-", "-"] if gap else [])])
    tables = [table(title, columns, rows)]
    if objects := found.get("object_scale"):
        heads = ["object / shorter side", "images", *objects[0]["acc1"]]
        rows = [
            [f"{one['from']:.2f} to {one['to']:.2f}", str(one["images"]), *map(percent, one["acc1"].values())]
            for one in objects
        ]
        tables.append(table("Top-1 by the object's true size and test scale", heads, rows))
    return tables


def _lines(found: dict[str, Any]) -> list[str]:
    if len(found["scales"]) < 2:
        return []
    spread, area = found["scale_spread"] * 100, percent(found["scale_area"])
    pairs = combinations(enumerate(row["scale"] for row in found["scales"]), 2)
    least, one, other = min((found["agreement"][i][j], one, other) for (i, one), (j, other) in pairs)
    return [
        f"scale spread {spread:.1f} points, worst at {found['worst_scale']}, mean over log scale {area}",
        f"scale consistency {percent(found['scale_consistency'])}; "
        f"least agreement {percent(least)}, between {one} and {other}",
    ]


def _plot(found: dict[str, Any]) -> str:
    rows = found["scales"]
    curves = {found["split"]: accuracy_curve(rows)}
    if "train_acc1" in rows[0]:
        curves["training"] = Curve([(row["scale"], row["train_acc1"]) for row in rows], (), "--")
    return scale_plot(curves, [row["scale"] for row in rows if row["trained"]])
