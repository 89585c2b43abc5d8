"""The findings of `sppcls.measure.dataset`: tables for the terminal and one offline HTML page."""

from collections.abc import Sequence
from pathlib import Path

from sppcls.data.decode import shown
from sppcls.measure.dataset import DataFacts, Histogram
from sppcls.report.page import percent, write_page
from sppcls.report.plots import histogram
from sppcls.report.run_lines import mixing_lines

Sheet = tuple[list[str], list[list[str]]]  # columns and rows of a table


def write_data_page(facts: DataFacts, path: Path) -> Path:
    """Write all findings to one HTML page."""
    scales = [cost.scale for cost in facts.costs]
    sides, aspects = "Shorter side in pixels; the dashed lines are the scales", "Aspect, width / height"
    plots = {
        sides: (histogram(*facts.short, scales), _bins(facts.short)),
        aspects: (histogram(*facts.aspect), _bins(facts.aspect)),
    }
    counts = [row[0] or 0 for row in facts.classes.values()]
    bars = [100 * count / max(*counts, 1) for count in counts]
    found = {"sheets": sheets(facts), "remarks": remarks(facts), "tiles": _tiles(facts), "plots": plots, "bars": bars}
    return write_page("data", path, plain(facts.root.name or facts.root), **found)


def _tiles(facts: DataFacts) -> list[tuple[str, str]]:
    images = {"images" if part == "all" else f"images in {part}": count for part, count in facts.parts.items()}
    found = {"classes": len(facts.classes)} | images | {"broken files": len(facts.broken)}
    return [(name, f"{count:,}") for name, count in found.items()]


def sheets(facts: DataFacts) -> dict[str, Sheet]:
    """Return the full tables by title; every cell is printable, whatever bytes are in a file's name."""
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
        "Identical files": (["file", "group", "across parts", "across classes"], copies),
    }


def remarks(facts: DataFacts) -> list[str]:
    """Return one line for each thing to know before training."""
    looked = "every file decoded" if facts.decoded else "only headers read; --decode reads whole files"
    lines = [f"broken files: {len(facts.broken)} ({looked}); groups of identical files: {len(facts.copies)}"]
    lines += [f"training, by default: {line}" for line in (mixing_lines(facts.mixing) if facts.mixing else ())]
    if facts.imbalance is not None:
        lines.append(f"imbalance: the largest class has {facts.imbalance:.1f} times the images of the smallest")
    for number, part in enumerate(facts.parts):
        if lacking := [plain(name) for name, row in facts.classes.items() if not row[number]]:
            lines.append(f"{part}: no images of {_some(lacking)}; training would fail")
    if facts.loose:
        lines.append(f"ignored, outside the class folders: {_some([_below(facts, file) for file in facts.loose])}")
    if leaks := sum(group.across_parts for group in facts.copies):
        lines.append(f"groups of identical files across parts: {leaks}; scores on them are inflated")
    if clashes := sum(group.across_classes for group in facts.copies):
        lines.append(f"groups of identical files across classes: {clashes}; at most one label of each is right")
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
