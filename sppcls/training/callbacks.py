"""What happens around training: the curves on disk, the checkpoints, the lines on the terminal."""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback, Checkpoint

from sppcls.checkpoints import BEST, LAST, Content
from sppcls.data.batch import ImageBatch, MixedBatch, batches_in
from sppcls.data.planner import Planner
from sppcls.errors import SppclsError
from sppcls.files import write_csv
from sppcls.process import Signals
from sppcls.report.page import duration
from sppcls.terminal import log
from sppcls.training.datamodule import MultiScaleDataModule
from sppcls.training_settings import OptimSpec

COLUMNS = (
    "epoch", "step", "scale", "lr", "train_loss", "train_acc1", "val_scale", "val_loss", "val_acc1",
    "val_acc5", "val_class_acc", "val_ece", "images", "megapixels", "seconds", "images_per_s",
)  # fmt: skip
# A save waits for this many times the duration of the last one, so that saving costs at most 3 % of the time.
_SPARE = 32


class Curves(Callback):
    """Writes one row per epoch to metrics.csv and one line per epoch to the log.

    ``scale`` is the last batch's. The rows and the seconds are in the checkpoint too: an epoch that was interrupted has
    one row for both its parts, and ``run_seconds`` counts all parts of a run, this one from ``started`` (monotonic).
    """

    def __init__(self, path: Path, started: float | None = None) -> None:
        self.path = path
        self._rows: list[dict[str, str]] = []
        self._images = self._scale = 0
        self._epoch_started = self._seconds = 0.0
        self._run_started = time.monotonic() if started is None else started

    @property
    def run_seconds(self) -> float:
        """The seconds of all parts of the run."""
        return time.monotonic() - self._run_started

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Set the clock of the epoch to where the checkpoint was saved."""
        self._epoch_started = time.monotonic() - self._seconds

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start the clock of the epoch."""
        self._images, self._epoch_started = 0, time.monotonic()

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: object,
        batch: ImageBatch | MixedBatch,
        batch_idx: int,
    ) -> None:
        """Count the images that the network saw, and show scale and rate on the progress bar."""
        self._images += sum(len(part["targets"]) for part in batches_in(batch)) * trainer.world_size
        self._scale = batch["scale"]
        self._seconds = time.monotonic() - self._epoch_started
        if trainer.progress_bar_callback is not None:
            values = {"scale": float(self._scale), "images/s": self._images / self._seconds}
            pl_module.log_dict(values, prog_bar=True, logger=False, batch_size=1)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write the row and the line."""
        if not trainer.is_global_zero:
            return
        data: MultiScaleDataModule = trainer.datamodule  # type: ignore[attr-defined]
        optim: OptimSpec = pl_module.optim  # type: ignore[assignment]
        metrics, plan = fresh_metrics(trainer), data.plan(trainer.current_epoch)
        row: dict[str, float] = metrics | {
            "epoch": trainer.current_epoch,
            "step": trainer.global_step,
            "scale": self._scale,
            "lr": trainer.optimizers[0].param_groups[-1]["lr"],
            "images": plan.images,
            "megapixels": round(plan.pixels * optim.passes / 1e6, 3),
            "seconds": round(self._seconds, 3),
            "images_per_s": round(plan.images / self._seconds, 1),
        }
        row |= {"val_scale": data.val_scale} if "val_acc1" in row else {}
        self._rows.append({name: _cell(row.get(name)) for name in COLUMNS})
        write_csv(self.path, self._rows)
        scales = data.planner.turns(trainer.current_epoch, trainer.world_size).scales
        log.info("%s%s", _line(row, trainer.max_epochs or 0, scales), self._left(data.planner, trainer))

    def _left(self, planner: Planner, trainer: pl.Trainer) -> str:
        """Return how long the other epochs may take, by those of this run so far."""
        first = trainer.current_epoch + 1
        left = planner.work(range(first, trainer.max_epochs or 0), trainer.world_size)
        seconds = (
            left / planner.work(range(first), trainer.world_size) * sum(float(row["seconds"]) for row in self._rows)
        )
        return f"  {duration(seconds)} left" if left else ""

    def state_dict(self) -> Content:
        """Return the rows so far, and the seconds of this epoch and of the run."""
        return {"rows": self._rows, "seconds": self._seconds, "run_seconds": self.run_seconds}

    def load_state_dict(self, state_dict: Content) -> None:
        """Continue from the rows so far: what was written after the checkpoint is written again."""
        self._rows = [dict.fromkeys(COLUMNS, "") | row for row in state_dict["rows"]]
        self._seconds = state_dict["seconds"]
        self._run_started -= state_dict["run_seconds"]


def fresh_metrics(trainer: pl.Trainer) -> dict[str, float]:
    """Return the metrics of this epoch; Lightning's also include the validation of an earlier one."""
    validated = (trainer.current_epoch + 1) % (trainer.check_val_every_n_epoch or 1) == 0
    metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
    return {name: value for name, value in metrics.items() if validated or not name.startswith("val_")}


def _cell(value: float | None) -> str:
    return "" if value is None else str(value) if isinstance(value, int) else f"{value:.6g}"


def _line(row: Mapping[str, float], epochs: int, scales: Sequence[int]) -> str:
    train = f"loss {row['train_loss']:.3f}  train {row['train_acc1']:6.1%}"
    val = f"  val at {row['val_scale']} {row['val_acc1']:6.1%}" if "val_acc1" in row else ""
    done = f"epoch {row['epoch'] + 1:>3}/{epochs}"
    scale = f"{min(scales)}..{max(scales)}" if len(set(scales)) > 1 else f"{scales[0]:>4}"
    return f"{done}  scale {scale}  {train}{val}  {row['images_per_s']:.0f} images/s"


class SaveLastAndBest(Checkpoint):
    """Keeps ``last.ckpt`` (each epoch and inside it) and ``best.ckpt`` (highest ``val_acc1``) in a folder.

    Inside an epoch it saves after so many steps or minutes, less often where a save takes long, and at the next batch
    after a signal, which ends the run with ``Interrupted``.
    """

    def __init__(
        self,
        folder: Path,
        every_steps: int | None = None,
        every_minutes: float | None = None,
        signals: Signals | None = None,
    ) -> None:
        self.folder, self.every_steps, self.every_minutes = folder, every_steps, every_minutes
        self.signals, self.best = signals or Signals(), -1.0
        self._saved_at, self._took = time.monotonic(), 0.0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Take over signals from Lightning, which would exit without saving, and defer them to the end of a batch."""
        if trainer.is_global_zero:
            self.folder.mkdir(parents=True, exist_ok=True)
        self._saved_at = time.monotonic()
        self.signals.defer()

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Let signals end the program immediately again, including one just received."""
        self.signals.defer(False)
        if self.signals.received is not None:
            self.signals.end()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Let signals end the program immediately again."""
        self.signals.defer(False)

    def on_train_batch_end(self, trainer: pl.Trainer, *args: object) -> None:
        """Save within an epoch, if due or if a signal was received; its last batch is saved with the epoch."""
        if not trainer.is_last_batch and _any_rank(trainer, self._is_time(trainer.global_step)):
            self._save(trainer, LAST)

    def _is_time(self, step: int) -> bool:
        if self.signals.received is not None or (self.every_steps and step % self.every_steps == 0):
            return True
        waited = time.monotonic() - self._saved_at
        return self.every_minutes is not None and waited >= max(60 * self.every_minutes, _SPARE * self._took)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save ``best.ckpt`` when validation accuracy is the highest so far, then ``last.ckpt``."""
        accuracy = fresh_metrics(trainer).get("val_acc1", -1.0)
        improved = accuracy > self.best
        self.best = max(accuracy, self.best)
        # The best first: killed before the second, the run does this epoch's end again.
        self._save(trainer, *([BEST] if improved else []), LAST)

    def _save(self, trainer: pl.Trainer, *names: str) -> None:
        """Save, and end the run where a signal has come to any rank."""
        for name in names:
            if trainer.is_global_zero and not self.folder.is_dir():
                raise SppclsError(f"{self.folder} is gone: the run folder was removed during training")
            started = time.monotonic()
            trainer.save_checkpoint(self.folder / name)
            self._saved_at = time.monotonic()
            self._took = self._saved_at - started
        if _any_rank(trainer, self.signals.received is not None):
            self.signals.end()

    def state_dict(self) -> Content:
        """Return the best accuracy so far."""
        return {"best": self.best}

    def load_state_dict(self, state_dict: Content) -> None:
        """Continue from the best accuracy so far."""
        self.best = float(state_dict["best"])


def _any_rank(trainer: pl.Trainer, wish: bool) -> bool:
    """Return whether any rank wants it: all ranks save and exit together or not at all."""
    return trainer.strategy.reduce_boolean_decision(wish, all=False) if trainer.world_size > 1 else wish
