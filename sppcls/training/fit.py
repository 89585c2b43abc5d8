"""The training itself: from a validated spec to checkpoints and summary.json, in one process or in each of several."""

import time
from collections.abc import Collection
from contextlib import closing
from copy import deepcopy
from dataclasses import asdict
from pathlib import Path
from typing import cast

import pytorch_lightning as pl
import torch

from sppcls.build import build_augment, build_network, build_schedule
from sppcls.checkpoints import CALIBRATED, Content, save_whole
from sppcls.data.catalog import Splits
from sppcls.data.decode import shown
from sppcls.data.source import Source, class_difference
from sppcls.errors import ConfigError, DataError, SppclsError, counted
from sppcls.files import write_json, write_text
from sppcls.measure.answers import surest
from sppcls.measure.dataset import scale_costs
from sppcls.measure.mixing import mixing
from sppcls.measure.scales import ScaleResult, evaluate_scales, gap_subset
from sppcls.measure.views import calibrated
from sppcls.model_files import KEY, describe, load, resumable
from sppcls.models.backbones import Triple
from sppcls.models.classifier import SppClassifier
from sppcls.process import Signals
from sppcls.report.run_lines import plan_lines
from sppcls.run_folder import INSIDE, MISTAKES, SKIPPED, SUMMARY, GapRow, Summary
from sppcls.signature import far_scales, refuse_small
from sppcls.spec import Spec
from sppcls.terminal import log, show, track
from sppcls.training.callbacks import Curves
from sppcls.training.datamodule import MultiScaleDataModule, gathered
from sppcls.training.module import LitSppClassifier
from sppcls.training.optim import LOWEST, STEPS, balanced_weights, find_rate
from sppcls.training.overfitting import GapCurves, measuring
from sppcls.training.preflight import Resumed
from sppcls.training.trainer import Callback, build_trainer


def fit(spec: Spec, folder: Path, signals: Signals, splits: Splits, resumed: Resumed | None = None) -> None:
    """Train according to ``spec`` and measure the network; rank 0 writes into ``folder``."""
    started = time.monotonic()
    pl.seed_everything(spec.seed, workers=True, verbose=False)
    network = build_network(spec, splits.train.classes, pretrained=spec.resume is None)
    if spec.model.start and not spec.resume:
        _start(network, spec.model.start)
    _check_scales(spec, network)
    if spec.metrics.recalibrate:  # a trial, so that it fails before the training and not after it
        try:
            deepcopy(network.trunk).norm_per_scale(_measured_at(spec, network), name=spec.model.backbone)
        except ConfigError as error:
            raise ConfigError(f"metrics.recalibrate={spec.metrics.recalibrate}: {error}") from None
    if spec.trainer.channels_last:
        network.to(memory_format=torch.channels_last)
    data = build_data(spec, splits, network.mean, network.multiple)
    trainer = build_trainer(spec, folder, signals, started, resumed)
    data.trainer = trainer  # before Lightning does, so that the plan knows the number of ranks
    show(_device_line(trainer.strategy.root_device))
    mixed = mixing(data.planner, data.train.targets, trainer.world_size)
    show(*plan_lines(spec, data.planner, mixed, trainer.world_size))
    if data.caches:  # they are allocated here, before the first epoch
        show(data.cache_line)
    module = _module(spec, network, data, trainer.strategy.root_device)
    if trainer.is_global_zero:
        data.identity.save(folder)
    _run(trainer, module, data, resumed.file if resumed else resumable(spec.resume) if spec.resume else None)
    found = gathered(dict(splits.skipped) | data.skipped, trainer.world_size)
    skipped = {path: why for of_rank in found for path, why in of_rank.items()}
    if torch.distributed.is_initialized():  # its threads must not outlive the interpreter
        torch.distributed.destroy_process_group()
    if not trainer.is_global_zero:
        return
    if skipped:
        write_text(folder / SKIPPED, "".join(f"{shown(path)}\t{why}\n" for path, why in skipped.items()))
        log.warning("skipped as unreadable, listed in skipped.txt: %s", counted(len(skipped), "file"))
    if spec.metrics.recalibrate and data.val is not None:
        network = _recalibrated(spec, network, data, folder, trainer)
    measured = _measured(spec, network, splits, folder, trainer.strategy.root_device)
    write_json(folder / SUMMARY, measured | _facts(spec, network, data, trainer) | {"mixing": asdict(mixed)})


def build_data(spec: Spec, splits: Splits, mean: Triple, multiple: int) -> MultiScaleDataModule:
    """Return the datamodule of a run, for a network with this mean and `multiple`."""
    own = {"batch_size", "batch_pixels", "fit", "mix", "batches", "num_workers", "cache", "on_error", "max_aspect"}
    how = spec.data.model_dump(include=own)
    return MultiScaleDataModule(
        splits.train,
        splits.val,
        schedule=build_schedule(spec),
        val_scale=spec.val_scale,
        augment=build_augment(spec.augment, spec.seed),
        gap_scales=spec.gap_scales if spec.metrics.gap_every and spec.metrics.gap_images else (),
        mean=mean,
        multiple=multiple,
        seed=spec.seed,
        **how,
    )


def _start(network: SppClassifier, place: str) -> None:
    """Give the network the weights of another one."""
    other = load(place).network
    if differ := class_difference(network.classes, other.classes):
        raise DataError(f"model.start={place}: its classes differ from the data's ({differ}); give the same data set")
    try:
        network.load_state_dict(other.state_dict())
    except RuntimeError as error:
        said = " ".join(str(error).split())[:200]
        raise ConfigError(f"model.start={place} is of other model settings ({said}); use its own") from None


def _module(spec: Spec, network: SppClassifier, data: MultiScaleDataModule, device: torch.device) -> LitSppClassifier:
    lr = spec.optim.lr
    if lr == "auto" and spec.resume:
        lr = LOWEST  # the optimiser's state has the one that was found
    elif lr == "auto":
        with closing(data.trial_batches(STEPS)) as batches:
            lr = find_rate(network, spec.optim, track(batches, "finding optim.lr", STEPS), device)
        log.info("optim.lr=auto: %g", lr)
    return LitSppClassifier(
        network,
        mixup=spec.augment.mixup,
        cutmix=spec.augment.cutmix,
        loss_weights=balanced_weights(data.train) if spec.optim.class_weights == "balanced" else None,
        compile=spec.trainer.compile,
        spec=spec,
        **spec.optim.model_dump() | {"lr": lr},
    )


def _run(trainer: pl.Trainer, module: LitSppClassifier, data: MultiScaleDataModule, resumed: Path | None) -> None:
    try:
        trainer.fit(module, datamodule=data, ckpt_path=resumed, weights_only=True)
    except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
        if resumed is None or module.started:
            raise
        # Lightning's errors name a key of the file at most.
        raise SppclsError(f"{resumed} cannot be resumed: {type(error).__name__}: {str(error)[:200]}") from None


def _measured(spec: Spec, network: SppClassifier, splits: Splits, folder: Path, device: torch.device) -> Summary:
    """Measure the trained network at every test scale; the answers and mistakes go into ``folder``."""
    part, own = splits.test if spec.metrics.part == "test" else splits.val, spec.val_scale
    if part is None:
        return {"acc1": None, "generalization_gap": None, "scales": []}

    def measured(source: Source, scales: Collection[int]) -> ScaleResult:
        return evaluate_scales(network, measuring(spec, source, device, bar=True), sorted(scales))

    wanted = _measured_at(spec, network)
    result = measured(part, {own, *wanted})
    result.answers.save(folder)
    chosen = (part, result.answers, network.classes, own)
    examples = {"worst": surest(*chosen, right=False), "right": surest(*chosen, right=True)}
    write_json(folder / MISTAKES, {"scale": own, "classes": network.classes} | examples)
    acc1s = {row.scale: row.acc1 for row in result.rows}
    # Over the requested scales: variants of a sweep may be validated at different ones.
    summary = cast(Summary, result.over(wanted or acc1s.keys()).summary())
    summary["agreement"] = result.agreement()  # of all rows, as the table is
    summary |= {"part": spec.metrics.part, "acc1": acc1s[own], "generalization_gap": None}
    summary["scales"] = [asdict(row) for row in result.rows]
    if spec.metrics.gap_images:
        some = gap_subset(splits.train, spec.metrics.gap_images)
        train = {row.scale: row.acc1 for row in measured(some, {*spec.gap_scales, own} & acc1s.keys()).rows}
        gaps: list[GapRow] = [
            {"scale": scale, "train_acc1": acc1, "generalization_gap": acc1 - acc1s[scale]}
            for scale, acc1 in train.items()
        ]
        summary |= {"train_acc1": train[own], "generalization_gap": train[own] - acc1s[own], "gaps": gaps}
    return summary


def _measured_at(spec: Spec, network: SppClassifier) -> list[int]:
    return [scale for scale in spec.test_scales if scale >= network.signature.smallest_scale]


def _recalibrated(
    spec: Spec, network: SppClassifier, data: MultiScaleDataModule, folder: Path, trainer: pl.Trainer
) -> SppClassifier:
    """Return the network with batch-norm statistics for each test scale, and save it beside the last checkpoint."""
    images, scales = spec.metrics.recalibrate, sorted({data.val_scale, *_measured_at(spec, network)})
    log.info(
        "batch norm: statistics of %s at each of scales %s",
        counted(images, "training image"),
        ", ".join(map(str, scales)),
    )
    if spec.model.freeze == "backbone":
        log.warning("metrics.recalibrate: the head was trained on the frozen trunk's statistics; it may lose by others")
    look = measuring(spec, data.train, trainer.strategy.root_device)
    renewed = calibrated(network, scales, look, images, spec.data.mix, spec.data.batches)
    content: Content = {KEY: describe(renewed, spec), "epoch": trainer.current_epoch - 1}
    content["state_dict"] = {f"network.{name}": tensor for name, tensor in renewed.state_dict().items()}
    save_whole(folder / INSIDE / CALIBRATED, lambda file: torch.save(content, file))
    return renewed


def _facts(spec: Spec, network: SppClassifier, data: MultiScaleDataModule, trainer: pl.Trainer) -> Summary:
    """Return what a run was, beside what was measured."""
    costs = scale_costs(data.planner, data.schedule.choices)
    seen = sum(data.plan(epoch).pixels for epoch in range(trainer.current_epoch))
    callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
    return {
        "val_scale": data.val_scale,
        "epochs": trainer.current_epoch,
        "seconds": round(sum(one.run_seconds for one in callbacks if isinstance(one, Curves)), 1),
        "gap_seconds": round(sum(one.seconds for one in callbacks if isinstance(one, GapCurves)), 1),
        "lr": float(trainer.lr_scheduler_configs[0].scheduler.base_lrs[-1]),
        "train_megapixels": round(seen * spec.optim.passes / 1e6, 3),
        "parameters": sum(p.numel() for p in network.parameters()),
        "seed": spec.seed,
        "label_smoothing": spec.optim.label_smoothing,
        "classes": len(network.classes),
        "train_images": len(data.train.targets),
        "train_repeats": data.plan(0).repeats,
        "val_images": len(data.val.targets) if data.val else 0,
        "data_costs": [asdict(cost) for cost in costs],
    }


def _device_line(device: torch.device) -> str:
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else counted(torch.get_num_threads(), "thread")
    return f"device: {device} ({name})"


def _check_scales(spec: Spec, network: SppClassifier) -> None:
    """Refuse scales that are too small; warn of levels with more bins than cells, and of test scales far off."""
    asked = {"schedule.scales": spec.schedule.scales, "metrics.test_scales": spec.metrics.test_scales}
    for key, scales in (asked | {"metrics.val_scale": (spec.val_scale,)}).items():
        refuse_small(f"{key}:", scales or (), network.signature.smallest_scale, f"model.backbone={spec.model.backbone}")
    largest, bins = max(spec.schedule.scales), max(spec.model.levels)
    cells = -(-largest // network.trunk.stride)
    if spec.model.pool == "spp" and bins > cells:
        log.warning(
            "model.levels: %d bins per side, but the map has %d cells at scale %d, so bins repeat; use at most %d",
            bins, cells, largest, cells,
        )  # fmt: skip
    if far := far_scales(spec.test_scales, spec.schedule.scales):
        log.warning("metrics.test_scales: %s", far)
