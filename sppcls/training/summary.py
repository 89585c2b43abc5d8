"""What a run says before and after training: the plan, the table, summary.json."""

import sys
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from sppcls.data.files import Subset
from sppcls.data.plan import padding_share
from sppcls.data.source import Source
from sppcls.measure.scales import evaluate_scales
from sppcls.models.classifier import SppClassifier
from sppcls.spec import Spec
from sppcls.training.datamodule import MultiScaleDataModule


def plan_table(spec: Spec, data: MultiScaleDataModule) -> Table:
    """Return the scale schedule as a table, a row for each stretch of epochs of one scale (24 rows at most)."""
    title = f"{spec.schedule.kind} schedule, data.fit={spec.data.fit}, {len(data.train.targets)} training images"
    table = Table("epochs", "scale", "batches", "smallest batch", "shapes", "padding", "megapixels", title=title)
    for first, last, scales in _stretches(spec, data)[:24]:
        plan = data.plan(first)
        pixels = sum(len(b.indices) * b.size[0] * b.size[1] for b in plan.batches)
        table.add_row(
            f"{first + 1}" if first == last else f"{first + 1}-{last + 1}",
            scales,
            str(len(plan.batches)),
            str(min(len(b.indices) for b in plan.batches)),
            str(len({b.size for b in plan.batches})),
            f"{padding_share(plan.batches, data.train.sizes):.1%}" if spec.data.fit == "keep" else "-",
            f"{pixels / 1e6:.0f}",
        )
    return table


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


def gap_subset(source: Source, images: int) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Return the fixed part of the training set that the generalization gap is measured on: evenly spread indices."""
    count = len(source.targets)
    return np.unique(np.linspace(0, count - 1, min(images, count)).round().astype(np.int64))


def summarize(
    spec: Spec, network: SppClassifier, data: MultiScaleDataModule, device: torch.device, *, epochs: int
) -> dict[str, Any]:
    """Measure the trained network on the validation set (and the gap) and return what summary.json holds."""
    scales = [scale for scale in spec.test_scales if scale >= network.smallest]
    options: dict[str, Any] = {
        "fit": spec.data.fit,
        "batch_size": spec.data.batch_size,
        "num_workers": spec.data.num_workers,
        "max_aspect": spec.data.max_aspect,
        "device": device,
    }
    last = data.last_scale
    result = evaluate_scales(network, data.val, sorted({*scales, last}), **options) if data.val else None
    summary: dict[str, Any] = {"acc1": None, "generalization_gap": None, "scales": []}
    if result is not None:
        at_last = next(row for row in result.rows if row.scale == last)
        summary["acc1"] = at_last.acc1
        summary |= {"scale_spread": result.spread, "scale_consistency": result.consistency, "scales": result.as_rows()}
        if spec.metrics.gap_images:
            part = Subset(data.train, gap_subset(data.train, spec.metrics.gap_images))
            on_train = evaluate_scales(network, part, [last], **options).rows[0].acc1
            summary |= {"train_acc1": on_train, "generalization_gap": on_train - at_last.acc1}
    return summary | {
        "last_scale": last,
        "epochs": epochs,
        "parameters": sum(p.numel() for p in network.parameters()),
        "seed": spec.seed,
        "classes": len(network.classes),
        "train_images": len(data.train.targets),
        "val_images": len(data.val.targets) if data.val else 0,
    }


def result_table(summary: dict[str, Any]) -> Table:
    """Return the short table at the end of a run."""
    table = Table("test scale", "top-1", "top-5", "loss", "ECE", title="Validation, by test scale (* trained)")
    for row in summary["scales"]:
        mark = " *" if row["trained"] else ""
        cells = [f"{row['acc1']:.1%}", f"{row['acc5']:.1%}", f"{row['loss']:.3f}", f"{row['ece']:.3f}"]
        table.add_row(f"{row['scale']}{mark}", *cells)
    return table


def closing_lines(summary: dict[str, Any], folder: str) -> list[str]:
    """Return the lines below the table: the gap, the spread, the seconds, the folder."""
    lines = []
    if summary["generalization_gap"] is not None:
        lines.append(
            f"top-1 {summary['acc1']:.1%} at scale {summary['last_scale']}, "
            f"generalization gap {summary['generalization_gap'] * 100:+.1f} points"
        )
    if "scale_spread" in summary:
        spread, consistency = summary["scale_spread"], summary["scale_consistency"]
        lines.append(f"scale spread {spread * 100:.1f} points, scale consistency {consistency:.1%}")
    return [*lines, f"{summary['seconds']:.0f} s, {summary['parameters']:,} parameters", f"run folder: {folder}"]


def show(*things: Any) -> None:
    """Print tables and lines; in colour and as wide as the terminal where there is one."""
    console = Console() if sys.stdout.isatty() else Console(width=100, color_system=None)
    for thing in things:
        console.print(thing, highlight=False)
