"""Training itself: a validated spec in, checkpoints and summary.json out, in one process or in each of several."""

import re
import time
import traceback
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch

from sppcls.build import build_augment, build_classifier, build_schedule
from sppcls.data.catalog import Splits
from sppcls.data.decode import shown
from sppcls.errors import ConfigError, SppclsError, counted
from sppcls.files import write_json, write_text
from sppcls.measure.answers import surest
from sppcls.measure.dataset import scale_costs
from sppcls.measure.scales import Evaluation, ScaleRow, evaluate_scales, gap_subset
from sppcls.model_files import checkpoint_path
from sppcls.models.classifier import SppClassifier
from sppcls.process import Signals
from sppcls.signature import far_scales
from sppcls.spec import Spec
from sppcls.terminal import log, show, track
from sppcls.training.callbacks import RunClock
from sppcls.training.datamodule import MultiScaleDataModule
from sppcls.training.lines import plan_table
from sppcls.training.module import LitSppClassifier
from sppcls.training.optim import LOWEST, STEPS, balanced_weights, find_rate
from sppcls.training.overfitting import gap_seconds
from sppcls.training.trainer import build_trainer


def summarize(
    spec: Spec, network: SppClassifier, data: MultiScaleDataModule, folder: Path, trainer: pl.Trainer
) -> dict[str, Any]:
    """Measure the trained network and return what summary.json holds; the answers and mistakes go beside it."""
    own, values = data.val_scale, spec.data
    how = values.model_dump(include={"fit", "batch_size", "num_workers", "max_aspect"})
    options: dict[str, Any] = how | {"device": trainer.strategy.root_device, "bar": True}
    summary: dict[str, Any] = {"acc1": None, "generalization_gap": None, "scales": []}
    if data.val is not None:
        wanted = [scale for scale in spec.test_scales if scale >= network.smallest]
        scales = {own, *wanted}
        result = evaluate_scales(network, Evaluation(data.val, **options), sorted(scales))
        result.answers.save(folder)
        chosen = (data.val, result.answers, network.classes, own)
        examples = {"worst": surest(*chosen, right=False), "right": surest(*chosen, right=True)}
        write_json(folder / "mistakes.json", {"scale": own, "classes": network.classes} | examples)
        at_own = next(row for row in result.rows if row.scale == own)
        # Over the scales that were asked for: variants of a sweep may be validated at different ones.
        summary |= result.over(wanted or scales).summary()
        summary |= {"scales": [asdict(row) for row in result.rows], "acc1": at_own.acc1}
        if spec.metrics.gap_images:
            part, at = gap_subset(data.train, spec.metrics.gap_images), sorted({*spec.gap_scales, own} & scales)
            val = {row.scale: row.acc1 for row in result.rows}
            on_train = evaluate_scales(network, Evaluation(part, **options), at).rows
            gaps = [gap_row(row, val[row.scale]) for row in on_train]
            at_own_scale = gaps[at.index(own)]
            summary |= {key: at_own_scale[key] for key in ("train_acc1", "generalization_gap")} | {"gaps": gaps}
    how = values.model_dump(include={"fit", "batch_size", "max_aspect"})
    costs = scale_costs(data.train.sizes, data.schedule.choices, **how)
    return summary | {
        "val_scale": own,
        "epochs": trainer.current_epoch,
        "train_megapixels": round(sum(data.plan(e).pixels for e in range(trainer.current_epoch)) / 1e6, 3),
        "parameters": sum(p.numel() for p in network.parameters()),
        "seed": spec.seed,
        "label_smoothing": spec.optim.label_smoothing,
        "classes": len(network.classes),
        "train_images": len(data.train.targets),
        "train_repeats": data.plan(0).repeats,
        "val_images": len(data.val.targets) if data.val else 0,
        "data_costs": [asdict(cost) for cost in costs],
    }


def gap_row(on_train: ScaleRow, val_acc1: float) -> dict[str, float]:
    """Return the generalization gap at one scale: training less validation accuracy."""
    gap = on_train.acc1 - val_acc1
    return {"scale": on_train.scale, "train_acc1": on_train.acc1, "generalization_gap": gap}


def fit(spec: Spec, folder: Path, signals: Signals, splits: Splits) -> None:
    """Train as ``spec`` says and measure the network; rank 0 writes into ``folder``."""
    started = time.monotonic()
    pl.seed_everything(spec.seed, workers=True, verbose=False)
    network = build_classifier(spec.model, splits.train.classes, spec.schedule.scales, pretrained=spec.resume is None)
    _check_scales(spec, network)
    _warn_of_scales(spec, network)
    if spec.trainer.channels_last:
        network.to(memory_format=torch.channels_last)
    data = build_data(spec, splits, network.mean)
    trainer = build_trainer(spec, folder, signals, started)
    data.trainer = trainer  # before Lightning does, for the plan of as many ranks as there are
    show(_device_line(trainer), plan_table(spec, data.planner, trainer.world_size))
    if data.caches:  # their room is taken here, before the first epoch
        show(data.cache_line)
    lr = _rate(spec, network, data, trainer.strategy.root_device)
    module = LitSppClassifier(
        network,
        mixup=spec.augment.mixup,
        cutmix=spec.augment.cutmix,
        loss_weights=balanced_weights(data.train) if spec.optim.class_weights == "balanced" else None,
        compile=spec.trainer.compile,
        spec=spec,
        **spec.optim.model_dump() | {"lr": lr},
    )
    if trainer.is_global_zero:
        data.identity.save(folder)
    resumed = checkpoint_path(spec.resume) if spec.resume else None
    with _named(resumed):
        trainer.fit(module, datamodule=data, ckpt_path=resumed, weights_only=True)
    skipped = _skipped(splits, data, trainer)
    if torch.distributed.is_initialized():  # its threads may not outlive the interpreter
        torch.distributed.destroy_process_group()
    if not trainer.is_global_zero:
        return
    if skipped:
        write_text(folder / "skipped.txt", "".join(f"{shown(path)}\t{why}\n" for path, why in skipped.items()))
        log.warning("unreadable, left out, listed in skipped.txt: %s", counted(len(skipped), "file"))
    summary = summarize(spec, network, data, folder, trainer)
    clock = next(one for one in trainer.callbacks if isinstance(one, RunClock))  # type: ignore[attr-defined]
    seconds = {"seconds": round(clock.seconds, 1), "gap_seconds": round(gap_seconds(folder), 1)}
    rates = {"lr": trainer.lr_scheduler_configs[0].scheduler.base_lrs[-1]}
    write_json(folder / "summary.json", summary | seconds | rates)


def _rate(spec: Spec, network: SppClassifier, data: MultiScaleDataModule, device: torch.device) -> float:
    """Return the rate asked for, or found; a run that is resumed has it in the optimiser's state."""
    if spec.optim.lr != "auto":
        return spec.optim.lr
    if spec.resume:
        return LOWEST
    with closing(data.trial_batches(STEPS)) as batches:
        shown = track(batches, "finding optim.lr", STEPS)
        found = find_rate(network, spec.optim, shown, device)
    log.info("optim.lr=auto: %g", found)
    return found


@contextmanager
def _named(resumed: Path | None) -> Iterator[None]:
    """Say which file it is that cannot be restored: Lightning's errors name a key of it at most."""
    try:
        yield
    except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
        called = (frame.name for frame in traceback.extract_tb(error.__traceback__))
        if resumed is None or not any(re.search("restore|load_.*state", name) for name in called):
            raise
        raise SppclsError(f"{resumed} cannot be resumed: {type(error).__name__}: {str(error)[:200]}") from None


def build_data(
    spec: Spec, splits: Splits, mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
) -> MultiScaleDataModule:
    """Return the datamodule of a run."""
    return MultiScaleDataModule(
        splits.train,
        splits.val,
        schedule=build_schedule(spec),
        val_scale=spec.val_scale,
        batch_size=spec.data.batch_size,
        fit=spec.data.fit,
        augment=build_augment(spec.augment, spec.seed),
        num_workers=spec.data.num_workers,
        cache=spec.data.cache,
        gap_scales=spec.gap_scales if spec.metrics.gap_every and spec.metrics.gap_images else (),
        on_error=spec.data.on_error,
        max_aspect=spec.data.max_aspect,
        mean=mean,
        seed=spec.seed,
    )


def _device_line(trainer: pl.Trainer) -> str:
    device = trainer.strategy.root_device
    named = torch.cuda.get_device_name(device) if device.type == "cuda" else counted(torch.get_num_threads(), "thread")
    return f"device: {device} ({named})"


def _warn_of_scales(spec: Spec, network: SppClassifier) -> None:
    """Warn of levels that the map has too few cells for, and of test scales far from those that are trained."""
    largest = max(spec.schedule.scales)
    cells = -(-largest // network.trunk.stride)
    if spec.model.pool == "spp" and max(spec.model.levels) > cells:
        log.warning(
            "model.levels: %d bins a side of a map that has %d cells at scale %d, so bins repeat; use %d at most",
            max(spec.model.levels), cells, largest, cells,
        )  # fmt: skip
    if said := far_scales(spec.test_scales, spec.schedule.scales):
        log.warning("metrics.test_scales: %s", said)


def _check_scales(spec: Spec, network: SppClassifier) -> None:
    asked = {"schedule.scales": spec.schedule.scales, "metrics.test_scales": spec.metrics.test_scales}
    for key, scales in (asked | {"metrics.val_scale": (spec.val_scale,)}).items():
        small = [scale for scale in scales or () if scale < network.smallest]
        if small:
            raise ConfigError(
                f"{key}: {small[0]} is too small for model.backbone={spec.model.backbone}; "
                f"the smallest scale is {network.smallest}"
            )


def _skipped(splits: Splits, data: MultiScaleDataModule, trainer: pl.Trainer) -> dict[str, str]:
    """Return the files that no rank could read, each once, and why."""
    found = dict(splits.skipped) | data.skipped
    if trainer.world_size == 1:
        return found
    gathered: list[Any] = [None] * trainer.world_size
    torch.distributed.all_gather_object(gathered, found)
    return {path: why for skipped in gathered for path, why in skipped.items()}
