"""``sppcls predict``: one line per image, as text, JSON or CSV."""

import argparse
import csv
import sys
from argparse import Namespace
from collections.abc import Iterable, Iterator, Sequence
from os.path import commonpath, normpath
from pathlib import Path
from typing import Any

import numpy as np

from sppcls.commands.arguments import at_least, checkpoint_option, path_text, scale_list, trust_option, writing
from sppcls.data.decode import read_size
from sppcls.data.geometry import Size
from sppcls.deploy.predict import answer, checked_scales, expand, predict, top
from sppcls.deploy.regions import boxes_of_images, checked_boxes, classify, distinct, draw, grid, read_boxes
from sppcls.deploy.runtime import Boxes, Floats, Runtime, open_model
from sppcls.errors import ConfigError, DataError
from sppcls.files import csv_cell, to_json
from sppcls.signature import far_scales
from sppcls.terminal import say, track

_SHOWN = 10  # regions of a grid that are printed and drawn


def run(**options: Any) -> int:
    """Print the prediction for each image; return 0, or 3 if some could not be read."""
    given = Namespace(**options)
    paths = expand(given.images)
    if not paths:
        raise DataError(f"no images in {' '.join(given.images)}; name image files or folders of images")
    given.above = commonpath([Path(normpath(path.absolute())).parent for path in paths]) if len(paths) > 1 else None
    given.rows = boxes_of_images(given.boxes) if given.boxes else None
    _check_regions(given, paths)
    model = open_model(given.model, given.device, given.checkpoint, given.trust)
    scales = checked_scales(model.signature, given.fuse or (given.scale and (given.scale,)))
    answers: Iterable[tuple[Path, Floats | DataError]] = predict(model, paths, scales, given.batch_size)
    if not sys.stdout.isatty():
        answers = track(answers, "predicting", len(paths))
    broken, told = 0, False
    write = _writer(given)
    for path, said in answers:
        if isinstance(said, DataError):
            broken += 1
            say(f"error: {said}")
            continue
        row = answer(path, said, model.signature.classes, given.top)
        if given.boxes or given.grid:
            row["regions"] = list(_regions(given, model, path))
        elif given.draw:
            draw(path, np.empty((0, 4)), [_line({"top": row["top"][:1]})], _drawing(given, path))
        if not told:  # not earlier: an error must be the only line on standard error
            told = True
            say(f"model: {model.source}")
            if warning := far_scales(scales, model.signature.scales):
                say(f"warning: {warning}")
        write(row)
    if broken and len(paths) > 1:
        say(f"{broken} of {len(paths)} images could not be read")
    return 3 if broken else 0


def _check_regions(given: Namespace, paths: Sequence[Path]) -> None:
    if given.scales and not (given.boxes or given.grid):
        raise ConfigError("--scales applies to regions only; add --boxes FILE or --grid N")
    if given.boxes and given.rows is None and len(paths) > 1:
        raise ConfigError(f"--boxes {given.boxes} has no path column for {len(paths)} images; add path,x1,y1,x2,y2")
    for name in sorted((given.rows or {}).keys() - set(map(str, paths))):
        raise DataError(f"--boxes {given.boxes}: {name!r} is not one of the images; write paths as on the command line")
    if given.draw and len(paths) > 1 and (Path(given.draw).suffix or Path(given.draw).is_file()):
        raise ConfigError(f"--draw {given.draw}: {len(paths)} images need an output folder, not a file")
    if given.draw and len(paths) > 1:
        with writing("--draw", given.draw):
            for path in paths:
                _drawing(given, path).parent.mkdir(parents=True, exist_ok=True)


def _drawing(given: Namespace, path: Path) -> Path:
    """Return the file to draw into: the one named or, for several images, one below the named folder."""
    if given.above is None:
        return Path(given.draw)
    below = Path(normpath(path.absolute())).relative_to(given.above)  # without .., which would lead out of the folder
    return Path(given.draw) / below.with_name(f"{path.name}.png")


def _boxes(given: Namespace, path: Path, size: Size) -> Boxes:
    if given.grid:
        return grid(size, given.grid)
    if given.rows is None:
        return read_boxes(given.boxes, size)
    return checked_boxes(given.rows.get(str(path), []), f"{given.boxes}, {path}", size)


def _regions(given: Namespace, model: Runtime, path: Path) -> Iterator[dict[str, Any]]:
    size = read_size(path)
    boxes = _boxes(given, path, size)
    said = classify(model, path, boxes, checked_scales(model.signature, given.scales))
    picked = list(range(len(boxes))) if given.boxes else distinct(boxes, said, _SHOWN)
    found = [top(row, model.signature.classes, given.top) for row in said]
    if given.draw:
        labels = [f"{found[n][0]['label']} {found[n][0]['probability']:.0%}" for n in picked]
        draw(path, boxes[picked], labels, _drawing(given, path))
    for number in range(len(boxes)) if given.json else picked:
        box = [round(value, 2) for value in boxes[number].tolist()]
        yield {"box": box, "label": found[number][0]["label"], "top": found[number]}


def _writer(given: Namespace) -> Any:
    if given.json:
        return lambda row: say(to_json(row), sys.stdout)
    if not given.csv:
        return _print
    table = csv.writer(sys.stdout, lineterminator="\n")
    heads = [f"{name}{n or ''}" for n in ("", *range(2, given.top + 1)) for name in ("label", "probability")]
    table.writerow(["path", *(["x1", "y1", "x2", "y2"] if given.boxes or given.grid else []), *heads])

    def write(row: dict[str, Any]) -> None:
        for one in row.get("regions", [row]):
            cells = [cell for answer in one["top"] for cell in (answer["label"], f"{answer['probability']:.6f}")]
            table.writerow(map(csv_cell, (row["path"], *one.get("box", []), *cells)))

    return write


def _print(row: dict[str, Any]) -> None:
    say(f"{row['path']}: {_line(row)}", sys.stdout)
    for region in row.get("regions", []):
        say(f"    {' '.join(f'{value:g}' for value in region['box'])}: {_line(region)}", sys.stdout)


def _line(row: dict[str, Any]) -> str:
    return ", ".join(f"{answer['label']} {answer['probability']:.1%}" for answer in row["top"])


def options(verb: argparse.ArgumentParser) -> None:
    """Add the options of the verb."""
    add = verb.add_argument
    add("model", type=path_text, metavar="MODEL", help="a run, a checkpoint or any export")
    checkpoint_option(verb)
    trust_option(verb)
    add("images", type=path_text, metavar="IMAGE", nargs="+", help="files, folders, globs, or - for a list on stdin")
    scale = verb.add_mutually_exclusive_group()
    scale.add_argument("--scale", type=at_least(8, 8192), help="shorter side in pixels (the largest trained)")
    scale.add_argument("--fuse", type=scale_list, metavar="SCALES", help="average the probabilities of these scales")
    add("--top", type=at_least(1), default=5, metavar="N", help="how many classes to list (5)")
    kind = verb.add_mutually_exclusive_group()
    kind.add_argument("--json", action="store_true", help="print one JSON object per line")
    kind.add_argument("--csv", action="store_true", help="print CSV with a header")
    boxes = verb.add_mutually_exclusive_group()
    boxes.add_argument(
        "--boxes",
        type=path_text,
        metavar="FILE",
        help="regions x1 y1 x2 y2 as .json or .csv; for several images path,x1,y1,x2,y2",
    )
    boxes.add_argument("--grid", type=at_least(1, 64), metavar="N", help="grid of squares, N along the shorter side")
    add("--scales", type=scale_list, help="scales to pool regions from, e.g. 480,576,688,864")
    add(
        "--draw",
        type=path_text,
        metavar="FILE",
        help="draw labels and regions to a .png or .jpg, or for several images into a folder",
    )
    add("--batch-size", type=at_least(1), default=32)
    add("--device", default="auto", help="auto, cpu, cuda ...")
