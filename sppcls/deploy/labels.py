"""What ``sppcls predict`` prints: a line an image, as text, JSON or CSV."""

import csv
import sys
from argparse import Namespace
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from sppcls.atomic import csv_cell, to_json
from sppcls.data.decode import read_size
from sppcls.deploy.predict import answer, checked_scales, expand, predict, top
from sppcls.deploy.regions import classify, distinct, draw, grid, read_boxes
from sppcls.deploy.runtime import Floats, Runtime, open_model
from sppcls.errors import ConfigError, DataError
from sppcls.terminal import say, track

_SHOWN = 10  # regions of a grid that are printed and drawn


def run_predict(**options: Any) -> int:
    """Print what the model says of each image; return 0, or 3 where some could not be read."""
    given = Namespace(**options)
    paths = expand(given.images)
    if not paths:
        raise DataError(f"no image in {' '.join(given.images)}; name image files or folders of them")
    if (given.boxes or given.grid) and len(paths) > 1:
        raise ConfigError(f"--boxes and --grid take one image, got {len(paths)}")
    if (given.draw or given.scales) and not (given.boxes or given.grid):
        raise ConfigError("--draw and --scales are of regions; add --boxes FILE or --grid N")
    model = open_model(given.model, given.device, given.checkpoint)
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
        if not told:  # not sooner: an error is the only line on standard error
            told = True
            say(f"model: {model.source}")
        write(row)
    if broken:
        say(f"{broken} of {len(paths)} images could not be read")
    return 3 if broken else 0


def _regions(given: Namespace, model: Runtime, path: Path) -> Iterator[dict[str, Any]]:
    size = read_size(path)
    boxes = read_boxes(given.boxes, size) if given.boxes else grid(size, given.grid)
    said = classify(model, path, boxes, checked_scales(model.signature, given.scales))
    picked = list(range(len(boxes))) if given.boxes else distinct(boxes, said, _SHOWN)
    found = [top(row, model.signature.classes, given.top) for row in said]
    if given.draw:
        labels = [f"{found[n][0]['label']} {found[n][0]['probability']:.0%}" for n in picked]
        draw(path, boxes[picked], labels, Path(given.draw))
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
