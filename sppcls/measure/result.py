"""What an evaluation gave: a row a test scale, and what the rows say together."""

from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from sppcls.measure.answers import BY_SCALE, UNREAD, Answers
from sppcls.measure.statistics import log_scale_area, pairwise_agreement, wilson


@dataclass(frozen=True)
class ScaleRow:
    """What one test scale gave; accuracies are fractions, ``acc1_low`` to ``acc1_high`` the 95 % Wilson interval."""

    scale: int
    acc1: float
    acc1_low: float
    acc1_high: float
    acc5: float
    loss: float
    ece: float
    images: int
    trained: bool


@dataclass(frozen=True)
class ScaleResult:
    """Rows of all test scales, the answers behind them, and the images a second at each."""

    rows: tuple[ScaleRow, ...]
    answers: Answers
    images_per_s: tuple[float, ...] = ()

    @property
    def spread(self) -> float:
        """Best minus worst accuracy over the scales."""
        accuracies = [row.acc1 for row in self.rows]
        return max(accuracies) - min(accuracies)

    @property
    def consistency(self) -> float:
        """Share of the images whose predicted class is the same at all scales."""
        return float((self._read == self._read[0]).all(axis=0).mean())

    @property
    def _read(self) -> npt.NDArray[np.int64]:
        predicted = self.answers.predicted
        return predicted[:, (predicted != UNREAD).all(axis=0)]

    def over(self, scales: Collection[int]) -> "ScaleResult":
        """Return the part of it that is of some scales."""
        kept = [at for at, row in enumerate(self.rows) if row.scale in scales]
        ours = {name: getattr(self.answers, name)[kept] for name in BY_SCALE}
        speeds = tuple(self.images_per_s[at] for at in kept) if self.images_per_s else ()
        return ScaleResult(tuple(self.rows[at] for at in kept), replace(self.answers, **ours), speeds)

    def summary(self) -> dict[str, Any]:
        """Return the rows and what they say together, as plain values."""
        worst = min(self.rows, key=lambda row: row.acc1)
        return {
            "scales": [asdict(row) for row in self.rows],
            "scale_spread": self.spread,
            "scale_consistency": self.consistency,
            "scale_area": log_scale_area([row.scale for row in self.rows], [row.acc1 for row in self.rows]),
            "worst_scale": worst.scale,
            "agreement": pairwise_agreement(self._read).round(4).tolist(),
        }


def rows_of(answers: Answers, trained: Sequence[int]) -> tuple[ScaleRow, ...]:
    """Return a row for each scale of the answers; unreadable images have no part in it."""
    rows = []
    for at, scale in enumerate(answers.scales.tolist()):
        seen = answers.predicted[at] != UNREAD
        right, images = int(answers.right[at].sum()), int(seen.sum())
        ece = calibration_error(answers.confidence[at, seen], answers.right[at, seen])
        acc5, loss = float(answers.in_top5[at, seen].mean()), float(answers.loss[at, seen].mean(dtype=np.float64))
        acc5, loss, error = (round(value, 6) for value in (acc5, loss, ece))
        low, high = wilson(right, images)
        rows.append(ScaleRow(scale, right / images, low, high, acc5, loss, error, images, scale in trained))
    return tuple(rows)


def calibration_error(confidence: npt.NDArray[np.floating[Any]], right: npt.NDArray[np.bool_], bins: int = 15) -> float:
    """Return the expected calibration error of confidences [N] in answers that are ``right`` [N] (Guo et al., 2017).

    torchmetrics has the same, and takes eight seconds to import.

    >>> round(calibration_error(np.array([0.9, 0.9, 0.6]), np.array([True, False, True])), 3)
    0.4
    """
    bin_of = np.searchsorted(np.linspace(0, 1, bins + 1), confidence, side="right")
    excess = np.bincount(bin_of, weights=right - confidence.astype(np.float64))
    return float(np.abs(excess).sum() / len(confidence))
