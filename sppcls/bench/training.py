"""Training: an epoch against a bare loop, and what a checkpoint a minute takes from it."""

import copy
import time
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch.nn import functional

from sppcls.bench import BenchReport, Row
from sppcls.bench.options import option_rows
from sppcls.build import build_classifier, build_splits, pick_device
from sppcls.checkpoints import LAST
from sppcls.data.batch import ImageBatch
from sppcls.data.schedule import Schedule
from sppcls.models.classifier import SppClassifier
from sppcls.settings import DataSpec, ModelSpec
from sppcls.training.datamodule import MultiScaleDataModule
from sppcls.training.module import LitSppClassifier
from sppcls.training.optim import build_optimizer
from sppcls.training.trainer import Callback, DurableCheckpointIO, plain_trainer

SCALES = (64, 128)
BLOCK = 8  # steps between saves


def train(data: str | None = None, backbones: tuple[str, ...] = ("tiny", "resnet18"), epochs: int = 4) -> BenchReport:
    """Time epochs of both scales; each real epoch is followed by a bare one with the same network, shapes and counts.

    The images are those of ``data`` (a folder of class folders) or 240 shapes, with a filled ``data.cache=ram``. Below
    are steps with an option of the network against steps without.
    """
    spec = DataSpec(name="folder", root=data, train_per_class=3) if data else DataSpec(train_size=240, val_size=24)
    images, device = build_splits(spec).train, pick_device("auto")
    rows: list[Row] = []
    summary: dict[str, float] = {}
    for backbone in backbones:
        module = MultiScaleDataModule(images, schedule=Schedule("alternate", SCALES), cache="ram")
        network = build_classifier(ModelSpec(backbone=backbone), images.classes, SCALES)
        network.to(memory_format=torch.channels_last)
        pairs = _Pairs(network, device)
        plain_trainer(epochs + 2, device, pairs).fit(LitSppClassifier(network), datamodule=module)
        small, large = (list(zip(*pairs.seconds[2 + which :: 2], strict=True)) for which in (0, 1))
        for scale, (ours, bare) in zip(SCALES, (small, large), strict=True):
            ratio, count = median(b / a for a, b in zip(ours, bare, strict=True)), len(images.targets)
            rows.append((backbone, scale, count / median(ours), count / median(bare), ratio))
        pixels = module.plan(1).pixels / module.plan(0).pixels
        for who, name in ((0, ""), (1, "bare_")):
            summary[f"{backbone}_{name}seconds_over_pixels"] = median(large[who]) / median(small[who]) / pixels
    summary["worst_ratio"] = min(float(row[4]) for row in rows)
    rows += [row for backbone in backbones for row in option_rows(backbone, SCALES)]
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

    def on_train_epoch_start(self, *_: object) -> None:
        self._batches, self._started = [], time.perf_counter()

    def on_train_batch_end(
        self, trainer: object, module: object, outputs: object, batch: ImageBatch, *_: object
    ) -> None:
        self._batches.append((batch["images"], batch["targets"]))

    def on_train_epoch_end(self, *_: object) -> None:
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
    """Return the time once the device has finished its work."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def saves(backbones: tuple[str, ...] = ("tiny", "resnet18"), blocks: int = 12) -> BenchReport:
    """Time blocks of steps in one training, every other one with a save; report the speed with one save per minute."""
    images = build_splits(DataSpec(train_size=BLOCK * 8, val_size=24)).train
    rows: list[Row] = []
    for backbone in backbones:
        network = build_classifier(ModelSpec(backbone=backbone), images.classes, (64,))
        data = MultiScaleDataModule(images, schedule=(64,), batch_size=8, cache="ram")
        with TemporaryDirectory(dir=".") as folder:  # where runs are: a temporary folder may be in memory
            timed = _Saves(Path(folder) / LAST)
            trainer = plain_trainer(2 * blocks + 2, pick_device("auto"), timed, plugins=DurableCheckpointIO())
            trainer.fit(LitSppClassifier(network), datamodule=data)
            size = timed.path.stat().st_size / 1e6
        plain, saving = timed.seconds[2::2], timed.seconds[3::2]
        took, rate = median(b - a for a, b in zip(plain, saving, strict=True)), BLOCK * 8 / median(plain)
        rows.append((backbone, size, took, rate, rate * 60 / (60 + took), 60 / (60 + took)))
    columns = ("backbone", "MB", "seconds per save", "images/s without", "with one per minute", "ratio")
    worst = {"worst_ratio": min(float(row[5]) for row in rows)}
    return BenchReport("saves: training with a save a minute", columns, rows, worst)


class _Saves(Callback):
    """Times each epoch, of which every other one saves a checkpoint."""

    def __init__(self, path: Path) -> None:
        self.path, self.seconds, self._started = path, list[float](), 0.0

    def on_train_epoch_start(self, *_: object) -> None:
        self._started = time.perf_counter()

    def on_train_epoch_end(self, trainer: Any, *_: object) -> None:
        if trainer.current_epoch % 2:
            trainer.save_checkpoint(self.path)
        self.seconds.append(time.perf_counter() - self._started)
