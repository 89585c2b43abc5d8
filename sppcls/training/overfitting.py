"""The gap during training: part of the training set is measured like the validation set, at every scale."""

import time
from pathlib import Path

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback

from sppcls.checkpoints import Content
from sppcls.data.cache import PixelCache
from sppcls.data.source import Source
from sppcls.files import write_csv
from sppcls.measure.scales import Evaluation, evaluate_scales, gap_subset, rows_of
from sppcls.spec import Spec
from sppcls.terminal import log
from sppcls.training.datamodule import MultiScaleDataModule
from sppcls.training.module import LitSppClassifier

COLUMNS = ("epoch", "scale", "train_acc1", "val_acc1", "gap", "train_loss", "val_loss", "seconds")
# Pixels measured per pixel trained: with decoding and small batches, measuring one takes up to as long as training.
_SHARE = 0.1
_FEW = 50  # below this, the gap is measured less often instead


class GapCurves(Callback):
    """Writes rows (epoch, scale, train and val accuracy, gap, seconds) to gap.csv and logs them.

    It measures in eval mode, without augmentation. The validation's own scale is taken from the validation; ``seconds``
    is what the rest took.

    With ``metrics.gap_every`` it measures after a validation by which another so many epochs have passed, on
    ``metrics.gap_images`` training images and all validation images. Without, after so many of the validations, and on
    so many images, as cost at most a tenth of the training (`affordable`).
    """

    def __init__(self, path: Path, spec: Spec) -> None:
        self.path, self.scales, self._spec = path, spec.gap_scales, spec
        self.every, self.images = spec.metrics.gap_every, spec.metrics.gap_images
        self._epochs: set[int] = set()
        self._rows: list[dict[str, str | int]] = []

    @property
    def seconds(self) -> float:
        """What the curves have cost so far."""
        return sum(float(row["seconds"]) for row in self._rows)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Decide when to measure and on how many images, independent of the clock, so that runs are reproducible."""
        step = trainer.check_val_every_n_epoch or 1
        validations = list(range(step, (trainer.max_epochs or 0) + 1, step))
        if self.every is not None:
            self._epochs = {epoch for epoch in validations if epoch // self.every != (epoch - step) // self.every}
            return
        data: MultiScaleDataModule = trainer.datamodule  # type: ignore[attr-defined]
        count = len(validations)
        if not count or data.val is None:
            return
        # Every image taken for a square; the validation has measured its own scale already.
        images = len(data.train.targets)
        work = data.planner.work(range(trainer.max_epochs or 0), trainer.world_size)
        image = sum(scale**2 * (1 if scale == data.val_scale else 2) for scale in self.scales)
        self.images, points = affordable(work * images / trainer.world_size, image, count, min(self.images, images))
        # Evenly spread, the last one always.
        self._epochs = {e for at, e in enumerate(validations) if (at + 1) * points // count > at * points // count}
        if trainer.is_global_zero:
            of = f"after {points} of {count} validations"
            log.info("the gap is measured on %d training images %s (metrics.gap_every)", self.images, of)

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Measure and write, if due."""
        if trainer.current_epoch + 1 not in self._epochs or not isinstance(pl_module, LitSppClassifier):
            return
        answers = pl_module.validated()  # on every rank: answers are gathered from all of them
        if trainer.is_global_zero:
            known = {row.scale: (row.acc1, row.loss) for row in rows_of(answers, self.scales)}
            self._rows += [self._row(trainer, pl_module, scale, known.get(scale)) for scale in self.scales]
            write_csv(self.path, self._rows)

    def state_dict(self) -> Content:
        """Return the rows so far."""
        return {"rows": self._rows}

    def load_state_dict(self, state_dict: Content) -> None:
        """Continue from the rows so far: what was written after the checkpoint is written again."""
        self._rows = list(state_dict["rows"])

    def _row(
        self, trainer: pl.Trainer, module: LitSppClassifier, scale: int, val: tuple[float, float] | None
    ) -> dict[str, str | int]:
        started = time.monotonic()
        train = self._measured(trainer, module, scale, "train")
        val = val or self._measured(trainer, module, scale, "val")
        values = (train[0], val[0], train[0] - val[0], train[1], val[1], time.monotonic() - started)
        named = {f"gap/{name}/{scale}": value for name, value in zip(COLUMNS[2:5], values, strict=False)}
        for logger in trainer.loggers:
            logger.log_metrics(named, trainer.global_step)
        cells: list[str | int] = [trainer.current_epoch, scale, *(f"{value:.6g}" for value in values)]
        return dict(zip(COLUMNS, cells, strict=True))

    def _measured(self, trainer: pl.Trainer, module: LitSppClassifier, scale: int, part: str) -> tuple[float, float]:
        data: MultiScaleDataModule = trainer.datamodule  # type: ignore[attr-defined]
        source, cache = getattr(data, part), data.caches.get(part)
        subset = gap_subset(source, len(source.targets) if part == "val" and self.every is not None else self.images)
        how = measuring(self._spec, subset, module.device, cache=cache and cache.part(subset.indices))
        row = evaluate_scales(module.network, how, [scale]).rows[0]
        return row.acc1, row.loss


def measuring(
    spec: Spec, source: Source, device: torch.device, *, cache: PixelCache | None = None, bar: bool = False
) -> Evaluation:
    """Return how a source is measured in a run."""
    data = spec.data
    return Evaluation(source, data.fit, data.batch_size, data.num_workers, data.max_aspect, device, cache, bar)


def affordable(trained: float, image: float, validations: int, most: int) -> tuple[int, int]:
    """Return on how many images and after how many validations measuring the gap costs a tenth of the training.

    Images are reduced first, down to 50, then validations; one validation always remains, on what is affordable.
    ``trained`` is the pixels that the training sees, ``image`` those measured for each image at all scales, ``most``
    the images to measure on, at most.

    >>> affordable(1e8, 1e4, 10, 600), affordable(1e7, 1e4, 10, 600), affordable(1e6, 1e4, 10, 600)
    ((100, 10), (50, 2), (10, 1))
    """
    images = _SHARE * trained / image
    points = min(max(int(images / min(most, _FEW)), 1), validations)
    return min(max(int(images / points), 1), most), points
