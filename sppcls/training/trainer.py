"""Lightning's trainer: its callbacks, its logger, its devices and how it writes checkpoints."""

import logging
import os
import sys
import warnings
from functools import partial
from pathlib import Path

import pytorch_lightning as pl
import torch
from lightning_fabric.utilities.warnings import PossibleUserWarning
from pytorch_lightning import loggers
from pytorch_lightning.callbacks import Callback as Callback
from pytorch_lightning.callbacks import EarlyStopping, TQDMProgressBar, WeightAveraging
from pytorch_lightning.plugins.io import TorchCheckpointIO

from sppcls.checkpoints import Content, save_whole
from sppcls.errors import ConfigError, SppclsError, missing_extra
from sppcls.model_files import read_checkpoint
from sppcls.plugins import plugin
from sppcls.process import Signals
from sppcls.run_folder import GAP, INSIDE, METRICS
from sppcls.spec import LoggerSpec, Spec
from sppcls.training.callbacks import Curves, SaveLastAndBest
from sppcls.training.largest import LargestShapeFirst
from sppcls.training.optim import ramped_average
from sppcls.training.overfitting import GapCurves
from sppcls.training.preflight import Resumed

_trainer = partial(pl.Trainer, use_distributed_sampler=False, enable_model_summary=False, num_sanity_val_steps=0)


class DurableCheckpointIO(TorchCheckpointIO):
    """Saves atomically, with a digest; loads only tensors and plain values.

    Checkpoints that are ``loaded`` already, by file, are handed out once.
    """

    def __init__(self, loaded: dict[Path, Content] | None = None) -> None:
        self._loaded = {} if loaded is None else loaded

    def save_checkpoint(self, checkpoint: Content, path: str | Path, storage_options: object = None) -> None:
        """Write the checkpoint atomically: ``path`` has the old or the new one, whatever happens."""
        target = Path(path)
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            save_whole(target, lambda file: torch.save(checkpoint, file))
        except (OSError, RuntimeError) as error:
            # torch reports a full disk as its own RuntimeError, with or without the OSError as its cause.
            reason = next((e.strerror for e in (error, error.__context__) if isinstance(e, OSError)), None) or error
            left = "the previous checkpoint is intact" if target.exists() else "no checkpoint is saved yet"
            raise SppclsError(f"{target} cannot be written: {reason}; {left}") from None

    def load_checkpoint(self, path: str | Path, *args: object, **kwargs: object) -> Content:
        """Load a checkpoint with ``weights_only=True``, whatever the argument."""
        return self._loaded.pop(Path(path), None) or read_checkpoint(path)


def build_trainer(
    spec: Spec,
    folder: Path,
    signals: Signals | None = None,
    started: float | None = None,
    resumed: Resumed | None = None,
) -> pl.Trainer:
    """Return a trainer that writes into ``folder``, shows a bar on a terminal, and saves and exits on a signal."""
    values, bar = spec.trainer, sys.stderr.isatty()
    callbacks = _callbacks(spec, folder, signals, started) + ([TQDMProgressBar(leave=False)] if bar else [])
    devices, nodes = _devices(spec)
    quiet_lightning()
    try:
        return _trainer(
            max_epochs=values.max_epochs,
            accelerator=values.accelerator,
            devices=devices,
            num_nodes=nodes,
            strategy=values.strategy,
            precision=values.precision,
            deterministic=values.deterministic,
            check_val_every_n_epoch=values.check_val_every,
            callbacks=callbacks,
            logger=_logger(spec.logger, folder),
            plugins=[DurableCheckpointIO(resumed.loaded if resumed else None)],
            default_root_dir=folder,
            log_every_n_steps=1 if spec.logger.name == "none" else 10,
            enable_progress_bar=bar,
        )
    except Exception as error:
        # Lightning checks accelerator, devices and strategy itself, in several exception classes.
        raise ConfigError(f"trainer: {' '.join(str(error).split())}") from None


def _callbacks(spec: Spec, folder: Path, signals: Signals | None, started: float | None) -> list[Callback]:
    values = spec.trainer
    every = values.checkpoint_every_steps, values.checkpoint_every_minutes
    callbacks: list[Callback] = [
        LargestShapeFirst(),
        Curves(folder / METRICS, started),
        SaveLastAndBest(folder / INSIDE, *every, signals),
    ]
    if spec.metrics.gap_every != 0 and spec.metrics.gap_images:
        callbacks.append(GapCurves(folder / GAP, spec))
    callbacks += [plugin("callbacks", name, "trainer.callbacks")(spec) for name in values.callbacks]
    if values.patience:
        callbacks.append(EarlyStopping("val_acc1", 0, values.patience, mode="max", check_on_train_epoch_end=False))
    # Last, so that callbacks that measure at the end of a validation still see the averaged weights.
    return callbacks + ([WeightAveraging(avg_fn=ramped_average(spec.optim.ema))] if spec.optim.ema else [])


def _devices(spec: Spec) -> tuple[int | str, int]:
    """Return devices per node and nodes: torchrun's if it has started the ranks, else as set."""
    if "GROUP_RANK" not in os.environ:
        return spec.trainer.devices, spec.trainer.num_nodes
    local, world = (int(os.environ[name]) for name in ("LOCAL_WORLD_SIZE", "WORLD_SIZE"))
    # Started ranks take the named devices in order.
    asked = spec.trainer.devices
    named = isinstance(asked, str) and len([part for part in asked.split(",") if part]) == local
    return asked if named else local, world // local


def plain_trainer(
    epochs: int, accelerator: str, *callbacks: Callback, plugins: DurableCheckpointIO | None = None
) -> pl.Trainer:
    """Return a trainer that only trains, for timings."""
    quiet_lightning()
    return _trainer(
        max_epochs=epochs,
        accelerator=accelerator,
        logger=False,
        callbacks=list(callbacks),
        enable_checkpointing=False,
        limit_val_batches=0,
        enable_progress_bar=False,
        plugins=plugins,
    )


def _logger(spec: LoggerSpec, folder: Path) -> loggers.Logger | bool:
    if spec.name == "none":
        return False
    try:
        if spec.name == "tensorboard":
            return loggers.TensorBoardLogger(folder, name="", version="tensorboard")
        if spec.name == "wandb":
            return loggers.WandbLogger(project=spec.project, save_dir=folder, name=folder.name)
        # A server if the environment names one, else a file of this run: MLflow no longer supports plain folders.
        server = os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{folder.resolve() / 'mlflow.db'}"
        return loggers.MLFlowLogger(experiment_name=spec.project, run_name=folder.name, tracking_uri=server)
    except ImportError:
        raise missing_extra(f"logger={spec.name}", spec.name) from None


def quiet_lightning() -> None:
    """Keep Lightning's advice off the terminal: the plan and the run folder already handle what it is about."""
    for name in ("pytorch_lightning", "lightning_fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", message=".*training_step. returned .None.*")  # a batch without a readable image
    warnings.filterwarnings("ignore", message=".*treespec, LeafSpec.*")  # Lightning 2.6 with torch 2.15
    # Advice on workers, logging intervals and checkpoint folders, which the plan and the run folder already handle.
    warnings.filterwarnings("ignore", category=PossibleUserWarning)
