"""What a run shows on the terminal: its data, its plan and its results."""

from itertools import groupby
from typing import TYPE_CHECKING

from sppcls.data.catalog import Splits
from sppcls.data.planner import Planner
from sppcls.errors import counted
from sppcls.measure.dataset import mean_distortion
from sppcls.measure.mixing import Mixing
from sppcls.report.page import part_of, points, scale_cells
from sppcls.run_folder import Summary
from sppcls.spec import Spec
from sppcls.terminal import ece_column, table

if TYPE_CHECKING:
    from rich.table import Table


def plan_lines(spec: Spec, planner: Planner, found: Mixing, world: int = 1) -> "list[Table | str]":
    """Return the plan of a run as it is shown before its first epoch, with warnings."""
    return [plan_table(spec, planner, world), *mixing_lines(found), *untrained_lines(spec, planner)]


def mixing_lines(found: Mixing) -> list[str]:
    """Return what the steps are like, beside random ones, and a warning where they hold few classes."""
    parts = f", in {found.parts} parts" if found.parts > 1 else ""
    by = f"images by aspect{parts}" if found.by == "aspect" else "any images"
    lines = [
        f"steps: {by}; {found.classes:.1f} classes in each (random steps: {found.classes_random:.1f})",
        f"two images that share a step share the next epoch's in {found.again:.1%} (random steps: "
        f"{found.again_random:.1%})",
    ]
    if found.poor:
        lines.append("warning: steps hold few classes, so less is learned; raise data.mix, or use data.batches=random")
    return lines


def plan_table(spec: Spec, planner: Planner, world: int = 1) -> "Table":
    """Return the scale schedule as a table, one row per stretch of epochs at one scale (at most 24 rows)."""
    first_plan = planner.plan(0, world)
    title = f"{spec.schedule.kind} schedule, data.fit={spec.data.fit}, {len(planner.sizes)} training images"
    if first_plan.world > 1:
        title += f", {first_plan.world} ranks, {first_plan.repeats} images repeated per epoch"

    def scales_of(epoch: int) -> str:
        if planner.schedule.beside:
            return "+".join(map(str, planner.schedule.choices))
        drawn = sorted(set(planner.turns(epoch, world).scales))
        return str(drawn[0]) if len(drawn) == 1 else f"{drawn[0]}..{drawn[-1]}"

    heads, rows = ["epochs", "scale", "steps", "smallest step", "shapes", "padding", "stretch", "megapixels"], []
    stretches = [(scales, list(epochs)) for scales, epochs in groupby(range(spec.trainer.max_epochs), scales_of)]
    for scales, (first, *others) in stretches[:24]:
        plan = planner.plan(first, world)
        epochs = f"{first + 1}-{others[-1] + 1}" if others else f"{first + 1}"
        padding = f"{plan.padding(planner.sizes):.1%}" if spec.data.fit == "keep" else "-"
        stretch, million = f"{mean_distortion(planner, plan) - 1:.1%}", plan.pixels * spec.optim.passes / 1e6
        cells = [epochs, scales, *map(str, (plan.steps, plan.smallest, plan.shapes)), padding, stretch]
        rows.append([*cells, f"{million:.2g}" if million < 10 else f"{million:.0f}"])
    return table(title, heads, rows)


def untrained_lines(spec: Spec, planner: Planner) -> list[str]:
    """Return a warning if the run is too short for some of its scales, which count as trained in all reports."""
    epochs = range(spec.trainer.max_epochs)
    left = set(spec.schedule.scales).difference(*(planner.turns(epoch).scales for epoch in epochs))
    if spec.schedule.kind in ("random", "all") or not left:
        return []
    scales = ", ".join(map(str, sorted(left)))
    return [f"warning: never trained in {counted(len(epochs), 'epoch')}: schedule.scales {scales}; use more epochs"]


def data_lines(data: Splits, most: int = 10) -> list[str]:
    """Return lines on a run's data: the first ``most`` class names, and the number of images of both parts."""
    classes = data.train.classes
    more = f" and {len(classes) - most} more" if len(classes) > most else ""
    parts = {"training": data.train, "validation": data.val}
    images = ", ".join(f"{len(part.targets):,} {name}" for name, part in parts.items() if part)
    return [f"{len(classes)} classes: {', '.join(classes[:most])}{more}", f"images: {images}"]


def result_table(summary: Summary) -> "Table":
    """Return the short table at the end of a run."""
    rows = []
    for row in summary["scales"]:
        top1, _interval, *cells = scale_cells(row)
        rows.append([f"{row['scale']}{' *' if row['trained'] else ''}", top1, *cells])
    columns = ["test scale", "top-1", "top-5", "loss", ece_column(summary)]
    return table(f"{part_of(summary).capitalize()}, by test scale (* trained)", columns, rows)


def closing_lines(summary: Summary, folder: str) -> list[str]:
    """Return the lines below the table: the gap, the spread, the seconds, the folder."""
    lines = []
    if (acc1 := summary["acc1"]) is not None:
        gap = summary["generalization_gap"]
        against = "" if gap is None else f", generalization gap {points(gap)} points"
        lines.append(f"top-1 {acc1:.1%} at scale {summary['val_scale']}{against}")
    if len(summary["scales"]) > 1:
        spread, consistency = summary["scale_spread"], summary["scale_consistency"]
        lines.append(f"scale spread {spread * 100:.1f} points, scale consistency {consistency:.1%}")
    if summary["gap_seconds"] >= 1:
        lines.append(f"gap curves took {summary['gap_seconds']:.0f} of {summary['seconds']:.0f} s (metrics.gap_every)")
    return [*lines, f"{summary['seconds']:.0f} s, {summary['parameters']:,} parameters", f"run folder: {folder}"]
