"""``sppcls predict``: one line per image, as text, JSON or CSV."""

import csv
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Iterable, Iterator, Sequence
from os.path import commonpath, normpath
from pathlib import Path
from typing import Any

import numpy as np

from sppcls.commands.arguments import at_least, checkpoint_option, path_text, scale_list, trust_option, writing
from sppcls.data.decode import read_size
from sppcls.deploy.predict import answer, checked_scales, expand, predict, top
from sppcls.deploy.regions import boxes_of_images, checked_boxes, classify, distinct, draw, grid, read_boxes
from sppcls.deploy.runtime import Boxes, Floats, Runtime, open_model
from sppcls.errors import ConfigError, DataError
from sppcls.files import csv_cell, to_json
from sppcls.signature import far_scales
from sppcls.terminal import say, track

_SHOWN = 10  # regions of a grid that are printed and drawn
Row = dict[str, Any]  # of an image or of a region in it, as --json prints it


def run(given: Namespace) -> int:
    """Print the prediction for each image; 3 if some could not be read."""
    paths = expand(given.images)
    if not paths:
        raise DataError(f"no images in {' '.join(given.images)}; name image files or folders of images")
    boxes_of = _boxes_of(given, paths)
    drawings = _drawings(given.draw, paths) if given.draw else {}
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
        row, drawing = answer(path, said, model.signature.classes, given.top), drawings.get(path)
        if boxes_of:
            regions = _regions(given, model, path, boxes_of(path), drawing)
            row = {**row, "regions": list(regions)}
        elif drawing:
            draw(path, np.empty((0, 4)), [_line({"top": row["top"][:1]})], drawing)
        if not told:  # not earlier: an error must be the only line on standard error
            told = True
            say(f"model: {model.source}")
            if warning := far_scales(scales, model.signature.scales):
                say(f"warning: {warning}")
        write(row)
    if broken and len(paths) > 1:
        say(f"{broken} of {len(paths)} images could not be read")
    return DataError.exit_status if broken else 0


def _boxes_of(given: Namespace, paths: Sequence[Path]) -> Callable[[Path], Boxes] | None:
    """Return what gives the regions of an image, from a file or a grid; None if no regions are asked for."""
    if given.grid:
        return lambda path: grid(read_size(path), given.grid)
    if not given.boxes:
        if given.scales:
            raise ConfigError("--scales applies to regions only; add --boxes FILE or --grid N")
        return None
    rows = boxes_of_images(given.boxes)
    if rows is None:
        if len(paths) > 1:
            raise ConfigError(f"--boxes {given.boxes} has no path column for {len(paths)} images; add path,x1,y1,x2,y2")
        return lambda path: read_boxes(given.boxes, read_size(path))
    for name in sorted(rows.keys() - set(map(str, paths))):
        raise DataError(f"--boxes {given.boxes}: {name!r} is not one of the images; write paths as on the command line")
    return lambda path: checked_boxes(rows.get(str(path), []), f"{given.boxes}, {path}", read_size(path))


def _drawings(out: str, paths: Sequence[Path]) -> dict[Path, Path]:
    """Return the file to draw each image into: ``out`` or, for several images, one below that folder."""
    if len(paths) == 1:
        return {paths[0]: Path(out)}
    if Path(out).suffix or Path(out).is_file():
        raise ConfigError(f"--draw {out}: {len(paths)} images need an output folder, not a file")
    whole = [Path(normpath(path.absolute())) for path in paths]  # without .., which would lead out of the folder
    above = commonpath([file.parent for file in whole])
    made = [Path(out) / file.relative_to(above).with_name(f"{file.name}.png") for file in whole]
    with writing("--draw", out):
        for file in made:
            file.parent.mkdir(parents=True, exist_ok=True)
    return dict(zip(paths, made, strict=True))


def _regions(given: Namespace, model: Runtime, path: Path, boxes: Boxes, drawing: Path | None) -> Iterator[Row]:
    said = classify(model, path, boxes, checked_scales(model.signature, given.scales))
    picked = list(range(len(boxes))) if given.boxes else distinct(boxes, said, _SHOWN)
    found = [top(row, model.signature.classes, given.top) for row in said]
    if drawing:
        labels = [f"{found[n][0]['label']} {found[n][0]['probability']:.0%}" for n in picked]
        draw(path, boxes[picked], labels, drawing)
    for number in range(len(boxes)) if given.json else picked:
        box = [round(value, 2) for value in boxes[number].tolist()]
        yield {"box": box, "label": found[number][0]["label"], "top": found[number]}


def _writer(given: Namespace) -> Callable[[Row], None]:
    if given.json:
        return lambda row: say(to_json(row), sys.stdout)
    if not given.csv:
        return _print
    table = csv.writer(sys.stdout, lineterminator="\n")
    heads = [f"{name}{n or ''}" for n in ("", *range(2, given.top + 1)) for name in ("label", "probability")]
    table.writerow(["path", *(["x1", "y1", "x2", "y2"] if given.boxes or given.grid else []), *heads])

    def write(row: Row) -> None:
        for one in row.get("regions", [row]):
            cells = [cell for answer in one["top"] for cell in (answer["label"], f"{answer['probability']:.6f}")]
            table.writerow(map(csv_cell, (row["path"], *one.get("box", []), *cells)))

    return write


def _print(row: Row) -> None:
    say(f"{row['path']}: {_line(row)}", sys.stdout)
    for region in row.get("regions", []):
        say(f"    {' '.join(f'{value:g}' for value in region['box'])}: {_line(region)}", sys.stdout)


def _line(row: Row) -> str:
    return ", ".join(f"{answer['label']} {answer['probability']:.1%}" for answer in row["top"])


def options(verb: ArgumentParser) -> None:
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
