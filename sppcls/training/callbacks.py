"""What happens around training: the curves on disk, the lines on the terminal, the largest shape first."""

import time
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback, TQDMProgressBar

from sppcls.data.images import ImageBatch
from sppcls.errors import ConfigError
from sppcls.files import write_csv
from sppcls.report.page import duration
from sppcls.terminal import log
from sppcls.training.datamodule import MultiScaleDataModule
from sppcls.training.module import LitSppClassifier

COLUMNS = (
    "epoch", "step", "scale", "lr", "train_loss", "train_acc1", "val_scale", "val_loss", "val_acc1",
    "val_acc5", "val_class_acc", "val_ece", "images", "megapixels", "seconds", "images_per_s",
)  # fmt: skip


class Curves(Callback):
    """Writes a row an epoch to metrics.csv and a line an epoch to the log.

    ``scale`` is the last batch's. A loss that is not finite ends the run. The rows are in the checkpoint too, and an
    epoch that was interrupted has one row for both its parts.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._rows: list[dict[str, str]] = []
        self._images, self._scale = 0, 0
        self._started = self._seconds = 0.0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Go on with the clock where the checkpoint was saved."""
        self._started = time.monotonic() - self._seconds

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start the clock."""
        self._images, self._started = 0, time.monotonic()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: ImageBatch, batch_idx: int
    ) -> None:
        """Count the images that the network saw, and show scale and rate on the progress bar."""
        if (batch_idx % 50 == 0 or trainer.is_last_batch) and isinstance(pl_module, LitSppClassifier) and outputs:
            pl_module.refuse_divergence(outputs["loss"])
        self._images += len(batch["targets"]) * trainer.world_size
        self._scale = batch["scale"]
        self._seconds = time.monotonic() - self._started
        if trainer.progress_bar_callback is None:
            return
        shown = {"scale": float(self._scale), "images/s": self._images / self._seconds}
        pl_module.log_dict(shown, prog_bar=True, logger=False, batch_size=1)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write the row and the line."""
        if not trainer.is_global_zero:
            return
        data: MultiScaleDataModule = trainer.datamodule  # type: ignore[attr-defined]
        seen, plan = fresh_metrics(trainer), data.plan(trainer.current_epoch)
        row: dict[str, float] = {
            "epoch": trainer.current_epoch,
            "step": trainer.global_step,
            "scale": self._scale,
            "lr": trainer.optimizers[0].param_groups[-1]["lr"],
            "images": plan.images,
            "megapixels": round(plan.pixels / 1e6, 3),
            "seconds": round(self._seconds, 3),
            "images_per_s": round(plan.images / self._seconds, 1),
        } | {name: seen[name] for name in COLUMNS if name in seen and name != "scale"}
        row |= {"val_scale": data.val_scale} if "val_acc1" in row else {}
        self._rows.append({name: _short(row[name]) if name in row else "" for name in COLUMNS})
        write_csv(self.path, self._rows)
        log.info(
            "%s%s",
            _line(row, trainer.max_epochs or 0),
            self._left(data, trainer.current_epoch, trainer.max_epochs or 0),
        )

    def _left(self, data: MultiScaleDataModule, epoch: int, epochs: int) -> str:
        """Say how long the other epochs may take, by those of this run so far."""
        steps = data.plan(epoch).steps
        done = data.schedule.work(range(epoch + 1), steps)
        left = data.schedule.work(range(epoch + 1, epochs), steps)
        seconds = left / done * sum(float(row["seconds"]) for row in self._rows)
        return f"  {duration(seconds)} left" if left else ""

    def state_dict(self) -> dict[str, Any]:
        """Return the rows so far, and what is counted of this epoch."""
        return {"rows": self._rows, "seconds": self._seconds}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from the rows so far: what was written after the checkpoint is written again."""
        self._rows = [dict.fromkeys(COLUMNS, "") | row for row in state_dict["rows"]]
        self._seconds = state_dict["seconds"]


class RunClock(Callback):
    """Counts the seconds of a run since ``started``, those before the checkpoint that it resumes from included."""

    def __init__(self, started: float | None = None) -> None:
        self._started = time.monotonic() if started is None else started

    @property
    def seconds(self) -> float:
        """Return the seconds of all parts of the run."""
        return time.monotonic() - self._started

    def state_dict(self) -> dict[str, Any]:
        """Return the seconds so far."""
        return {"seconds": self.seconds}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Add the seconds of the earlier parts."""
        self._started -= state_dict["seconds"]


def fresh_metrics(trainer: pl.Trainer) -> dict[str, float]:
    """Return the metrics of this epoch; Lightning's also hold the validation of an earlier one."""
    every = trainer.check_val_every_n_epoch or 1
    validated = (trainer.current_epoch + 1) % every == 0
    return {
        name: float(value)
        for name, value in trainer.callback_metrics.items()
        if validated or not name.startswith("val_")
    }


def _short(value: float) -> str:
    return str(value) if isinstance(value, int) else f"{value:.6g}"


def _line(row: dict[str, float], epochs: int) -> str:
    parts = [
        f"epoch {row['epoch'] + 1:>3}/{epochs}",
        f"scale {row['scale']:>4}",
        f"loss {row['train_loss']:.3f}",
        f"train {row['train_acc1']:6.1%}",
    ]
    if "val_acc1" in row:
        parts.append(f"val at {row['val_scale']} {row['val_acc1']:6.1%}")
    return "  ".join([*parts, f"{row['images_per_s']:.0f} images/s"])


class ScaleBar(TQDMProgressBar):
    """A progress bar without the version number, for terminals."""

    def get_metrics(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> dict[str, Any]:
        """Return what stands beside the bar."""
        shown = super().get_metrics(trainer, pl_module)
        shown.pop("v_num", None)
        return shown


class LargestShapeFirst(Callback):
    """Trains the largest batch once before epoch 1, so that what does not fit in memory fails then.

    Weights, batch-norm statistics and random numbers are left as they were.
    """

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Try the largest batch; raises ``ConfigError`` with the batch size to try."""
        data: MultiScaleDataModule = trainer.datamodule  # type: ignore[attr-defined]
        largest = data.largest_batch()
        images = len(largest.indices)
        height, width = largest.size
        if not _fits(trainer, pl_module, images, height, width):
            fitting = images // 2
            while fitting > 1 and not _fits(trainer, pl_module, fitting, height, width):
                fitting //= 2
            advice = (
                f"try data.batch_size={fitting}" if fitting > 1 else "no batch fits; use a smaller scale or network"
            )
            raise ConfigError(f"a batch of {images} images at {height}x{width} does not fit in memory: {advice}")


def _fits(trainer: pl.Trainer, module: pl.LightningModule, images: int, height: int, width: int) -> bool:
    if not isinstance(module, LitSppClassifier):
        raise TypeError(f"LargestShapeFirst goes with LitSppClassifier, got {type(module).__name__}")
    buffers = {name: buffer.clone() for name, buffer in module.named_buffers()}
    with torch.random.fork_rng():
        try:
            batch = torch.zeros(images, 3, height, width, dtype=torch.uint8, device=module.device)
            batch = batch.contiguous(memory_format=torch.channels_last)
            with trainer.precision_plugin.train_step_context():
                _, losses = module.loss(batch, torch.zeros(images, dtype=torch.long, device=module.device))
            losses.mean().backward()  # type: ignore[no-untyped-call]
        except (torch.OutOfMemoryError, RuntimeError) as error:
            if not isinstance(error, torch.OutOfMemoryError) and "memory" not in str(error):
                raise
            return False
        finally:
            module.zero_grad(set_to_none=True)
            with torch.no_grad():
                for name, buffer in module.named_buffers():
                    buffer.copy_(buffers[name])
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
    return True
