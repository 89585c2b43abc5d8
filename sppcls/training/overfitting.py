"""Overfitting while it happens: a fixed part of the training set measured as the validation set is, at every scale."""

import csv
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback

from sppcls.data.cache import PixelCache
from sppcls.data.source import Source
from sppcls.measure.scales import evaluate_scales, gap_subset
from sppcls.training.datamodule import MultiScaleDataModule
from sppcls.training.module import LitSppClassifier

COLUMNS = ("epoch", "scale", "train_acc1", "val_acc1", "gap", "train_loss", "val_loss", "seconds")
FILE = "gap.csv"


class GapCurves(Callback):
    """Appends rows (epoch, scale, train and val accuracy, gap, seconds) to gap.csv and logs them.

    It measures in eval mode, without augmentation, after a validation by which another ``every`` epochs have passed.
    The validation's own scale is taken from the validation; ``seconds`` is what the rest took.
    """

    def __init__(self, folder: Path, *, every: int, images: int, scales: Sequence[int], **how: Any) -> None:
        self.path, self.every, self.images, self.scales, self.how = folder / FILE, every, images, tuple(scales), how
        self._sides: list[tuple[Source, PixelCache | None]] = []

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Measure and write, where it is time."""
        data = getattr(trainer, "datamodule", None)
        if not isinstance(pl_module, LitSppClassifier) or not isinstance(data, MultiScaleDataModule):
            return
        epoch, step = trainer.current_epoch + 1, trainer.check_val_every_n_epoch or 1
        if data.val is None or epoch // self.every == max(epoch - step, 0) // self.every:
            return
        # On every rank: the validation's metrics are gathered from them all.
        known = {
            data.last_scale: (float(pl_module.val_metrics["val_acc1"].compute()), float(pl_module.val_loss.compute()))
        }
        if not trainer.is_global_zero:
            return
        if not self._sides:
            subset = gap_subset(data.train, self.images)
            self._sides = [(part, data.pixels(part, max(self.scales))) for part in (subset, data.val)]
        rows = [self._row(trainer, pl_module, scale, known.get(scale)) for scale in self.scales]
        new = not self.path.exists()
        with self.path.open("a", newline="") as file:
            csv.writer(file).writerows([COLUMNS, *rows] if new else rows)

    def _row(
        self, trainer: pl.Trainer, module: LitSppClassifier, scale: int, val: tuple[float, float] | None
    ) -> list[object]:
        started = time.monotonic()
        train = self._measured(module, scale, 0)
        val = val or self._measured(module, scale, 1)
        values = (train[0], val[0], train[0] - val[0], train[1], val[1], time.monotonic() - started)
        named = {f"gap/{name}/{scale}": value for name, value in zip(COLUMNS[2:5], values, strict=False)}
        for logger in trainer.loggers:
            logger.log_metrics(named, trainer.global_step)
        return [trainer.current_epoch, scale, *(f"{value:.6g}" for value in values)]

    def _measured(self, module: LitSppClassifier, scale: int, side: int) -> tuple[float, float]:
        source, cache = self._sides[side]
        row = evaluate_scales(module.network, source, [scale], device=module.device, cache=cache, **self.how).rows[0]
        return row.acc1, row.loss


def gap_seconds(folder: Path) -> float:
    """Return what the gap's curves of a run have cost so far, in seconds."""
    path = folder / FILE
    if not path.exists():
        return 0.0
    with path.open(newline="") as file:
        return sum(float(row["seconds"]) for row in csv.DictReader(file))
