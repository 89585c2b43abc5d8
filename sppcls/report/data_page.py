"""What `sppcls.data.doctor` finds in a data set: tables for the terminal and one offline HTML page."""

from collections.abc import Sequence
from pathlib import Path

from rich.table import Table

from sppcls.data.decode import shown
from sppcls.data.doctor import DataFacts, Histogram, examine
from sppcls.errors import ConfigError, DataError
from sppcls.report.page import percent, write_page
from sppcls.report.plots import histogram
from sppcls.terminal import show, table

Sheet = tuple[list[str], list[list[str]]]  # columns and rows of a table


def run_data(directory: str, scales: Sequence[int], decode: bool = False, out: str | Path | None = None) -> int:
    """Do `examine`, print what was found, write it to the page ``out`` if given, and return the exit status.

    It is 3 where a file is broken, and 0 otherwise.
    """
    if out is not None and (Path(out).is_dir() or not Path(out).absolute().parent.is_dir()):
        raise ConfigError(f"--out {plain(out)}: no place for a page; give FILE.html in a folder that exists")
    facts = examine(directory, scales, decode_all=decode)
    show(*data_tables(facts), *remarks(facts))
    if out is not None:
        show(f"page: {plain(write_data_page(facts, Path(out)))}")
    return DataError.exit_status if facts.broken else 0


def data_tables(facts: DataFacts) -> list[Table]:
    """Return the tables that have rows, long ones as their first 12 and last 5."""
    found = {title: sheet for title, sheet in sheets(facts).items() if sheet[1]}
    return [table(title, columns, _shortened(rows)) for title, (columns, rows) in found.items()]


def _shortened(rows: list[list[str]]) -> list[list[str]]:
    return rows if len(rows) <= 18 else [*rows[:12], [f"... {len(rows) - 17} more"], *rows[-5:]]


def write_data_page(facts: DataFacts, path: Path) -> Path:
    """Write everything that was found as one HTML page."""
    scales = [cost.scale for cost in facts.costs]
    plots = {
        "Shorter side in pixels; the dashed lines are the scales": (
            histogram(*facts.short, scales),
            _bins(facts.short),
        ),
        "Aspect, width / height": (histogram(*facts.aspect), _bins(facts.aspect)),
    }
    counts = [row[0] or 0 for row in facts.classes.values()]
    bars = [100 * count / max(*counts, 1) for count in counts]
    title = plain(facts.root.name or facts.root)
    values = {"sheets": sheets(facts), "remarks": remarks(facts), "tiles": _tiles(facts), "plots": plots, "bars": bars}
    return write_page("data", path, title, **values)


def _tiles(facts: DataFacts) -> list[tuple[str, str]]:
    images = {"images" if part == "all" else f"images in {part}": count for part, count in facts.parts.items()}
    found = {"classes": len(facts.classes)} | images | {"broken files": len(facts.broken)}
    return [(name, f"{count:,}") for name, count in found.items()]


def sheets(facts: DataFacts) -> dict[str, Sheet]:
    """Return the whole tables by title; every cell can be printed, whatever bytes are in a file's name."""
    classes = [[plain(n), *("-" if c is None else f"{c:,}" for c in row)] for n, row in facts.classes.items()]
    sizes = [[n, *(f"{v:.2f}" if n == "aspect" else f"{v:,.0f}" for v in row)] for n, row in facts.sizes.items()]
    costs = [
        [f"{c.scale}", percent(c.padding), f"{c.megapixels:,.1f}", percent(c.upscaled), f"{c.shapes}"]
        for c in facts.costs
    ]
    broken = [[_below(facts, file), plain(why)] for file, why in facts.broken.items()]
    copies = [
        [_below(facts, file), f"{number}", "yes" * group.across_parts, "yes" * group.across_classes]
        for number, group in enumerate(facts.copies, 1)
        for file in group.files
    ]
    counts = [f"{part} ({count:,})" for part, count in facts.parts.items()]
    return {
        "Classes": (["class", *counts], classes),
        "Sizes": (["pixels", "smallest", "median", "largest"], sizes),
        "An epoch, data.fit=keep": (["scale", "padding", "megapixels", "upscaled", "shapes"], costs),
        "Broken files": (["file", "why"], broken),
        "Equal files": (["file", "group", "across parts", "across classes"], copies),
    }


def remarks(facts: DataFacts) -> list[str]:
    """Return a line for each thing to know before training."""
    looked = "every file decoded" if facts.decoded else "headers read; --decode reads every file whole"
    lines = [f"broken files: {len(facts.broken)} ({looked}); groups of equal files: {len(facts.copies)}"]
    if facts.imbalance is not None:
        lines.append(f"imbalance: the largest class has {facts.imbalance:.1f} times the images of the smallest")
    for number, part in enumerate(facts.parts):
        if lacking := [plain(name) for name, row in facts.classes.items() if not row[number]]:
            lines.append(f"{part}: no image of {_some(lacking)}; training refuses that")
    if facts.loose:
        lines.append(f"in no class folder, and so not read: {_some([_below(facts, file) for file in facts.loose])}")
    if leaks := sum(group.across_parts for group in facts.copies):
        lines.append(f"groups of equal files across parts: {leaks}; what is measured on them is too good")
    if clashes := sum(group.across_classes for group in facts.copies):
        lines.append(f"groups of equal files across classes: {clashes}; at most one of their labels is right")
    return lines


def plain(name: str | Path) -> str:
    """Return a name as one line that can be printed: no control character, no broken UTF-8."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in shown(name))


def _below(facts: DataFacts, file: Path) -> str:
    return plain(file.relative_to(facts.root))


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def _bins(histogram: Histogram) -> list[list[str]]:
    counts, edges = histogram
    ends = [f"{float(f'{edge:.3g}'):g}" for edge in edges]
    return [[f"{ends[i]} to {ends[i + 1]}", f"{count:,}"] for i, count in enumerate(counts) if count]
