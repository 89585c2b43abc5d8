"""Measures a network at each test scale: answers, and figures computed from them."""

import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from copy import deepcopy
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from sppcls.data.batch import IGNORED, ImageBatch
from sppcls.data.cache import PixelCache
from sppcls.data.geometry import Fit
from sppcls.data.images import BatchDataset
from sppcls.data.loader import Batches, batches_of
from sppcls.data.plan import plan_evaluation
from sppcls.data.source import Source, Subset
from sppcls.errors import DataError, SppclsError, counted, one_line
from sppcls.measure.answers import BY_SCALE, UNREAD, Answers
from sppcls.measure.statistics import log_scale_area, pairwise_agreement, wilson
from sppcls.models.classifier import SppClassifier
from sppcls.plugins import plugin, plugins
from sppcls.terminal import log, track


@dataclass(frozen=True)
class ScaleRow:
    """Results at one test scale; accuracies are fractions, ``acc1_low`` to ``acc1_high`` the 95 % Wilson interval."""

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
    """Rows of all test scales, the answers behind them, and the images per second at each."""

    rows: tuple[ScaleRow, ...]
    answers: Answers
    images_per_s: tuple[float, ...] = ()

    def agreement(self) -> list[list[float]]:
        """Return the share of images with the same class at each pair of scales, of those read everywhere."""
        predicted = self.answers.predicted
        read = predicted[:, (predicted != UNREAD).all(axis=0)]
        return pairwise_agreement(read).round(4).tolist()  # type: ignore[no-any-return]

    def over(self, scales: Collection[int]) -> "ScaleResult":
        """Return the part of it that is of some scales, without the speeds."""
        kept = [at for at, row in enumerate(self.rows) if row.scale in scales]
        ours = {name: getattr(self.answers, name)[kept] for name in BY_SCALE}
        return ScaleResult(tuple(self.rows[at] for at in kept), replace(self.answers, **ours))

    def summary(self) -> dict[str, Any]:
        """Return the rows and what they say together, as plain values; consistency is of the images read everywhere."""
        accuracies, predicted = [row.acc1 for row in self.rows], self.answers.predicted
        read = predicted[:, (predicted != UNREAD).all(axis=0)]
        added = {name: _added(name, self.answers) for name in plugins("measures")}
        return {
            **({"measures": added} if added else {}),
            "scales": [asdict(row) for row in self.rows],
            "scale_spread": max(accuracies) - min(accuracies),
            "scale_consistency": float((read == read[0]).all(axis=0).mean()),
            "scale_area": log_scale_area([row.scale for row in self.rows], accuracies),
            "worst_scale": self.rows[int(np.argmin(accuracies))].scale,
            "agreement": self.agreement(),
        }


def _added(name: str, answers: Answers) -> float | None:
    """Return a measure of another package, or None with a warning where it fails: the training is not lost."""
    try:
        return float(plugin("measures", name, "measure")(deepcopy(answers)))
    except (SppclsError, TypeError, ValueError) as error:
        log.warning("%s; stored as null", one_line(error))
        return None


def rows_of(answers: Answers, trained: Sequence[int]) -> tuple[ScaleRow, ...]:
    """Return a row for each scale of the answers; unreadable images are ignored."""
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

    torchmetrics has the same, but takes eight seconds to import.

    >>> round(calibration_error(np.array([0.9, 0.9, 0.6]), np.array([True, False, True])), 3)
    0.4
    """
    bin_of = np.searchsorted(np.linspace(0, 1, bins + 1), confidence, side="right")
    excess = np.bincount(bin_of, weights=right - confidence.astype(np.float64))
    return float(np.abs(excess).sum() / len(confidence))


# From uint8 images [N, 3, H, W] to log probabilities [N, K].
Predict = Callable[[SppClassifier, Tensor], Tensor]


def full_view(network: SppClassifier, images: Tensor) -> Tensor:
    """Return log probabilities [N, K] of whole images."""
    logits: Tensor = network(network.normalize(images))
    return logits.float().log_softmax(1)


def averaged(views: Sequence[Tensor]) -> Tensor:
    """Return the log of the mean probability of several views' log probabilities."""
    return torch.stack(list(views)).logsumexp(0) - float(np.log(len(views)))


@dataclass(frozen=True)
class Evaluation:
    """How a source is evaluated: the same for every scale, network and view."""

    source: Source
    fit: Fit = "keep"
    batch_size: int = 32
    num_workers: int = 0
    max_aspect: float = 4.0
    device: torch.device | str = "cpu"
    cache: PixelCache | None = None
    bar: bool = False

    def batches(self, network: SppClassifier, scale: int, largest: int | None = None) -> tuple[int, Batches]:
        """Return how many batches there are at ``scale`` and the batches, each image once, without randomness.

        Those of several scales have the same images if all are given the ``largest`` of them.
        """
        how: dict[str, Any] = {"batch_size": self.batch_size, "fit": self.fit, "max_aspect": self.max_aspect}
        plan = plan_evaluation(self.source.sizes, scale, largest=largest, multiple=network.multiple, **how)
        return len(plan), batches_of(self.dataset(network), plan, self.num_workers)

    def dataset(self, network: SppClassifier) -> BatchDataset:
        """Return the data set of tensors, padded with the network's mean colour."""
        red, green, blue = (round(value * 255) for value in network.mean)
        return BatchDataset(
            self.source, fit=self.fit, pad=(red, green, blue), cache=self.cache, multiple=network.multiple
        )


def evaluate_scales(
    network: SppClassifier,
    look: Evaluation,
    scales: Sequence[int],
    *,
    predict: Predict = full_view,
    prepare: Callable[[SppClassifier, int], SppClassifier] | None = None,
    fuse: bool = False,
) -> ScaleResult:
    """Measure ``network`` in eval mode at each scale; the result for an image depends on that image alone.

    What is kept of each image is its answer. The network is left in the mode and on the device it came with.
    ``predict`` goes from uint8 images to log probabilities. ``prepare`` gives the network to use at a scale, as
    `recalibrate_bn` does. ``fuse`` averages the predictions at all scales; the one row then bears the largest of them.
    Raises ``DataError`` where no image could be read.
    """
    groups = [tuple(scales)] if fuse else [(scale,) for scale in scales]
    answers = Answers.empty([max(group) for group in groups], look.source.targets, look.source.names)
    speeds = []
    with evaluating(network, look.device):
        for row, group in enumerate(groups):
            views = [(prepare(network, scale) if prepare else network, scale) for scale in group]
            started = time.perf_counter()
            _fill(answers, row, look, views, predict)
            speeds.append(len(answers.targets) / (time.perf_counter() - started))
    return ScaleResult(rows_of(answers, network.scales), answers, tuple(speeds))


def _fill(
    answers: Answers, row: int, look: Evaluation, views: Sequence[tuple[SppClassifier, int]], predict: Predict
) -> None:
    """Write one row of answers, the mean over networks, of which each sees the same images at its scale."""
    networks, scales = zip(*views, strict=True)
    # An aspect bucket holds the same images at every scale, so the scales' batches go together.
    counts, streams = zip(*map(partial(look.batches, largest=max(scales)), networks, scales), strict=True)
    groups: Iterator[tuple[ImageBatch, ...]] = zip(*streams, strict=True)
    with ExitStack() as ending:
        for stream in streams:
            ending.enter_context(closing(stream))
        for group in track(groups, f"scale {', '.join(map(str, scales))}", counts[0]) if look.bar else groups:
            kept = group[0]["targets"] != IGNORED
            if bool(kept.any()):
                with torch.inference_mode():
                    pixels = [batch["images"][kept].to(look.device) for batch in group]
                    said = averaged(list(map(predict, networks, pixels))).cpu()
                answers.keep(row, group[0]["indices"][kept], said, group[0]["targets"][kept])
    if not (answers.predicted[row] != UNREAD).any():
        raise DataError(f"none of {counted(len(answers.targets), 'image')} could be read")


def gap_subset(source: Source, images: int) -> Subset:
    """Return the fixed part of the training set that the generalization gap is measured on, evenly spread."""
    count = len(source.targets)
    return Subset(source, np.unique(np.linspace(0, count - 1, min(images, count)).round().astype(np.int64)))


@contextmanager
def evaluating(network: SppClassifier, device: torch.device | str) -> Iterator[None]:
    """Put the network into eval mode on a device, and restore it afterwards."""
    home, mode = next(network.parameters()).device, network.training
    network.to(device).eval()
    try:
        yield
    finally:
        network.to(home).train(mode)
