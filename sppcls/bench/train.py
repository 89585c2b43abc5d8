"""Training: an epoch under Lightning from files, against a bare loop over tensors already in memory."""

import copy
import time
from statistics import median
from typing import Any

import torch
from torch.nn import functional

from sppcls.bench import BenchReport
from sppcls.build import build_classifier, build_splits
from sppcls.data.images import ImageBatch
from sppcls.data.schedule import Schedule
from sppcls.models.classifier import SppClassifier
from sppcls.settings import DataSpec, ModelSpec
from sppcls.training.datamodule import MultiScaleDataModule
from sppcls.training.module import LitSppClassifier
from sppcls.training.optim import build_optimizer
from sppcls.training.trainer import Callback, plain_trainer

SCALES = (64, 128)


def run(data: str | None = None, backbones: tuple[str, ...] = ("tiny", "resnet18"), epochs: int = 4) -> BenchReport:
    """Time epochs of both scales; each real epoch is followed by a bare one of the same network, shapes and count.

    The images are those of ``data`` (a folder of class folders) or 240 shapes; ``data.cache=ram``, filled before.
    """
    spec = DataSpec(name="folder", root=data, train_per_class=3) if data else DataSpec(train_size=240, val_size=24)
    splits = build_splits(spec)
    rows: list[tuple[str | float, ...]] = []
    summary: dict[str, float] = {}
    device = "cuda" if torch.cuda.is_available() else "cpu"
    for backbone in backbones:
        module = MultiScaleDataModule(splits.train, schedule=Schedule("alternate", SCALES), cache="ram")
        network = build_classifier(ModelSpec(backbone=backbone), splits.train.classes, SCALES)
        network.to(memory_format=torch.channels_last)
        pairs = _Pairs(network, device)
        plain_trainer(epochs + 2, device, pairs).fit(LitSppClassifier(network), datamodule=module)
        pixels = [module.plan(epoch).pixels for epoch in (0, 1)]
        for which, scale in enumerate(SCALES):
            ours, bare = zip(*pairs.seconds[2 + which :: 2], strict=True)
            ratio = median(b / a for a, b in zip(ours, bare, strict=True))
            images = len(splits.train.targets)
            rows.append((backbone, scale, images / median(ours), images / median(bare), ratio))
        for who, name in ((0, ""), (1, "bare_")):
            small, large = (median(s[who] for s in pairs.seconds[2 + which :: 2]) for which in (0, 1))
            summary[f"{backbone}_{name}seconds_over_pixels"] = (large / small) / (pixels[1] / pixels[0])
    summary["worst_ratio"] = min(float(row[4]) for row in rows)
    columns = ("backbone", "scale", "ours images/s", "bare loop images/s", "ratio")
    return BenchReport(f"train: an epoch from the loader against a bare loop ({device})", columns, rows, summary)


class _Pairs(Callback):
    """Times each epoch of the trainer and, right after it, the same epoch bare."""

    def __init__(self, network: SppClassifier, device: str) -> None:
        self.network = copy.deepcopy(network).to(device)
        self.optimizer = build_optimizer(self.network, LitSppClassifier(network).optim)
        self.seconds: list[tuple[float, float]] = []
        self._batches: list[tuple[torch.Tensor, torch.Tensor]] = []
        self._started = 0.0

    def on_train_epoch_start(self, *_: Any) -> None:
        """Start the clock."""
        self._batches = []
        self._started = time.perf_counter()

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: ImageBatch, *_: Any) -> None:
        """Keep the batch for the bare loop."""
        self._batches.append((batch["images"], batch["targets"]))

    def on_train_epoch_end(self, *_: Any) -> None:
        """Stop the clock and run the bare epoch over normalised tensors."""
        ours = _now() - self._started
        tensors = [(self.network.normalize(images), targets) for images, targets in self._batches]
        started = time.perf_counter()
        self.network.train()
        for images, targets in tensors:
            self.optimizer.zero_grad()
            functional.cross_entropy(self.network(images), targets).backward()  # type: ignore[no-untyped-call]
            self.optimizer.step()
        self.seconds.append((ours, _now() - started))


def _now() -> float:
    """Return the time at which the device has done what it was given."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()
