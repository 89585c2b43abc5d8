"""Predictions of a network, image by image: storage, figures by class, and mistakes."""

import base64
import hashlib
import io
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from sppcls.data.source import Source
from sppcls.errors import DataError, SppclsError
from sppcls.files import read_arrays, write_arrays

if TYPE_CHECKING:
    from torch import Tensor  # a report reads answers without torch

UNREAD = -1
FILE = "answers.npz"
BY_SCALE = ("scales", "predicted", "confidence", "loss", "in_top5")


@dataclass(frozen=True)
class Answers:
    """Per-image answers at S test scales to N images.

    Attributes:
        scales: [S] the test scales.
        targets: [N] the true classes.
        predicted: [S, N] the predicted classes; -1 if an image could not be read.
        confidence: [S, N] the probability of the predicted class.
        loss: [S, N] minus the log probability of the true class.
        in_top5: [S, N] whether the true class is among the five most probable.
        images: Digest of the images' names: answers are compared image by image only if it is equal.
    """

    scales: npt.NDArray[np.int64]
    targets: npt.NDArray[np.int64]
    predicted: npt.NDArray[np.int64]
    confidence: npt.NDArray[np.float32]
    loss: npt.NDArray[np.float32]
    in_top5: npt.NDArray[np.bool_]
    images: str = ""

    @classmethod
    def empty(cls, scales: Sequence[int], targets: npt.NDArray[np.int64], names: Sequence[str] = ()) -> "Answers":
        """Return empty answers to ``targets``."""
        shape = (len(scales), len(targets))
        digest = hashlib.sha256("\0".join(names).encode(errors="surrogateescape")).hexdigest()[:16]
        predicted = np.full(shape, UNREAD, np.int64)
        confidence, loss = np.zeros(shape, np.float32), np.zeros(shape, np.float32)
        return cls(np.asarray(scales), targets, predicted, confidence, loss, np.zeros(shape, np.bool_), digest)

    @property
    def right(self) -> npt.NDArray[np.bool_]:
        """[S, N] whether the predicted class is the true one; False if an image could not be read."""
        right: npt.NDArray[np.bool_] = (self.predicted == self.targets) & (self.predicted != UNREAD)
        return right

    def keep(self, row: int, indices: "Tensor", said: "Tensor", targets: "Tensor") -> None:
        """Store the answers to some images: positions [B], log probabilities [B, K], true classes [B]; on the CPU."""
        top, at = said.topk(min(5, said.shape[1]), dim=1), indices.numpy()
        self.predicted[row, at] = top.indices[:, 0].numpy()
        self.confidence[row, at] = top.values[:, 0].exp().numpy()
        self.in_top5[row, at] = (top.indices == targets[:, None]).any(1).numpy()
        self.loss[row, at] = -said.gather(1, targets[:, None])[:, 0].numpy()

    @classmethod
    def joined(cls, parts: Sequence["Answers"]) -> "Answers":
        """Merge the answers of several processes, each to different images of the same source."""
        whole = replace(parts[0], scales=np.max([part.scales for part in parts], axis=0))
        for part in parts[1:]:
            given = part.predicted != UNREAD
            for name in BY_SCALE[1:]:
                getattr(whole, name)[given] = getattr(part, name)[given]
        return whole

    def class_accuracy(self, row: int) -> float:
        """Return the mean of the class accuracies."""
        seen = self.predicted[row] != UNREAD
        counts = np.bincount(self.targets[seen])
        right = np.bincount(self.targets[seen], self.right[row, seen])
        return float((right[counts > 0] / counts[counts > 0]).mean())

    def at(self, scale: int) -> int:
        """Return the row of a scale."""
        return int(np.flatnonzero(self.scales == scale)[0])

    def save(self, folder: Path) -> Path:
        """Write ``answers.npz`` into ``folder``."""
        return write_arrays(folder / FILE, **vars(self))


def load_answers(folder: Path) -> Answers | None:
    """Return the answers saved in a folder, or None if there are none; runs no code from the file.

    Raises:
        SppclsError: The file is damaged.
    """
    path = folder / FILE
    if not path.is_file():
        return None
    try:
        values = read_arrays(path)
        return Answers(**values | {"images": str(values["images"])})
    except (KeyError, TypeError, ValueError) as error:
        raise SppclsError(f"{path} is damaged ({error}); train or evaluate again") from None


def confusion_counts(answers: Answers, scale: int, classes: int) -> npt.NDArray[np.int64]:
    """Return [K, K] how many images of each true class (row) are predicted as each class (column) at a scale."""
    predicted = answers.predicted[answers.at(scale)]
    seen = predicted != UNREAD
    counts = np.zeros((classes, classes), np.int64)
    np.add.at(counts, (answers.targets[seen], predicted[seen]), 1)
    return counts


def by_class(answers: Answers, names: Sequence[str], scale: int) -> dict[str, Any]:
    """Return the rows ``per_class``, their means over the classes that have images, and ``confusion``, all at a scale.

    A share of nothing is None: the precision of a class never predicted, the recall of one without images.
    """
    counts = confusion_counts(answers, scale, len(names))
    rows = []
    for name, right, images, answered in zip(names, counts.diagonal(), counts.sum(1), counts.sum(0), strict=True):
        shares = {"precision": (right, answered), "recall": (right, images), "f1": (2 * right, images + answered)}
        found = {key: round(float(part / whole), 6) if whole else None for key, (part, whole) in shares.items()}
        rows.append({"class": name, "images": int(images)} | found)
    present = [row for row in rows if row["images"]]
    means = {name: float(np.mean([row[name] or 0.0 for row in present])) for name in ("precision", "recall", "f1")}
    matrix = {"scale": scale, "classes": list(names), "counts": counts.tolist()}
    return {"class_scale": scale, "per_class": rows, "class_means": means, "confusion": matrix}


def surest(
    source: Source, answers: Answers, classes: Sequence[str], scale: int, *, right: bool, count: int = 12
) -> list[dict[str, Any]]:
    """Return the most confident right or wrong answers at ``scale``, ``count`` at most; the right ones one a class.

    Each has its image, classes, confidence, (H, W), and a thumbnail: a JPEG in base64, or None where there is no file.
    """
    row = answers.at(scale)
    found = np.flatnonzero((answers.right[row] == right) & (answers.predicted[row] != UNREAD))
    found = found[np.argsort(-answers.confidence[row, found], kind="stable")]
    if right:
        found = found[np.sort(np.unique(answers.targets[found], return_index=True)[1])]
    return [
        {
            "image": source.names[index].encode(errors="surrogateescape").decode(errors="replace"),
            "class": classes[answers.targets[index]],
            "predicted": classes[answers.predicted[row, index]],
            "confidence": round(float(answers.confidence[row, index]), 4),
            "size": source.sizes[index].tolist(),
            "thumbnail": _thumbnail(source, index),
        }
        for index in found[:count].tolist()
    ]


def _thumbnail(source: Source, index: int, side: int = 128) -> str | None:
    from PIL import Image

    try:
        image = Image.fromarray(source.read(index, side).permute(1, 2, 0).numpy())
    except DataError:  # deleted since it was measured
        return None
    image.thumbnail((side, side))
    file = io.BytesIO()
    image.save(file, "JPEG", quality=80)
    return base64.b64encode(file.getvalue()).decode()
