"""``sppcls evaluate``: accuracy, calibration and cost at each scale."""

import re
from argparse import ArgumentParser, Namespace
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain, combinations, count
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table

from sppcls.commands.arguments import (
    at_least,
    checkpoint_option,
    filled,
    path_text,
    scale_list,
    trust_option,
    writing,
)
from sppcls.data.geometry import FITS, to_multiple
from sppcls.errors import counted
from sppcls.files import read_json, write_csv, write_json, write_text
from sppcls.measure.answers import UNREAD
from sppcls.report.page import percent, points, scale_cells, scale_columns
from sppcls.report.plots import Curve, accuracy_curve, scale_plot
from sppcls.terminal import say, show, table

if TYPE_CHECKING:
    from sppcls.measure.evaluate import Evaluated


def run(given: Namespace) -> int:
    """Measure, write the files into ``--out`` or next to the model, and show the tables."""
    from sppcls.measure.evaluate import Options, evaluate

    measured = evaluate(given.model, filled(Options, given))
    found, file = measured.found, Path(given.model)
    beside = file.parent.parent if file.parent.name == "checkpoints" else file.parent
    folder = Path(given.out) if given.out else file if file.is_dir() else beside
    with writing("--out", folder):
        folder.mkdir(parents=True, exist_ok=True)
        own = _own_name(found)
        name = _name(folder, found, ["evaluation", own] if given.out else [own])
        write_json(folder / f"{name}.json", found)
        write_csv(folder / f"{name}.csv", found["scales"])
        write_csv(folder / f"{name}-classes.csv", found["per_class"])
        write_text(folder / f"{name}.svg", _plot(measured))
    if given.answers:
        with writing("--answers", given.answers):
            write_csv(Path(given.answers), list(_answer_rows(measured)))
    say(f"model: {measured.model}")
    if measured.warning:
        say(f"warning: {measured.warning}")
    tables = [_scale_table(measured)]
    tables += [_object_table(measured)] if given.object_scale else []
    tables += [_class_table(measured)] if given.classes else []
    show(*tables, *_lines(measured), f"written: {folder}/{name}.json, .csv, -classes.csv, .svg")
    return 0


_SAME = ("checkpoint", "split", "folder", "fit", "views", "recalibrated")


def _own_name(found: Mapping[str, Any]) -> str:
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


def _name(folder: Path, found: Mapping[str, object], wanted: Sequence[str]) -> str:
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


def _scale_table(measured: "Evaluated") -> Table:
    """Return the table of the test scales, and of all of them fused if that was measured."""
    found, first = measured.found, measured.found["scales"][0]
    gap = "generalization_gap" in first
    columns = ["test scale", *scale_columns(found), "images/s", *(["train top-1", "gap"] if gap else [])]
    weights = Path(found["checkpoint"]).name + (f" of epoch {found['epoch']}" if found["epoch"] else "")
    images = counted(first["images"], "image")
    title = f"{_images(measured)}, {weights}, fit {found['fit']}, {found['views']} view, {images} (* trained)"
    rows = []
    for row in found["scales"]:
        gaps = [percent(row["train_acc1"]), points(row["generalization_gap"])] if gap else []
        scale = f"{row['scale']}{' *' if row['trained'] else ''}"
        rows.append([scale, *scale_cells(row), f"{row['images_per_s']:.0f}", *gaps])
    if fused := found.get("fused"):
        rows.append(["+".join(map(str, fused["scale"])), *scale_cells(fused), *"-" * (3 if gap else 1)])
    return table(title, columns, rows)


def _object_table(measured: "Evaluated") -> Table:
    objects = measured.found["object_scale"]
    rows = [
        [f"{one['from']:.2f} to {one['to']:.2f}", str(one["images"]), *map(percent, one["acc1"].values())]
        for one in objects
    ]
    columns = ["object / shorter side", "images", *objects[0]["acc1"]]
    return table("Top-1 by the object's true size and test scale", columns, rows)


def _class_table(measured: "Evaluated") -> Table:
    rows = [
        [row["class"], str(row["images"]), percent(row["precision"]), percent(row["recall"]), percent(row["f1"])]
        for row in measured.found["per_class"]
    ]
    title = f"Classes at scale {measured.found['class_scale']}"
    return table(title, ["class", "images", "precision", "recall", "F1"], rows)


def _images(measured: "Evaluated") -> str:
    split, data = measured.found["split"], str(measured.found["data"])
    return f"{split} of {data}" if split else data


def _lines(measured: "Evaluated") -> list[str]:
    found = measured.found
    means = {name.replace("f1", "F1"): percent(mean) for name, mean in found["class_means"].items()}
    by_f1 = sorted((row for row in found["per_class"] if row["images"]), key=lambda row: row["f1"] or 0.0)
    worst = ", ".join(f"{row['class']} {percent(row['f1'])}" for row in by_f1[:3])
    shown = ", ".join(f"{name} {mean}" for name, mean in means.items())
    lines = [f"mean over classes at scale {found['class_scale']}: {shown}; lowest F1: {worst}"]
    scales = [row["scale"] for row in found["scales"]]
    if len(scales) > 1:
        spread, agreement = found["scale_spread"] * 100, found["agreement"]
        least, one, other = min((agreement[i][j], scales[i], scales[j]) for i, j in combinations(range(len(scales)), 2))
        area, consistency = percent(found["scale_area"]), percent(found["scale_consistency"])
        lines.append(f"scale spread {spread:.1f} points, worst at {found['worst_scale']}, mean over log scale {area}")
        between = f"lowest agreement {percent(least)}, between scales {one} and {other}"
        lines.append(f"scale consistency {consistency}; {between}")
    return [*lines, *_aligned_line(scales, found["multiple"])]


def _aligned_line(scales: list[int], multiple: int) -> list[str]:
    """Return a line that says at which sizes scales off the multiple were measured, if there are any.

    >>> _aligned_line([60, 63, 64], 8), _aligned_line([64], 8)
    (['shorter sides are multiples of 8: scale 60 was measured at 64, 63 at 64'], [])
    """
    moved = [f"{scale} at {to_multiple(scale, multiple)}" for scale in scales if scale % multiple]
    rule = f"shorter sides are multiples of {multiple}: scale "
    return [rule + ", ".join(moved).replace(" at", " was measured at", 1)] if moved else []


def _plot(measured: "Evaluated") -> str:
    rows = measured.found["scales"]
    curves = {_images(measured): accuracy_curve(rows)}
    if "train_acc1" in rows[0]:
        curves["training"] = Curve([(row["scale"], row["train_acc1"]) for row in rows], "--")
    return scale_plot(curves, [row["scale"] for row in rows if row["trained"]])


def options(verb: ArgumentParser) -> None:
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
