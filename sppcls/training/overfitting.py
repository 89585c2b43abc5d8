"""Overfitting while it happens: a fixed part of the training set measured as the validation set is, at every scale."""

import csv
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback

from sppcls.data.cache import PixelCache
from sppcls.data.source import Source
from sppcls.files import write_csv
from sppcls.measure.scales import Evaluation, evaluate_scales, gap_subset, rows_of
from sppcls.terminal import log
from sppcls.training.datamodule import MultiScaleDataModule
from sppcls.training.module import LitSppClassifier

COLUMNS = ("epoch", "scale", "train_acc1", "val_acc1", "gap", "train_loss", "val_loss", "seconds")
FILE = "gap.csv"
# Pixels measured for each pixel trained: with decoding and in small batches a measured one takes up to as long.
_SHARE = 0.1
_FEW = 50  # rather than on fewer images, the gap is measured less often


class GapCurves(Callback):
    """Writes rows (epoch, scale, train and val accuracy, gap, seconds) to gap.csv and logs them.

    It measures in eval mode, without augmentation. The validation's own scale is taken from the validation; ``seconds``
    is what the rest took.

    Args:
        every: Measure after a validation by which another so many epochs have passed, on all of ``images`` and all
            validation images. None: after so many of the validations, and on so many images, as cost at most a tenth
            of the training (`affordable`).
        images: Training images to measure on, at most.
    """

    def __init__(self, folder: Path, *, every: int | None, images: int, scales: Sequence[int], **how: Any) -> None:
        self.path, self.every, self.images, self.scales, self.how = folder / FILE, every, images, tuple(scales), how
        self._epochs: set[int] = set()
        self._sides: list[tuple[Source, PixelCache | None]] = []
        self._rows: list[dict[str, str | int]] = []

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Settle when to measure and on how many images; the clock has no part in it, so runs can be repeated."""
        step = trainer.check_val_every_n_epoch or 1
        validations = list(range(step, (trainer.max_epochs or 0) + 1, step))
        data = getattr(trainer, "datamodule", None)
        if self.every is not None:
            self._epochs = {epoch for epoch in validations if epoch // self.every != (epoch - step) // self.every}
        elif validations and isinstance(data, MultiScaleDataModule) and data.val is not None:
            trained, image = _pixels(trainer, data, self.scales)
            self.images, points = affordable(
                trained, image, len(validations), min(self.images, len(data.train.targets))
            )
            self._epochs = set(_spread(validations, points))
            if trainer.is_global_zero:
                of = f"after {points} of {len(validations)} validations"
                log.info("gap curves: %d images, %s (metrics.gap_every sets it)", self.images, of)

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Measure and write, where it is time."""
        data = getattr(trainer, "datamodule", None)
        if not isinstance(pl_module, LitSppClassifier) or not isinstance(data, MultiScaleDataModule):
            return
        if data.val is None or trainer.current_epoch + 1 not in self._epochs:
            return
        answers = pl_module.validated()  # on every rank: they are gathered from them all
        if not trainer.is_global_zero:
            return
        known = {row.scale: (row.acc1, row.loss) for row in rows_of(answers, self.scales)}
        if not self._sides:
            images = len(data.val.targets) if self.every is not None else self.images
            self._sides = [_part(data, "train", self.images), _part(data, "val", images)]
        self._rows += [self._row(trainer, pl_module, scale, known.get(scale)) for scale in self.scales]
        write_csv(self.path, self._rows)

    def state_dict(self) -> dict[str, Any]:
        """Return the rows so far."""
        return {"rows": self._rows}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from the rows so far: what was written after the checkpoint is written again."""
        self._rows = list(state_dict["rows"])

    def _row(
        self, trainer: pl.Trainer, module: LitSppClassifier, scale: int, val: tuple[float, float] | None
    ) -> dict[str, str | int]:
        started = time.monotonic()
        train = self._measured(module, scale, 0)
        val = val or self._measured(module, scale, 1)
        values = (train[0], val[0], train[0] - val[0], train[1], val[1], time.monotonic() - started)
        named = {f"gap/{name}/{scale}": value for name, value in zip(COLUMNS[2:5], values, strict=False)}
        for logger in trainer.loggers:
            logger.log_metrics(named, trainer.global_step)
        cells: list[str | int] = [trainer.current_epoch, scale, *(f"{value:.6g}" for value in values)]
        return dict(zip(COLUMNS, cells, strict=True))

    def _measured(self, module: LitSppClassifier, scale: int, side: int) -> tuple[float, float]:
        source, cache = self._sides[side]
        look = Evaluation(source, device=module.device, cache=cache, **self.how)
        row = evaluate_scales(module.network, look, [scale]).rows[0]
        return row.acc1, row.loss


def affordable(trained: float, image: float, validations: int, most: int) -> tuple[int, int]:
    """Return on how many images and after how many validations the gap is measured for a tenth of the training.

    Fewer images come first, down to 50, then fewer validations; one, on what images can be afforded, is left always.

    Args:
        trained: Pixels that the training sees.
        image: Pixels that are measured for each image, all scales and both sides.
        validations: Validations of the run.
        most: Images to measure on, at most.

    >>> affordable(1e8, 1e4, 10, 600), affordable(1e7, 1e4, 10, 600), affordable(1e6, 1e4, 10, 600)
    ((100, 10), (50, 2), (10, 1))
    """
    images = _SHARE * trained / image
    points = min(max(int(images / min(most, _FEW)), 1), validations)
    return min(max(int(images / points), 1), most), points


def _pixels(trainer: pl.Trainer, data: MultiScaleDataModule, scales: Sequence[int]) -> tuple[float, float]:
    """Return the pixels that a rank trains, and those measured for each image, taking every image for a square."""
    steps, own = int(trainer.num_training_batches), data.val_scale
    seen = data.schedule.work(range(trainer.max_epochs or 0), steps)
    measured = sum(scale**2 * (1 if scale == own else 2) for scale in scales)
    return seen * len(data.train.targets) / trainer.world_size, measured


def _spread(validations: Sequence[int], points: int) -> list[int]:
    """Return so many of the validations, evenly spread, the last one always."""
    count = len(validations)
    return [epoch for at, epoch in enumerate(validations) if (at + 1) * points // count > at * points // count]


def gap_seconds(folder: Path) -> float:
    """Return what the gap's curves of a run have cost so far, in seconds."""
    path = folder / FILE
    if not path.exists():
        return 0.0
    with path.open(newline="") as file:
        return sum(float(row["seconds"]) for row in csv.DictReader(file))


def _part(data: MultiScaleDataModule, name: Literal["train", "val"], images: int) -> tuple[Source, PixelCache | None]:
    subset, kept = gap_subset(getattr(data, name), images), data.caches.get(name)
    return subset, kept and kept.part(subset.indices)
