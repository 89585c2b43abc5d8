"""Checkpoints while a network trains: what is saved and when, and the state of the generators."""

import time
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Checkpoint
from pytorch_lightning.plugins.io import CheckpointIO

from sppcls.checkpoints import BEST, LAST, save_whole
from sppcls.errors import SppclsError
from sppcls.model_files import read_checkpoint
from sppcls.process import Signals
from sppcls.training.callbacks import fresh_metrics

# A save is not begun before this many times as long as the last one took, so that saving costs at most 3 %.
_SPARE = 32


class DurableCheckpointIO(CheckpointIO):
    """Saves whole or not at all, with a digest; loads tensors and plain values only."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Write the checkpoint so that ``path`` holds the old or the new one, whole, whatever happens."""
        target = Path(path)
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            save_whole(target, lambda file: torch.save(checkpoint, file))
        except (OSError, RuntimeError) as error:
            # torch tells a full disk as a RuntimeError of its own, with the OSError behind it or without.
            reason = next((e.strerror for e in (error, error.__context__) if isinstance(e, OSError)), None) or error
            left = "the checkpoint before it is whole" if target.exists() else "nothing is saved yet"
            raise SppclsError(f"{target} cannot be written: {reason}; {left}") from None

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = True) -> dict[str, Any]:
        """Load a checkpoint with ``weights_only=True``, whatever is asked."""
        return read_checkpoint(path)

    def remove_checkpoint(self, path: Any) -> None:
        """Delete a checkpoint."""
        Path(path).unlink(missing_ok=True)


class SaveLastAndBest(Checkpoint):
    """Keeps ``last.ckpt`` (each epoch and inside it) and ``best.ckpt`` (highest ``val_acc1``).

    Args:
        folder: Where they go.
        every_steps: Save inside an epoch after so many steps.
        every_minutes: Save inside an epoch after so many minutes, or later where a save takes long.
        signals: Where signals arrive: at the next batch the run saves and ends with ``Interrupted``.
    """

    def __init__(
        self,
        folder: Path,
        every_steps: int | None = None,
        every_minutes: float | None = None,
        signals: Signals | None = None,
    ) -> None:
        self.folder, self.every_steps, self.every_minutes = folder, every_steps, every_minutes
        self.signals = signals or Signals()
        self.best = -1.0
        self._saved_at, self._took = time.monotonic(), 0.0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Take signals from Lightning, which would end the run without saving, and hold them until a batch is done."""
        if trainer.is_global_zero:
            self.folder.mkdir(parents=True, exist_ok=True)
        self._saved_at = time.monotonic()
        self.signals.defer()

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Let signals end the program at once again, also one that has just come."""
        self.signals.defer(False)
        if self.signals.received is not None:
            self.signals.end()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Let signals end the program at once again."""
        self.signals.defer(False)

    def on_train_batch_end(self, trainer: pl.Trainer, *args: Any) -> None:
        """Save inside an epoch, where it is time or a signal has come; its last batch is saved with the epoch."""
        if trainer.is_last_batch or not self._agreed(trainer, self._is_time(trainer.global_step)):
            return
        self._save(trainer, LAST)
        self._end_if_signalled(trainer)

    def _is_time(self, step: int) -> bool:
        if self.signals.received is not None or (self.every_steps and step % self.every_steps == 0):
            return True
        waited = time.monotonic() - self._saved_at
        return self.every_minutes is not None and waited >= max(60 * self.every_minutes, _SPARE * self._took)

    def _end_if_signalled(self, trainer: pl.Trainer) -> None:
        if self._agreed(trainer, self.signals.received is not None):
            self.signals.end()

    def _agreed(self, trainer: pl.Trainer, wish: bool) -> bool:
        """Return whether any rank wishes it: they save and end together or not at all."""
        return trainer.strategy.reduce_boolean_decision(wish, all=False) if trainer.world_size > 1 else wish

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save ``best.ckpt`` when validation accuracy is the highest so far, then ``last.ckpt``."""
        accuracy = fresh_metrics(trainer).get("val_acc1", -1.0)
        improved = accuracy > self.best
        self.best = max(accuracy, self.best)
        if improved:  # first: killed before the second, the run does this epoch's end again
            self._save(trainer, BEST)
        self._save(trainer, LAST)
        self._end_if_signalled(trainer)

    def _save(self, trainer: pl.Trainer, name: str) -> None:
        if trainer.is_global_zero and not self.folder.is_dir():
            raise SppclsError(f"{self.folder} is gone: the run folder was removed while it trained")
        started = time.monotonic()
        trainer.save_checkpoint(self.folder / name)
        self._saved_at = time.monotonic()
        self._took = self._saved_at - started

    def state_dict(self) -> dict[str, Any]:
        """Return the best accuracy so far."""
        return {"best": self.best}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from the best accuracy so far."""
        self.best = float(state_dict["best"])
