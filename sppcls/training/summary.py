"""What a run says before and after training: the plan, the table, summary.json."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from rich.table import Table

from sppcls.atomic import write_json
from sppcls.data.doctor import scale_costs
from sppcls.measure.mistakes import surest_right, worst_mistakes
from sppcls.measure.result import ScaleRow
from sppcls.measure.scales import evaluate_scales, gap_subset
from sppcls.models.classifier import SppClassifier
from sppcls.report.page import scale_cells
from sppcls.spec import Spec
from sppcls.terminal import ece_column, table
from sppcls.training.datamodule import MultiScaleDataModule


def plan_table(spec: Spec, data: MultiScaleDataModule) -> Table:
    """Return the scale schedule as a table, a row for each stretch of epochs of one scale (24 rows at most)."""
    first_plan = data.plan(0)
    title = f"{spec.schedule.kind} schedule, data.fit={spec.data.fit}, {len(data.train.targets)} training images"
    if first_plan.world > 1:
        title += f", {first_plan.world} ranks, {first_plan.repeats} images twice an epoch"
    heads, rows = ["epochs", "scale", "batches", "smallest batch", "shapes", "padding", "megapixels"], []
    for first, last, scales in _stretches(spec, data)[:24]:
        plan = data.plan(first)
        epochs = f"{first + 1}" if first == last else f"{first + 1}-{last + 1}"
        padding = f"{plan.padding(data.train.sizes):.1%}" if spec.data.fit == "keep" else "-"
        cells = [len(plan.batches), plan.smallest, plan.shapes]
        rows.append([epochs, scales, *map(str, cells), padding, f"{plan.pixels / 1e6:.0f}"])
    return table(title, heads, rows)


def data_lines(data: MultiScaleDataModule, most: int = 10) -> list[str]:
    """Return what a run reads: the class names, the first ``most`` of them, and the images of both parts."""
    classes = data.train.classes
    more = f" and {len(classes) - most} more" if len(classes) > most else ""
    parts = {"training": data.train, "validation": data.val}
    images = ", ".join(f"{len(part.targets):,} {name}" for name, part in parts.items() if part)
    return [f"{len(classes)} classes: {', '.join(classes[:most])}{more}", f"images: {images}"]


def _stretches(spec: Spec, data: MultiScaleDataModule) -> list[tuple[int, int, str]]:
    stretches: list[tuple[int, int, str]] = []
    steps = data.plan(0).steps
    for epoch in range(spec.trainer.max_epochs):
        drawn = sorted(set(data.schedule.scales_of(epoch, steps)))
        shown = str(drawn[0]) if len(drawn) == 1 else f"{drawn[0]}..{drawn[-1]}"
        if stretches and stretches[-1][2] == shown:
            stretches[-1] = (stretches[-1][0], epoch, shown)
        else:
            stretches.append((epoch, epoch, shown))
    return stretches


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


def result_table(summary: dict[str, Any]) -> Table:
    """Return the short table at the end of a run."""
    rows = []
    for row in summary["scales"]:
        top1, _between, *cells = scale_cells(row)
        rows.append([f"{row['scale']}{' *' if row['trained'] else ''}", top1, *cells])
    columns = ["test scale", "top-1", "top-5", "loss", ece_column(summary)]
    return table("Validation, by test scale (* trained)", columns, rows)


def closing_lines(summary: dict[str, Any], folder: str) -> list[str]:
    """Return the lines below the table: the gap, the spread, the seconds, the folder."""
    lines = []
    if summary["acc1"] is not None:
        gap = summary["generalization_gap"]
        said = f", generalization gap {gap * 100:+.1f} points" if gap is not None else ""
        lines.append(f"top-1 {summary['acc1']:.1%} at scale {summary['val_scale']}{said}")
    if len(summary["scales"]) > 1:
        spread, consistency = summary["scale_spread"], summary["scale_consistency"]
        lines.append(f"scale spread {spread * 100:.1f} points, scale consistency {consistency:.1%}")
    if summary.get("gap_seconds", 0) >= 1:
        lines.append(f"gap curves: {summary['gap_seconds']:.0f} of {summary['seconds']:.0f} s (metrics.gap_every)")
    return [*lines, f"{summary['seconds']:.0f} s, {summary['parameters']:,} parameters", f"run folder: {folder}"]
