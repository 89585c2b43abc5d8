"""Tries the largest step before epoch 1."""

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback

from sppcls.data.geometry import Size
from sppcls.errors import ConfigError
from sppcls.training.datamodule import MultiScaleDataModule
from sppcls.training.module import LitSppClassifier


class LargestShapeFirst(Callback):
    """Trains the largest batch once before epoch 1, so that running out of memory fails early.

    Weights, batch-norm statistics and random generators are unchanged.
    """

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Try the largest batch; raises ``ConfigError`` with the batch size to try."""
        if not isinstance(pl_module, LitSppClassifier):
            return
        data: MultiScaleDataModule = trainer.datamodule  # type: ignore[attr-defined]
        images, size, tensors = data.largest_step()
        fitting = images
        while fitting and not _fits(trainer, pl_module, fitting, size, tensors):
            fitting //= 2
        if fitting < images:
            key, value = "batch_size", fitting
            if pixels := data.planner.step_pixels:
                key, value = "batch_pixels", pixels * fitting // images
            advice = f"try data.{key}={value}" if fitting > 1 else "use a smaller scale or network"
            raise ConfigError(f"a batch of {images} images at {size[0]}x{size[1]} does not fit in memory: {advice}")


def _fits(trainer: pl.Trainer, module: LitSppClassifier, images: int, size: Size, tensors: int) -> bool:
    buffers = {name: buffer.clone() for name, buffer in module.named_buffers()}
    with torch.random.fork_rng():
        try:
            batch = torch.zeros(images, *size, 3, dtype=torch.uint8, device=module.device).permute(0, 3, 1, 2)
            targets = torch.zeros(images, dtype=torch.long, device=module.device)
            with trainer.precision_plugin.train_step_context():
                _, losses = module.loss(batch.chunk(tensors), targets.chunk(tensors))
            torch.autograd.backward(losses.mean())
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
