"""``sppcls probe``: a linear SVM on features of a frozen network, the paper's protocol."""

from argparse import ArgumentParser, ArgumentTypeError, Namespace
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.table import Table

from sppcls.commands.arguments import at_least, filled, path_text, scale_list, writing
from sppcls.data.decode import shown
from sppcls.data.geometry import FITS
from sppcls.files import write_json
from sppcls.report.page import points
from sppcls.terminal import show, table


def run(given: Namespace) -> int:
    """Measure, show the table, and write probe.json into ``--out``."""
    from sppcls.build import pick_device
    from sppcls.measure.probe import Options, probe

    folder = Path(given.out)
    with writing("--out", folder):
        folder.mkdir(parents=True, exist_ok=True)  # before the work, not after it
    found = probe(replace(filled(Options, given), device=pick_device(given.device)), folder)
    write_json(folder / "probe.json", found)
    left_out = [f"skipped, unreadable: {shown(name)}" for name in found["left_out"]]
    seconds = f"features {found['seconds_features']} s, SVM {found['seconds_svm']} s"
    show(_table(found), *left_out, f"{found['images']} images; {seconds}", f"written: {folder}/probe.json")
    return 0


def _table(found: Mapping[str, Any]) -> Table:
    """Return one row per variant: accuracy over images and over classes, and the difference from the first row."""
    options, sizes = found["options"], f"{found['train_images']} + {found['test_images']} images"
    title = f"{options['backbone']}, {found['classes']} classes, {options['splits']} splits of {sizes}"
    columns = ("fit", "scales", "levels", "accuracy, %", "mean over classes, %", "minus the first, points")
    rows = []
    for row in found["variants"]:
        levels = "gap" if row["levels"] == (0,) else ",".join(map(str, row["levels"]))
        scores = [_spread(row[name], row[f"{name}_std"]) for name in ("accuracy", "mean_class_accuracy")]
        half = row["difference_half_width"]
        gain = points(row["difference"]) + (f" ± {half * 100:.1f}" if half is not None else "")
        last = "" if row is found["variants"][0] else gain
        rows.append([row["fit"], ",".join(map(str, row["scales"])), levels, *scores, last])
    return table(title, columns, rows)


def _spread(mean: float, deviation: float | None) -> str:
    return f"{mean * 100:.2f}" + (f" ± {deviation * 100:.2f}" if deviation is not None else "")


def _several(one: Callable[[str], object]) -> Callable[[str], object]:
    return lambda text: tuple(one(part) for part in text.split("/"))


def _levels(text: str) -> tuple[int, ...]:
    if text == "gap":
        return (0,)
    if not all(part.isdecimal() and 1 <= int(part) <= 32 for part in text.split(",")):
        raise ArgumentTypeError(f"got {text!r}, allowed: gap, or grid sizes from 1 to 32 such as 6,3,2,1")
    return tuple(map(int, text.split(",")))


def _fit(text: str) -> str:
    if text not in FITS:
        raise ArgumentTypeError(f"got {text!r}, allowed: {', '.join(FITS)}")
    return text


def _cost(text: str) -> float:
    try:
        cost = float(text)
    except ValueError:
        cost = 0.0
    if not 1e-6 <= cost <= 1e3:
        raise ArgumentTypeError(f"got {text!r}, allowed: a number from 1e-6 to 1000")
    return cost


def options(verb: ArgumentParser) -> None:
    """Add the options of the verb."""
    add = verb.add_argument
    verb.epilog = "Separate several --levels, --scales or --fit with /: each combination gets a row, on equal splits."
    add("--data", type=path_text, required=True, metavar="DIR", help="a folder of class folders")
    add("--backbone", default="efficientnet_lite0", help="any model.backbone (efficientnet_lite0)")
    add("--weights", type=path_text, default="pretrained", help="pretrained, a file, or none (pretrained)")
    add("--levels", type=_several(_levels), default="3,2,1", help="pyramids or gap, e.g. gap/6,3,2,1")
    add("--scales", type=_several(scale_list), default="224", help="shorter sides, e.g. 224/160,224,288")
    add("--fit", type=_several(_fit), default="keep", help="how images are fitted to a scale, e.g. keep/warp")
    add("--train-per-class", type=at_least(1), default=30, metavar="N", help="training images per class (30)")
    add("--test-per-class", type=at_least(1), default=50, metavar="N", help="test images per class, at most (50)")
    add("--splits", type=at_least(1), default=10, metavar="N", help="random splits (10)")
    add("--seed", type=at_least(0), default=0, help="seed of the first split, later ones count up (0)")
    add("--C", type=_cost, default=1.0, dest="c", metavar="C", help="C of the SVM (1)")
    add("--batch-size", type=at_least(1), default=8)
    add("--device", default="auto", help="auto, cpu, cuda ...")
    add("--out", type=path_text, default="runs/probe", metavar="DIR", help="folder for probe.json (runs/probe)")
