"""``sppcls evaluate``: accuracy, calibration and cost at each scale."""

import argparse
import re
from collections.abc import Iterator, Sequence
from itertools import chain, combinations, count
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table

from sppcls.commands.arguments import at_least, checkpoint_option, path_text, scale_list, trust_option, writing
from sppcls.data.geometry import FITS
from sppcls.errors import counted
from sppcls.files import read_json, write_csv, write_json, write_text
from sppcls.measure.answers import UNREAD
from sppcls.report.page import percent, points, scale_cells, scale_columns
from sppcls.report.plots import Curve, accuracy_curve, scale_plot
from sppcls.terminal import say, show, table

if TYPE_CHECKING:
    from sppcls.measure.evaluate import Evaluated


def run(model: str, out: str | None, classes: bool = False, answers: str | None = None, **options: Any) -> int:
    """Measure with `Options`, write the files into ``out`` or next to the model, show the tables, and return 0."""
    from sppcls.measure.evaluate import Options, evaluate

    measured = evaluate(model, Options(**options))
    found, file = measured.found, Path(model)
    beside = file.parent.parent if file.parent.name == "checkpoints" else file.parent
    folder = Path(out) if out else file if file.is_dir() else beside
    with writing("--out", folder):
        folder.mkdir(parents=True, exist_ok=True)
        name = _name(folder, found, ["evaluation", _own_name(found)] if out else [_own_name(found)])
        write_json(folder / f"{name}.json", found)
        write_csv(folder / f"{name}.csv", found["scales"])
        write_csv(folder / f"{name}-classes.csv", found["per_class"])
        write_text(folder / f"{name}.svg", _plot(found))
    if answers:
        with writing("--answers", Path(answers)):
            write_csv(Path(answers), list(_answer_rows(measured)))
    say(f"model: {measured.model}")
    if measured.warning:
        say(f"warning: {measured.warning}")
    tables = evaluation_tables(found) + ([_class_table(found)] if classes else [])
    show(*tables, *_lines(found), f"written: {folder}/{name}.json, .csv, -classes.csv, .svg")
    return 0


_SAME = ("checkpoint", "split", "folder", "fit", "views", "recalibrated")


def _own_name(found: dict[str, Any]) -> str:
    """Return the base name of an evaluation's files: checkpoint, data, and whatever else differs from the run's.

    >>> of = {"checkpoint": "r/checkpoints/last.ckpt", "split": "val", "data": "a", "fit": "keep", "views": "full"}
    >>> _own_name(of | {"own_fit": True, "recalibrated": False})
    'evaluation'
    >>> best = {"checkpoint": "r/checkpoints/best.ckpt", "split": None, "data": "my/photos", "fit": "warp"}
    >>> _own_name(of | best | {"own_fit": False, "recalibrated": False})
    'evaluation-best-photos-warp'
    """
    stem, split = Path(found["checkpoint"]).stem, found["split"]
    where = Path(found["data"]).name.removesuffix(".csv")
    parts = [stem if stem != "last" else "", where if split is None else split.replace("val", "")]
    parts += ["" if found["own_fit"] else found["fit"], found["views"].replace("full", "")]
    parts += ["recalibrated"] if found["recalibrated"] else []
    return re.sub(r"[^\w.-]", "_", "-".join(["evaluation", *filter(None, parts)]))[:100]


def _name(folder: Path, found: dict[str, Any], wanted: Sequence[str]) -> str:
    """Return the name, with a number appended if it is taken by an evaluation of another checkpoint or data."""
    for name in chain(wanted, (f"{wanted[-1]}-{n}" for n in count(2))):
        there = folder / f"{name}.json"
        other = read_json(there)
        if not there.exists() or all(other.get(key) == found[key] for key in _SAME):
            return name
    raise AssertionError


def _answer_rows(measured: "Evaluated") -> Iterator[dict[str, object]]:
    """Yield a row an image and scale; an image that could not be read has no answer."""
    answers, classes = measured.answers, measured.classes
    for n, path in enumerate(measured.names):
        for at, scale in enumerate(answers.scales.tolist()):
            answer, confidence = answers.predicted[at, n], f"{answers.confidence[at, n]:.6f}"
            predicted = classes[answer] if answer != UNREAD else ""
            row = {"path": path, "class": classes[answers.targets[n]], "scale": scale}
            yield row | {"predicted": predicted, "probability": confidence}


def _class_table(found: dict[str, Any]) -> Table:
    rows = [
        [row["class"], str(row["images"]), *(percent(row[name]) for name in ("precision", "recall", "f1"))]
        for row in found["per_class"]
    ]
    return table(f"Classes at scale {found['class_scale']}", ["class", "images", "precision", "recall", "F1"], rows)


def evaluation_tables(found: dict[str, Any]) -> list[Table]:
    """Return the table of scales and, if requested, the table of object sizes."""
    gap = "generalization_gap" in found["scales"][0]
    columns = ["test scale", *scale_columns(found), "images/s", *(["train top-1", "gap"] if gap else [])]
    count = counted(found["scales"][0]["images"], "image")
    title = f"{_images(found)}, {_weights(found)}, fit {found['fit']}, {found['views']} view, {count} (* trained)"
    rows = []
    for row in found["scales"]:
        gaps = [percent(row["train_acc1"]), points(row["generalization_gap"])] if gap else []
        scale = f"{row['scale']}{' *' if row['trained'] else ''}"
        rows.append([scale, *scale_cells(row), f"{row['images_per_s']:.0f}", *gaps])
    if fused := found.get("fused"):
        rows.append(["+".join(map(str, fused["scale"])), *scale_cells(fused), *"-" * (3 if gap else 1)])
    tables = [table(title, columns, rows)]
    if objects := found.get("object_scale"):
        heads = ["object / shorter side", "images", *objects[0]["acc1"]]
        parts = [(f"{one['from']:.2f} to {one['to']:.2f}", str(one["images"]), one["acc1"].values()) for one in objects]
        rows = [[part, images, *map(percent, shares)] for part, images, shares in parts]
        tables.append(table("Top-1 by the object's true size and test scale", heads, rows))
    return tables


def _images(found: dict[str, Any]) -> str:
    return f"{found['split']} of {found['data']}" if found["split"] else str(found["data"])


def _weights(found: dict[str, Any]) -> str:
    return Path(found["checkpoint"]).name + (f" of epoch {found['epoch']}" if found["epoch"] else "")


def _lines(found: dict[str, Any]) -> list[str]:
    means = ", ".join(f"{name} {percent(found['class_means'][name])}" for name in ("precision", "recall", "f1"))
    by_f1 = sorted((row for row in found["per_class"] if row["images"]), key=lambda row: row["f1"] or 0.0)
    worst = ", ".join(f"{row['class']} {percent(row['f1'])}" for row in by_f1[:3])
    lines = [f"mean over classes at scale {found['class_scale']}: {means.replace('f1', 'F1')}; lowest F1: {worst}"]
    scales = [row["scale"] for row in found["scales"]]
    if len(scales) > 1:
        spread, agreement = found["scale_spread"] * 100, found["agreement"]
        least, one, other = min((agreement[i][j], scales[i], scales[j]) for i, j in combinations(range(len(scales)), 2))
        area, consistency = percent(found["scale_area"]), percent(found["scale_consistency"])
        lines.append(f"scale spread {spread:.1f} points, worst at {found['worst_scale']}, mean over log scale {area}")
        between = f"lowest agreement {percent(least)}, between scales {one} and {other}"
        lines.append(f"scale consistency {consistency}; {between}")
    return lines


def _plot(found: dict[str, Any]) -> str:
    rows = found["scales"]
    curves = {_images(found): accuracy_curve(rows)}
    if "train_acc1" in rows[0]:
        curves["training"] = Curve([(row["scale"], row["train_acc1"]) for row in rows], "--")
    return scale_plot(curves, [row["scale"] for row in rows if row["trained"]])


def options(verb: argparse.ArgumentParser) -> None:
    """Add the options of the verb."""
    add = verb.add_argument
    add("model", type=path_text, metavar="MODEL", help="a run folder, a checkpoint or any export")
    checkpoint_option(verb)
    trust_option(verb)
    add("--scales", type=scale_list, help="test scales, e.g. 64,96,128 (the run's)")
    data = "class folders or a table; with --split, the new place of the run's data set"
    add("--data", type=path_text, metavar="DIR", help=data)
    add("--split", choices=("val", "test", "train"), help="which part of the run's data set (val)")
    add("--fit", choices=FITS, help="how images are fitted to a scale (the run's)")
    add("--gap", action="store_true", help="also measure the generalization gap, on part of the training set")
    add("--views", choices=("full", "multi"), default="full", help="multi: crops and mirror images pooled from one map")
    add("--places", type=int, choices=range(2, 17), metavar="N", default=3, help="crops along each axis (3)")
    add("--fuse", type=scale_list, metavar="SCALES", help="average whole-image predictions over these scales")
    add("--recalibrate-bn", action="store_true", help="recompute batch-norm statistics at each test scale")
    add("--classes", action="store_true", help="show precision, recall and F1 of each class")
    add("--answers", type=path_text, metavar="FILE.csv", help="write each image's path, class, answer and probability")
    add("--object-scale", action="store_true", help="accuracy by the object's true size (data=shapes)")
    add("--batch-size", type=at_least(1), default=32)
    add("--num-workers", type=at_least(0), default=0)
    add("--device", default="auto", help="auto, cpu, cuda ...")
    add("--out", type=path_text, metavar="DIR", help="folder for evaluation.json, .csv and .svg (the run folder)")
