"""Accuracy, loss and calibration of one network at several test scales."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional
from torch.utils.data import DataLoader
from torchmetrics import MeanMetric
from torchmetrics.classification import MulticlassAccuracy, MulticlassCalibrationError

from sppcls.data.loader import IGNORED, BatchDataset, ImageBatch
from sppcls.data.plan import Fit, plan_evaluation
from sppcls.data.source import Source
from sppcls.errors import DataError
from sppcls.models.classifier import SppClassifier


@dataclass(frozen=True)
class ScaleRow:
    """What one test scale gave; accuracies are fractions."""

    scale: int
    acc1: float
    acc5: float
    loss: float
    ece: float
    images: int
    trained: bool


@dataclass(frozen=True)
class ScaleResult:
    """Rows of all test scales, and the predicted class of each image at each of them, [scales, N].

    ``spread`` is best minus worst accuracy; ``consistency`` the share of images whose class is the same everywhere.
    """

    rows: tuple[ScaleRow, ...]
    predicted: npt.NDArray[np.int64]

    @property
    def spread(self) -> float:
        """Best minus worst accuracy over the scales."""
        accuracies = [row.acc1 for row in self.rows]
        return max(accuracies) - min(accuracies)

    @property
    def consistency(self) -> float:
        """Share of the images whose predicted class is the same at all scales."""
        return float((self.predicted == self.predicted[0]).all(axis=0).mean())

    def as_rows(self) -> list[dict[str, float]]:
        """Return the rows as plain dicts."""
        return [asdict(row) for row in self.rows]


def batches_at(
    dataset: BatchDataset, scale: int, *, batch_size: int = 32, num_workers: int = 0, max_aspect: float = 4.0
) -> Iterator[ImageBatch]:
    """Yield every image once at ``scale``, without augmentation; unreadable ones have target -1."""
    sizes = dataset.source.sizes
    plan = plan_evaluation(sizes, scale, batch_size=batch_size, fit=dataset.fit, max_aspect=max_aspect)
    yield from DataLoader(dataset, batch_size=None, sampler=list(plan), num_workers=num_workers, collate_fn=_as_is)


def _as_is(batch: object) -> object:
    return batch


@torch.inference_mode()
def evaluate_scale(
    network: SppClassifier, batches: Iterator[ImageBatch], scale: int, count: int, device: torch.device
) -> tuple[ScaleRow, npt.NDArray[np.int64]]:
    """Return the row of one scale and the predicted class of each of ``count`` images (-1: unreadable)."""
    classes = len(network.classes)
    top5 = MulticlassAccuracy(classes, average="micro", top_k=min(5, classes)).to(device)
    ece = MulticlassCalibrationError(classes, n_bins=15).to(device)
    loss = MeanMetric().to(device)
    predicted = np.full(count, IGNORED, np.int64)
    right = 0
    for batch in batches:
        kept = batch["targets"] != IGNORED
        if not bool(kept.any()):
            continue
        targets = batch["targets"][kept].to(device)
        logits = network(network.normalize(batch["images"][kept].to(device))).float()
        top5.update(logits, targets)
        ece.update(logits.softmax(1), targets)
        loss.update(functional.cross_entropy(logits, targets), len(targets))
        right += int((logits.argmax(1) == targets).sum())
        predicted[batch["indices"][kept].numpy()] = logits.argmax(1).cpu().numpy()
    seen = int((predicted != IGNORED).sum())
    if not seen:
        raise DataError(f"none of the {count} images could be read")
    acc5, nll, error = (round(float(metric.compute()), 6) for metric in (top5, loss, ece))
    return ScaleRow(scale, right / seen, acc5, nll, error, seen, scale in network.scales), predicted


def evaluate_scales(
    network: SppClassifier,
    source: Source,
    scales: Sequence[int],
    *,
    fit: Fit = "keep",
    batch_size: int = 32,
    num_workers: int = 0,
    max_aspect: float = 4.0,
    device: torch.device | str = "cpu",
) -> ScaleResult:
    """Measure ``network`` in eval mode at each scale; what it says of an image depends on that image alone.

    The network is left in the mode and on the device it came with.
    """
    place = torch.device(device)
    home, mode = next(network.parameters()).device, network.training
    network.to(place).eval()
    pad = (round(network.mean[0] * 255), round(network.mean[1] * 255), round(network.mean[2] * 255))
    dataset = BatchDataset(source, fit=fit, pad=pad)
    outcomes = []
    for scale in scales:
        batches = batches_at(dataset, scale, batch_size=batch_size, num_workers=num_workers, max_aspect=max_aspect)
        outcomes.append(evaluate_scale(network, batches, scale, len(source.targets), place))
    network.to(home).train(mode)
    return ScaleResult(tuple(row for row, _ in outcomes), np.stack([predicted for _, predicted in outcomes]))
