"""Overfitting while it happens: a fixed part of the training set measured as the validation set is, at every scale."""

import csv
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback

from sppcls.atomic import write_csv
from sppcls.data.cache import PixelCache
from sppcls.data.source import Source
from sppcls.measure.result import rows_of
from sppcls.measure.scales import evaluate_scales, gap_subset
from sppcls.training.datamodule import MultiScaleDataModule
from sppcls.training.module import LitSppClassifier

COLUMNS = ("epoch", "scale", "train_acc1", "val_acc1", "gap", "train_loss", "val_loss", "seconds")
FILE = "gap.csv"


class GapCurves(Callback):
    """Writes rows (epoch, scale, train and val accuracy, gap, seconds) to gap.csv and logs them.

    It measures in eval mode, without augmentation, after a validation by which another ``every`` epochs have passed.
    The validation's own scale is taken from the validation; ``seconds`` is what the rest took.
    """

    def __init__(self, folder: Path, *, every: int, images: int, scales: Sequence[int], **how: Any) -> None:
        self.path, self.every, self.images, self.scales, self.how = folder / FILE, every, images, tuple(scales), how
        self._sides: list[tuple[Source, PixelCache | None]] = []
        self._rows: list[dict[str, str | int]] = []

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Measure and write, where it is time."""
        data = getattr(trainer, "datamodule", None)
        if not isinstance(pl_module, LitSppClassifier) or not isinstance(data, MultiScaleDataModule):
            return
        epoch, step = trainer.current_epoch + 1, trainer.check_val_every_n_epoch or 1
        if data.val is None or epoch // self.every == max(epoch - step, 0) // self.every:
            return
        answers = pl_module.validated()  # on every rank: they are gathered from them all
        if not trainer.is_global_zero:
            return
        known = {row.scale: (row.acc1, row.loss) for row in rows_of(answers, self.scales)}
        if not self._sides:
            subset = gap_subset(data.train, self.images)
            kept = data.caches.get("train")
            self._sides = [(subset, kept and kept.part(subset.indices)), (data.val, data.caches.get("val"))]
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
        row = evaluate_scales(module.network, source, [scale], device=module.device, cache=cache, **self.how).rows[0]
        return row.acc1, row.loss


def gap_seconds(folder: Path) -> float:
    """Return what the gap's curves of a run have cost so far, in seconds."""
    path = folder / FILE
    if not path.exists():
        return 0.0
    with path.open(newline="") as file:
        return sum(float(row["seconds"]) for row in csv.DictReader(file))
