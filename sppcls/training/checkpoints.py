"""Checkpoints that are whole or not there: written beside, synced, renamed."""

import os
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Checkpoint
from pytorch_lightning.plugins.io import CheckpointIO

from sppcls.checkpoint import read_checkpoint
from sppcls.training.callbacks import fresh_metrics


class DurableCheckpointIO(CheckpointIO):
    """Saves beside, syncs and renames; loads tensors and plain values only."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Write the checkpoint so that ``path`` holds the old or the new one, whole, whatever happens."""
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        beside = target.with_name(f".{target.name}.{os.getpid()}")
        try:
            with beside.open("wb") as file:
                torch.save(checkpoint, file)
                file.flush()
                os.fsync(file.fileno())
            beside.replace(target)
        finally:
            beside.unlink(missing_ok=True)

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = True) -> dict[str, Any]:
        """Load a checkpoint with ``weights_only=True``, whatever is asked."""
        return read_checkpoint(path)

    def remove_checkpoint(self, path: Any) -> None:
        """Delete a checkpoint."""
        Path(path).unlink(missing_ok=True)


class SaveLastAndBest(Checkpoint):
    """Keeps ``last.ckpt`` (each epoch, and every so many steps) and ``best.ckpt`` (highest ``val_acc1``)."""

    def __init__(self, folder: Path, every_steps: int | None = None) -> None:
        self.folder = folder
        self.every_steps = every_steps
        self.best = -1.0

    def on_train_batch_end(self, trainer: pl.Trainer, *args: Any) -> None:
        """Save ``last.ckpt`` inside an epoch."""
        step = trainer.global_step
        if self.every_steps and step and step % self.every_steps == 0 and not trainer.is_last_batch:
            trainer.save_checkpoint(self.folder / "last.ckpt")

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save ``last.ckpt``, and ``best.ckpt`` when validation accuracy is the highest so far."""
        accuracy = fresh_metrics(trainer).get("val_acc1", -1.0)
        improved = accuracy > self.best
        self.best = max(accuracy, self.best)
        trainer.save_checkpoint(self.folder / "last.ckpt")
        if improved:
            trainer.save_checkpoint(self.folder / "best.ckpt")

    def state_dict(self) -> dict[str, Any]:
        """Return the best accuracy so far."""
        return {"best": self.best}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from the best accuracy so far."""
        self.best = state_dict["best"]
