"""One run: a validated spec in, a run folder out."""

import os
import sys
import time
import traceback
from pathlib import Path

import numpy as np
import pytorch_lightning as pl
import torch

from sppcls.atomic import write_json, write_text
from sppcls.build import build_augment, build_classifier, build_schedule, build_splits
from sppcls.checkpoint import read_checkpoint
from sppcls.data.source import Source
from sppcls.data.sources import Splits
from sppcls.errors import ConfigError, SppclsError
from sppcls.models.classifier import SppClassifier
from sppcls.report.run_page import write_run_page, write_run_tables
from sppcls.spec import Spec
from sppcls.terminal import show
from sppcls.training.datamodule import MultiScaleDataModule
from sppcls.training.folder import RunFolder, log
from sppcls.training.module import LitSppClassifier
from sppcls.training.overfitting import gap_seconds
from sppcls.training.summary import closing_lines, plan_table, result_table, summarize
from sppcls.training.trainer import build_trainer


def run(spec: Spec, *, anew: bool = False) -> int:
    """Train, save and measure as ``spec`` says; returns the exit status, errors having been told in one line.

    ``anew`` takes away what a failed attempt has left in the run folder.
    """
    folder: RunFolder | None = None
    try:
        if spec.plan_only:
            show(plan_table(spec, build_data(spec, build_splits(spec.data))))
            return 0
        if spec.resume is not None:
            read_checkpoint(spec.resume)  # before anything is written into the folder
        folder = RunFolder(spec.run_dir, resume=spec.resume is not None, anew=anew)
        with folder.logging():
            _train(spec, folder)
    except (KeyboardInterrupt, SystemExit):
        # Lightning ends an interrupted fit with SystemExit.
        if folder:
            folder.write_status("interrupted")
        print(f"interrupted; resume={spec.run_dir} goes on", file=sys.stderr)
        return 130
    except Exception as error:
        return _told(error, folder)
    finally:
        if folder:
            folder.close()
    return 0


def _told(error: Exception, folder: RunFolder | None) -> int:
    line = str(error) if isinstance(error, SppclsError) else f"{type(error).__name__}: {error}".splitlines()[0]
    if folder:
        folder.write_status("failed", error=line)
        said = line if isinstance(error, SppclsError) else "".join(traceback.format_exception(error))
        with (folder.path / "train.log").open("a") as file:
            file.write(f"{said.rstrip()}\n")
    if os.environ.get("SPPCLS_DEBUG") == "1":
        raise error
    print(f"error: {line}", file=sys.stderr)
    return error.exit_status if isinstance(error, SppclsError) else 1


def build_data(
    spec: Spec, splits: Splits, mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
) -> MultiScaleDataModule:
    """Return the datamodule of a run."""
    return MultiScaleDataModule(
        splits.train,
        splits.val,
        schedule=build_schedule(spec),
        batch_size=spec.data.batch_size,
        fit=spec.data.fit,
        augment=build_augment(spec.augment, spec.seed),
        num_workers=spec.data.num_workers,
        cache=spec.data.cache,
        on_error=spec.data.on_error,
        max_aspect=spec.data.max_aspect,
        mean=mean,
        seed=spec.seed,
    )


def _train(spec: Spec, folder: RunFolder) -> None:
    started = time.monotonic()
    folder.write_config(spec)
    folder.write_status("running")
    pl.seed_everything(spec.seed, workers=True, verbose=False)
    splits = build_splits(spec.data)
    network = build_classifier(spec.model, splits.train.classes, spec.schedule.scales, pretrained=spec.resume is None)
    _check_scales(spec, network)
    if spec.trainer.channels_last:
        network.to(memory_format=torch.channels_last)
    data = build_data(spec, splits, network.mean)
    show(plan_table(spec, data))
    module = LitSppClassifier(
        network,
        mixup=spec.augment.mixup,
        cutmix=spec.augment.cutmix,
        loss_weights=_balanced(data.train) if spec.optim.class_weights == "balanced" else None,
        compile=spec.trainer.compile,
        spec=spec,
        **spec.optim.model_dump(),
    )
    trainer = build_trainer(spec, folder.path)
    resumed = str(Path(spec.resume) / "checkpoints" / "last.ckpt") if spec.resume else None
    trainer.fit(module, datamodule=data, ckpt_path=resumed, weights_only=True)
    if not trainer.is_global_zero:
        return
    _list_skipped(folder, splits, data)
    summary = summarize(spec, network, data, folder.path, trainer)
    summary["seconds"] = round(time.monotonic() - started, 1)
    summary["gap_seconds"] = round(gap_seconds(folder.path), 1)
    write_json(folder.path / "summary.json", summary)
    folder.write_status("finished")
    try:
        write_run_tables(folder.path)
        write_run_page(folder.path)
    except Exception as error:  # a page is no reason to call a trained network a failure
        log.warning("no report (%s: %s); `sppcls report %s` tries again", type(error).__name__, error, folder.path)
    show(result_table(summary), *closing_lines(summary, str(folder.path)))


def _check_scales(spec: Spec, network: SppClassifier) -> None:
    for key, scales in (("schedule.scales", spec.schedule.scales), ("metrics.test_scales", spec.metrics.test_scales)):
        small = [scale for scale in scales or () if scale < network.smallest]
        if small:
            raise ConfigError(
                f"{key}: {small[0]} is too small for model.backbone={spec.model.backbone}; "
                f"the smallest scale is {network.smallest}"
            )


def _balanced(source: Source) -> torch.Tensor:
    counts = np.bincount(source.targets, minlength=len(source.classes))
    return torch.tensor(len(source.targets) / (len(counts) * counts), dtype=torch.float32)


def _list_skipped(folder: RunFolder, splits: Splits, data: MultiScaleDataModule) -> None:
    skipped = dict(splits.skipped)
    for loader in data.loaders.values():
        skipped |= loader.skipped
    if skipped:
        write_text(folder.path / "skipped.txt", "".join(f"{path}\t{why}\n" for path, why in skipped.items()))
        log.warning("%d files cannot be read and are left out: see skipped.txt", len(skipped))
