"""What an evaluation says of each class: precision, recall and F1, and which class is taken for which."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from sppcls.measure.answers import UNREAD, Answers


def confusion_counts(answers: Answers, scale: int, classes: int) -> npt.NDArray[np.int64]:
    """Return [K, K] how many images of each true class (row) are taken for each class (column) at a scale."""
    predicted = answers.predicted[answers.at(scale)]
    seen = predicted != UNREAD
    counts = np.zeros((classes, classes), np.int64)
    np.add.at(counts, (answers.targets[seen], predicted[seen]), 1)
    return counts


def by_class(answers: Answers, names: Sequence[str], scale: int) -> dict[str, Any]:
    """Return the rows ``per_class``, their means over the classes that have images, and ``confusion``, all at a scale.

    A share of nothing is None: the precision of a class that was never answered, the recall of one without images.
    """
    counts = confusion_counts(answers, scale, len(names))
    right, images, answered = counts.diagonal(), counts.sum(1), counts.sum(0)
    rows = [
        {
            "class": names[k],
            "images": int(images[k]),
            "precision": _share(right[k], answered[k]),
            "recall": _share(right[k], images[k]),
            "f1": _share(2 * right[k], images[k] + answered[k]),
        }
        for k in range(len(names))
    ]
    present = [row for row in rows if row["images"]]
    means = {name: float(np.mean([row[name] or 0.0 for row in present])) for name in ("precision", "recall", "f1")}
    matrix = {"scale": scale, "classes": list(names), "counts": counts.tolist()}
    return {"class_scale": scale, "per_class": rows, "class_means": means, "confusion": matrix}


def _share(part: int, whole: int) -> float | None:
    return round(float(part / whole), 6) if whole else None
