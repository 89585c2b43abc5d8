"""Classifies regions of one image in one pass per scale: boxes from a file or a grid, the scale of each, a drawing."""

import csv
import io
import json
from collections.abc import Sequence
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from sppcls.data.decode import decode_array, read_size
from sppcls.data.geometry import Size, fitted_size
from sppcls.deploy.predict import fitted, plan_of
from sppcls.deploy.runtime import Boxes, Floats, Runtime
from sppcls.errors import ConfigError, DataError
from sppcls.files import write_bytes

_LEGIBLE = 480  # pixels of the shorter side that labels need
_COLOURS = ("crimson", "seagreen", "royalblue", "darkorange", "purple", "teal", "sienna", "olive", "navy", "maroon")


def boxes_of_images(file: str) -> dict[str, list[list[str]]] | None:
    """Return the rows x1 y1 x2 y2 of each path in a .csv file with a column ``path``; None if it has none."""
    try:
        rows = list(csv.reader(io.StringIO(Path(file).read_text("utf-8-sig"))))
    except (OSError, ValueError, csv.Error):
        return None  # as `read_boxes` says
    if not rows or [cell.strip().lower() for cell in rows[0]] != ["path", "x1", "y1", "x2", "y2"]:
        return None
    found: dict[str, list[list[str]]] = {}
    for row in filter(None, rows[1:]):
        found.setdefault(row[0], []).append(row[1:])
    return found


def checked_boxes(rows: Sequence[object], file: str, size: Size) -> Boxes:
    """Return boxes [K, 4] of rows of four; raises what `read_boxes` does."""
    return np.array([_box(row, number, file, size) for number, row in enumerate(rows)], np.float64).reshape(-1, 4)


def read_boxes(file: str, size: Size) -> Boxes:
    """Return boxes [K, 4], x1 y1 x2 y2 in pixels, of a .json list or a .csv file with or without a header.

    Raises ``DataError`` naming a box that is not four numbers or reaches outside an image of ``size``, (H, W).
    """
    is_json = file.lower().endswith(".json")
    try:
        text = Path(file).read_text("utf-8-sig")
        rows: object = json.loads(text) if is_json else list(csv.reader(io.StringIO(text)))
    except (OSError, ValueError, RecursionError) as error:
        said = error.strerror if isinstance(error, OSError) else "not a .json list or .csv rows of x1,y1,x2,y2"
        raise DataError(f"--boxes {file}: {said}") from None
    if not isinstance(rows, list):
        raise DataError(f"--boxes {file}: it contains {type(rows).__name__}, not a list of boxes x1 y1 x2 y2")
    if not is_json:
        rows = [row for row in rows if row]
        rows = rows[1:] if rows and [cell.strip().lower() for cell in rows[0]] == ["x1", "y1", "x2", "y2"] else rows
    return checked_boxes(rows, file, size)


def _box(row: Any, number: int, file: str, size: Size) -> list[float]:
    values: Any = row.get("box") if isinstance(row, dict) else row
    try:
        x1, y1, x2, y2 = map(float, values)
    except (TypeError, ValueError, OverflowError):
        raise DataError(f"--boxes {file}: box {number} is {str(row)[:60]}, not four numbers x1 y1 x2 y2") from None
    if not (0 <= x1 < x2 <= size[1] and 0 <= y1 < y2 <= size[0]):
        height, width = size
        raise DataError(
            f"--boxes {file}: box {number} is {x1:g} {y1:g} {x2:g} {y2:g}; expected 0 <= x1 < x2 <= {width} and "
            f"0 <= y1 < y2 <= {height}, since the image is {height}x{width} (H x W)"
        )
    return [x1, y1, x2, y2]


def grid(size: Size, places: int) -> Boxes:
    """Return sliding squares of 1, 1/2 and 1/4 of the shorter side, spaced by 1/``places`` of the shorter side.

    >>> len(grid((64, 96), 8))
    127
    """
    height, width = size
    short, boxes = min(size), []
    for side in (short, short / 2, short / 4):
        tops, lefts = (np.linspace(0, whole - side, 1 + round((whole - side) * places / short)) for whole in size)
        boxes += [(x, y, min(x + side, width), min(y + side, height)) for y in tops for x in lefts]
    return np.array(boxes, np.float64)


def classify(model: Runtime, path: Path, boxes: Boxes, scales: Sequence[int]) -> Floats:
    """Return probabilities [K, classes] of boxes in an image file, in one pass per scale used.

    Each box is pooled at the scale where it has about as many pixels as a training image (paper, section 4.1).
    """
    if model.regions is None:
        raise ConfigError(
            "--boxes and --grid need a run, a checkpoint, a safetensors export or an ONNX file made with --regions"
        )
    native = read_size(path)
    chosen = _scale_of_each(boxes, native, scales, model.signature.scale)
    said = np.zeros((len(boxes), len(model.signature.classes)), np.float32)
    for scale in np.unique(chosen):
        size = plan_of(model.signature, [native], int(scale), 1)[0].size
        pixels = fitted(model, path, size, native).transpose(2, 0, 1)[None]
        mine = chosen == scale
        said[mine] = model.as_probabilities(
            model.regions(np.ascontiguousarray(pixels), _moved(boxes[mine], native, size, model.signature.multiple))
        )
    return said


def _scale_of_each(boxes: Boxes, native: Size, scales: Sequence[int], trained: int) -> npt.NDArray[np.int64]:
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    at: npt.NDArray[np.int64] = np.array(scales)
    pixels = areas[:, None] * (at / min(native)) ** 2
    chosen: npt.NDArray[np.int64] = at[np.abs(pixels - trained**2).argmin(1)]
    return chosen


def _moved(boxes: Boxes, native: Size, size: Size, multiple: int) -> Boxes:
    """Return boxes in the pixels of a batch; the image's right and bottom edges become the batch's, with padding."""
    height, width = fitted_size(*native, size, multiple)
    moved: Boxes = boxes * np.array([width / native[1], height / native[0]] * 2)
    for column, end, whole in ((2, native[1], size[1]), (3, native[0], size[0])):
        moved[:, column] = np.where(boxes[:, column] == end, whole, moved[:, column])
    return moved


def distinct(boxes: Boxes, probabilities: Floats, count: int, overlap: float = 0.3) -> list[int]:
    """Return the most confident boxes, in order; none overlaps a more confident one by more than ``overlap`` (IoU)."""
    kept: list[int] = []
    for place in np.argsort(-probabilities.max(1), kind="stable").tolist():
        if len(kept) < count and all(_overlap(boxes[place], boxes[other]) <= overlap for other in kept):
            kept.append(place)
    return kept


def _overlap(a: Boxes, b: Boxes) -> float:
    across, down = (max(0.0, min(a[i + 2], b[i + 2]) - max(a[i], b[i])) for i in (0, 1))
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (a, b)]
    return float(across * down / (sum(areas) - across * down))


def draw(path: Path, boxes: Boxes, labels: Sequence[str], out: Path) -> None:
    """Draw labelled boxes onto an image, the first on top; an extra label without a box goes to the top left.

    Raises ``ConfigError`` if ``out`` cannot be written.
    """
    kind = Image.registered_extensions().get(out.suffix.lower())
    if kind not in ("PNG", "JPEG", "WEBP") or (out.exists() and out.samefile(path)):
        raise ConfigError(f"--draw {out}: name a file other than the image that ends in .png, .jpg or .webp")
    image = Image.fromarray(decode_array(path))
    factor = -(-_LEGIBLE // min(image.size))
    image = image.resize((image.width * factor, image.height * factor))
    pen, line, size = ImageDraw.Draw(image), min(image.size) // 150, min(image.size) // 28
    corners = [(box[:2] * factor + line).tolist() for box in boxes] + [[0, 0]] * (len(labels) - len(boxes))
    wanted = [(*corner, *_extent(pen, label, size)) for corner, label in zip(corners, labels, strict=True)]
    places = apart(wanted, image.size)
    for number in reversed(range(len(boxes))):
        pen.rectangle((boxes[number] * factor).tolist(), outline=_COLOURS[number % len(_COLOURS)], width=line)
    for number in reversed(range(len(labels))):
        left, top = places[number]
        right, bottom = left + wanted[number][2], top + wanted[number][3]
        pen.rectangle((left, top, right - 1, bottom - 1), fill=_COLOURS[number % len(_COLOURS)])
        pen.text((left, top), labels[number], fill="white", font_size=size)
    memory = io.BytesIO()
    try:
        image.save(memory, format=kind)
        write_bytes(out, memory.getvalue())
    except OSError as error:
        raise ConfigError(f"--draw {out}: {error.strerror or error}; name a writable file") from None


def _extent(pen: ImageDraw.ImageDraw, label: str, size: int) -> tuple[int, int]:
    _, _, wide, high = pen.textbbox((0, 0), label, font_size=size)
    return ceil(wide) + 2, ceil(high) + 2


def apart(wanted: Sequence[tuple[float, float, int, int]], size: tuple[int, int]) -> list[tuple[int, int]]:
    """Return where labels (x, y, width, height) go: inside an image of ``size``, (W, H), each below those before it
    that it would cover, or if there is no space above them; only a full column puts two in one place.
    """
    placed: list[tuple[int, int, int, int]] = []
    for x, y, wide, high in wanted:
        left, most = max(0, min(int(x), size[0] - wide)), max(0, size[1] - high)
        start = max(0, min(int(y), most))
        beside = [other for other in placed if other[0] < left + wide and left < other[0] + other[2]]
        tops = [start, *(t + h for _, t, _, h in beside), *(t - high for _, t, _, _ in beside)]
        free = [
            top for top in tops if 0 <= top <= most and all(top + high <= t or t + h <= top for _, t, _, h in beside)
        ]
        placed.append((left, min(free, key=lambda top: abs(top - start), default=start), wide, high))
    return [(left, top) for left, top, _, _ in placed]
