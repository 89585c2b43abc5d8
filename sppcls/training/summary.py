"""What a trained network is worth: summary.json, and beside it the answers and the mistakes."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytorch_lightning as pl

from sppcls.atomic import write_json
from sppcls.data.doctor import scale_costs
from sppcls.measure.mistakes import surest_right, worst_mistakes
from sppcls.measure.result import ScaleRow
from sppcls.measure.scales import evaluate_scales, gap_subset
from sppcls.models.classifier import SppClassifier
from sppcls.spec import Spec
from sppcls.training.datamodule import MultiScaleDataModule


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
        result = evaluate_scales(network, data.val, sorted(scales), **options)
        result.answers.save(folder)
        chosen = (data.val, result.answers, network.classes, own)
        examples = {"worst": worst_mistakes(*chosen), "right": surest_right(*chosen)}
        write_json(folder / "mistakes.json", {"scale": own, "classes": network.classes} | examples)
        at_own = next(row for row in result.rows if row.scale == own)
        # Over the scales that were asked for: variants of a sweep may be validated at different ones.
        summary |= result.over(wanted or scales).summary()
        summary |= {"scales": [asdict(row) for row in result.rows], "acc1": at_own.acc1}
        if spec.metrics.gap_images:
            part, at = gap_subset(data.train, spec.metrics.gap_images), sorted({*spec.gap_scales, own} & scales)
            val = {row.scale: row.acc1 for row in result.rows}
            gaps = [gap_row(row, val[row.scale]) for row in evaluate_scales(network, part, at, **options).rows]
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
