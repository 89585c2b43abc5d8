"""The most confident answers, wrong and right, with a thumbnail each, as plain values for a report."""

import base64
import io
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from sppcls.data.source import Source
from sppcls.errors import DataError
from sppcls.measure.answers import UNREAD, Answers


def worst_mistakes(
    source: Source, answers: Answers, classes: Sequence[str], scale: int, count: int = 12, side: int = 128
) -> list[dict[str, Any]]:
    """Return the ``count`` most confident wrong answers at ``scale``: image, classes, confidence, JPEG thumbnail."""
    wrong = ~answers.right[answers.at(scale)]
    return _described(source, answers, classes, scale, _surest(answers, scale, wrong)[:count], side)


def surest_right(
    source: Source, answers: Answers, classes: Sequence[str], scale: int, count: int = 12, side: int = 128
) -> list[dict[str, Any]]:
    """Return the most confident right answers at ``scale``, one a class and ``count`` at most, as `worst_mistakes`."""
    surest = _surest(answers, scale, answers.right[answers.at(scale)])
    _, first = np.unique(answers.targets[surest], return_index=True)
    return _described(source, answers, classes, scale, surest[np.sort(first)[:count]], side)


def _surest(answers: Answers, scale: int, wanted: npt.NDArray[np.bool_]) -> npt.NDArray[np.int64]:
    row = answers.at(scale)
    found = np.flatnonzero(wanted & (answers.predicted[row] != UNREAD))
    return found[np.argsort(-answers.confidence[row, found], kind="stable")]


def _described(
    source: Source, answers: Answers, classes: Sequence[str], scale: int, images: npt.NDArray[np.int64], side: int
) -> list[dict[str, Any]]:
    row = answers.at(scale)
    return [
        {
            "image": source.names[index].encode(errors="surrogateescape").decode(errors="replace"),
            "class": classes[answers.targets[index]],
            "predicted": classes[answers.predicted[row, index]],
            "confidence": round(float(answers.confidence[row, index]), 4),
            "size": source.sizes[index].tolist(),
            "thumbnail": _thumbnail(source, int(index), side),
        }
        for index in images.tolist()
    ]


def _thumbnail(source: Source, index: int, side: int) -> str | None:
    from PIL import Image

    try:
        image = Image.fromarray(source.read(index, side).permute(1, 2, 0).numpy())
    except DataError:  # gone since it was measured
        return None
    image.thumbnail((side, side))
    file = io.BytesIO()
    image.save(file, "JPEG", quality=80)
    return base64.b64encode(file.getvalue()).decode()
