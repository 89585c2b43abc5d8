"""What a run says on the terminal: its data and plan first, a table and a few lines at the end."""

from typing import TYPE_CHECKING, Any, Protocol

from sppcls.data.plan import Planner
from sppcls.data.source import Source
from sppcls.report.page import scale_cells
from sppcls.spec import Spec
from sppcls.terminal import ece_column, table

if TYPE_CHECKING:
    from rich.table import Table


class Parts(Protocol):
    """What has training images and perhaps validation images."""

    @property
    def train(self) -> Source:
        """Return the training images."""

    @property
    def val(self) -> Source | None:
        """Return the validation images."""


def plan_table(spec: Spec, planner: Planner, world: int = 1) -> "Table":
    """Return the scale schedule as a table, a row for each stretch of epochs of one scale (24 rows at most)."""
    first_plan = planner.plan(0, world)
    title = f"{spec.schedule.kind} schedule, data.fit={spec.data.fit}, {len(planner.sizes)} training images"
    if first_plan.world > 1:
        title += f", {first_plan.world} ranks, {first_plan.repeats} images twice an epoch"
    heads, rows = ["epochs", "scale", "batches", "smallest batch", "shapes", "padding", "megapixels"], []
    for first, last, scales in _stretches(spec, planner, first_plan.steps)[:24]:
        plan = planner.plan(first, world)
        epochs = f"{first + 1}" if first == last else f"{first + 1}-{last + 1}"
        padding = f"{plan.padding(planner.sizes):.1%}" if spec.data.fit == "keep" else "-"
        million = plan.pixels / 1e6
        cells = [len(plan), plan.smallest, plan.shapes]
        rows.append([epochs, scales, *map(str, cells), padding, f"{million:.2g}" if million < 10 else f"{million:.0f}"])
    return table(title, heads, rows)


def data_lines(data: Parts, most: int = 10) -> list[str]:
    """Return what a run reads: the class names, the first ``most`` of them, and the images of both parts."""
    classes = data.train.classes
    more = f" and {len(classes) - most} more" if len(classes) > most else ""
    parts = {"training": data.train, "validation": data.val}
    images = ", ".join(f"{len(part.targets):,} {name}" for name, part in parts.items() if part)
    return [f"{len(classes)} classes: {', '.join(classes[:most])}{more}", f"images: {images}"]


def _stretches(spec: Spec, planner: Planner, steps: int) -> list[tuple[int, int, str]]:
    stretches: list[tuple[int, int, str]] = []
    for epoch in range(spec.trainer.max_epochs):
        drawn = sorted(set(planner.schedule.scales_of(epoch, steps)))
        shown = str(drawn[0]) if len(drawn) == 1 else f"{drawn[0]}..{drawn[-1]}"
        if stretches and stretches[-1][2] == shown:
            stretches[-1] = (stretches[-1][0], epoch, shown)
        else:
            stretches.append((epoch, epoch, shown))
    return stretches


def result_table(summary: dict[str, Any]) -> "Table":
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
