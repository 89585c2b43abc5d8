"""Saving: what a checkpoint a minute, with digest, sync and the one before it kept, takes from the training."""

import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import torch

from sppcls.bench import BenchReport
from sppcls.build import build_classifier, build_splits
from sppcls.checkpoints import LAST
from sppcls.models.classifier import SppClassifier
from sppcls.settings import DataSpec, ModelSpec
from sppcls.training.datamodule import MultiScaleDataModule
from sppcls.training.module import LitSppClassifier
from sppcls.training.trainer import Callback, DurableCheckpointIO, plain_trainer

BLOCK = 8  # steps


def run(data: str | None = None, backbones: tuple[str, ...] = ("tiny", "resnet18"), blocks: int = 12) -> BenchReport:
    """Time blocks of steps in one training, every other one with a save, and say what a save a minute leaves."""
    del data  # the images' part is the same with a save and without
    splits = build_splits(DataSpec(train_size=BLOCK * 8, val_size=24))
    rows: list[tuple[str | float, ...]] = []
    for backbone in backbones:
        network = build_classifier(ModelSpec(backbone=backbone), splits.train.classes, (64,))
        plain, saving, size = _blocks(network, splits.train, blocks)
        took = median(b - a for a, b in zip(plain, saving, strict=True))
        rate = BLOCK * 8 / median(plain)
        rows.append((backbone, size / 1e6, took, rate, rate * 60 / (60 + took), 60 / (60 + took)))
    columns = ("backbone", "MB", "seconds a save", "images/s without", "with one a minute", "ratio")
    return BenchReport(
        "saves: training with a checkpoint a minute", columns, rows, {"worst_ratio": min(float(row[5]) for row in rows)}
    )


def _blocks(network: SppClassifier, images: Any, blocks: int) -> tuple[list[float], list[float], int]:
    """Return the seconds of blocks without and with a save, in turn, and the bytes of a checkpoint."""
    seconds: tuple[list[float], list[float]] = ([], [])
    with tempfile.TemporaryDirectory(dir=".") as folder:  # where runs go: another disk may be memory
        path = Path(folder) / LAST

        class Blocks(Callback):
            def on_train_epoch_start(self, trainer: Any, *_: Any) -> None:
                self.started = time.perf_counter()

            def on_train_epoch_end(self, trainer: Any, *_: Any) -> None:
                saves = trainer.current_epoch % 2
                if saves:
                    trainer.save_checkpoint(path)
                seconds[saves].append(time.perf_counter() - self.started)

        data = MultiScaleDataModule(images, schedule=(64,), batch_size=8, cache="ram")
        device = "cuda" if torch.cuda.is_available() else "cpu"
        trainer = plain_trainer(2 * blocks + 2, device, Blocks(), plugins=[DurableCheckpointIO()])
        trainer.fit(LitSppClassifier(network), datamodule=data)
        return seconds[0][1:], seconds[1][1:], path.stat().st_size
