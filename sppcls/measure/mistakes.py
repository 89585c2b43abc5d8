"""The most confident wrong answers, with a thumbnail each, as plain values for a report."""

import base64
import io
from collections.abc import Sequence
from typing import Any

import numpy as np

from sppcls.data.source import Source
from sppcls.errors import DataError
from sppcls.measure.answers import UNREAD, Answers


def worst_mistakes(
    source: Source, answers: Answers, classes: Sequence[str], scale: int, count: int = 12, side: int = 128
) -> list[dict[str, Any]]:
    """Return the ``count`` most confident wrong answers at ``scale``: image, classes, confidence, JPEG thumbnail."""
    row = answers.at(scale)
    wrong = np.flatnonzero(~answers.right[row] & (answers.predicted[row] != UNREAD))
    worst = wrong[np.argsort(-answers.confidence[row, wrong], kind="stable")][:count]
    return [
        {
            "image": source.names[index].encode(errors="surrogateescape").decode(errors="replace"),
            "class": classes[answers.targets[index]],
            "predicted": classes[answers.predicted[row, index]],
            "confidence": round(float(answers.confidence[row, index]), 4),
            "size": source.sizes[index].tolist(),
            "thumbnail": _thumbnail(source, int(index), side),
        }
        for index in worst.tolist()
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
