"""Plots as inline SVG that follow the page's colours."""

import io
import textwrap
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from sppcls.measure.statistics import Estimate
from sppcls.report.page import percent_interval

COLOURS = ("#3b7dd8", "#d9722c", "#3a9d5d", "#a05cc0", "#c4485a", "#7f7f7f", "#b0892c", "#2c9fa8")
MARKERS = "osD^vPX"  # one fewer than the colours: the pairs repeat after 56
INK = "#808080"
SCALES = "test scale (pixels, shorter side)"
FONT = 10.5  # points: 11 pixels on a page of 390


@dataclass(frozen=True)
class Curve:
    """Points (x, y), or with an interval (x, y, low, high), which is drawn where every point has one.

    ``line`` is ``-``, ``--`` or empty for points only; curves of one ``kind`` share a colour and a marker.
    """

    points: Sequence[tuple[float, ...]]
    line: str = "-"
    kind: int | None = None


@dataclass(frozen=True)
class Figure:
    """A plot as SVG, and its numbers as a table."""

    svg: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]


def line_figure(curves: Mapping[str, Curve], *, x: str, share: bool = True, **how: Any) -> Figure | None:
    """Return a `line_plot` and a row for each x in it, a column a curve; None where there is no curve."""
    if not curves:
        return None
    across = sorted({point[0] for curve in curves.values() for point in curve.points})
    rows = [[f"{at:g}", *(_cell(curve, at, share) for curve in curves.values())] for at in across]
    return Figure(line_plot(curves, x=x, share=share, **how), [x, *curves], rows)


def _cell(curve: Curve, at: float, share: bool) -> str:
    found = [values for x, *values in curve.points if x == at]
    return ", ".join(percent_interval(*values) if share else f"{values[0]:.4g}" for values in found) or "-"


def line_plot(
    curves: Mapping[str, Curve], *, x: str, y: str, marks: Sequence[float] = (), log: bool = False, share: bool = True
) -> str:
    """Return an ``<svg>`` of curves; ``marks`` are dotted vertical lines, with the range of them shaded.

    ``log`` is a log2 x axis; ``share`` means that y is 0 to 1 and drawn in percent.
    """
    names = _without_key(curves)
    beside = _fit_beside(names, curves.values())
    with _axes(x, f"{y} (%)" if share else y, 3.0 + (0 if beside else _legend_height(names))) as (axes, text):
        for mark in marks:
            axes.axvline(mark, color=INK, linestyle=":", linewidth=1)
        if len(marks) > 1:
            axes.axvspan(min(marks), max(marks), color=INK, alpha=0.1, linewidth=0)
        lines = [_draw(axes, curve, number, share) for number, curve in enumerate(curves.values())]
        ticks = sorted({p[0] for curve in curves.values() for p in curve.points})
        if log:
            axes.set_xscale("log", base=2)
        if log or len(ticks) == 1:
            axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks], minor=False)
        else:
            axes.xaxis.get_major_locator().set_params(integer=all(isinstance(tick, int) for tick in ticks))
        if len(curves) > 1:
            (_name_ends if beside else _legend)(axes, lines, names)
    return text.getvalue()


def _draw(axes: Any, curve: Curve, number: int, share: bool) -> Any:
    kind = number if curve.kind is None else curve.kind
    colour, marker = COLOURS[kind % len(COLOURS)], MARKERS[kind % len(MARKERS)]
    across = [x for x, *_ in curve.points]
    up = [[min(max(value, 0), 1) * 100 if share else value for value in values] for _, *values in curve.points]
    look = {"color": colour, "marker": marker, "markersize": 4.5, "markevery": max(1, len(up) // 12)}
    (line,) = axes.plot(across, [y for y, *_ in up], linestyle=curve.line, **look)
    if up and all(len(values) == 3 for values in up):
        low, high = zip(*(band for _, *band in up), strict=True)
        axes.fill_between(across, low, high, color=colour, alpha=0.18, linewidth=0)
    return line


def scale_plot(curves: Mapping[str, Curve], marks: Sequence[float]) -> str:
    """Return an ``<svg>`` of accuracies by test scale; ``marks`` are the scales that were trained at."""
    return line_plot(curves, x=SCALES, y="top-1", marks=marks, log=True)


def accuracy_curve(rows: Sequence[Mapping[str, Any]]) -> Curve:
    """Return the accuracies of the rows of an evaluation, with their intervals."""
    values = ("scale", "acc1", "acc1_low", "acc1_high")
    return Curve([tuple(row[name] for name in values if name in row) for row in rows])


def estimate_curve(by_x: Mapping[int, Estimate], kind: int | None = None) -> Curve:
    """Return the means of estimates, with their intervals."""
    values = ((x, one.mean, one.low, one.high) for x, one in by_x.items())
    return Curve([tuple(value for value in point if value is not None) for point in values], kind=kind)


def dot_plot(
    dots: Mapping[str, tuple[float, float | None, float | None]], *, x: str, kinds: Sequence[int] | None = None
) -> str:
    """Return an ``<svg>`` of one difference of shares per name, in points, with its interval, stacked vertically.

    ``kinds`` are those of the curves that the names have in other plots.
    """
    names = [textwrap.fill(name, 22) for name in dots]
    rows = sum(1.2 + name.count("\n") * 0.6 for name in names)
    with _axes(f"{x} (points)", "", 0.8 + 0.27 * rows) as (axes, text):
        for row, (value, low, high) in enumerate(dots.values()):
            colour = COLOURS[(kinds[row] if kinds else row) % len(COLOURS)]
            axes.plot([value * 100], [row], "o", color=colour)
            if low is not None and high is not None:
                axes.plot([low * 100, high * 100], [row, row], "-", color=colour, linewidth=2, alpha=0.6)
        axes.axvline(0, color=INK, linewidth=0.8)
        axes.set_yticks(range(len(dots)), names, parse_math=False)
        axes.set_ylim(len(dots) - 0.5, -0.5)
    return text.getvalue()


def histogram(counts: Any, edges: Any, marks: Sequence[float] = ()) -> str:
    """Return an ``<svg>`` of image counts on a log2 axis; ``marks`` are labelled vertical lines."""
    with _axes("", "images", 2.8) as (axes, text):
        axes.bar(edges[:-1], counts, edges[1:] - edges[:-1], align="edge", color=COLOURS[0])
        for number, mark in enumerate(sorted(marks)):
            axes.axvline(mark, color=COLOURS[1], linestyle="--", linewidth=1.6)
            # In two rows, since labels of nearby scales would overlap.
            above = {"xytext": (0, 3 + 12 * (number % 2)), "textcoords": "offset points", "annotation_clip": False}
            axes.annotate(f"{mark:g}", (mark, 1), xycoords=axes.get_xaxis_transform(), color=INK, ha="center", **above)
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_formatter("{x:g}")
        axes.minorticks_off()
        first, last = min([edges[0], *marks]), max([edges[-1], *marks])
        axes.set_xlim(first / 2**0.5, last * 2**0.5)  # wide enough for a power of two
    return text.getvalue()


def _without_key(names: Iterable[str]) -> list[str]:
    """Return names without the ``key=`` prefix they have in common."""
    every = list(names)
    heads = {name.partition("=")[:2] for name in every}
    return [name.partition("=")[2] for name in every] if len(heads) == 1 and "=" in every[0] else every


def _fit_beside(names: Sequence[str], curves: Iterable[Curve]) -> bool:
    """Return whether there is space for each curve's name at its end."""
    return 1 < len(names) <= 12 and max(map(len, names)) <= 18 and all(c.line and c.points for c in curves)


def _name_ends(axes: Any, lines: Sequence[Any], names: Iterable[str]) -> None:
    """Write each curve's name to the right of its last point, joined by a thin line."""
    low, high = axes.get_ylim()
    ends = [(float(line.get_xdata()[-1]), float(line.get_ydata()[-1])) for line in lines]
    heights = spread([y for _, y in ends], (high - low) * 0.075, high)
    for name, end, height in zip(names, ends, heights, strict=True):
        lead = {"arrowstyle": "-", "color": INK, "linewidth": 0.5}  # not as the curve, which ends at its last point
        where = {"textcoords": axes.get_yaxis_transform(), "va": "center", "annotation_clip": False}
        axes.annotate(name, end, (1.05, height), color=INK, arrowprops=lead, **where).set_parse_math(False)
    axes.set_ylim(low, high)


def spread(heights: Sequence[float], gap: float, top: float) -> list[float]:
    """Return heights in the same order, ``gap`` apart or more and none above ``top``.

    >>> spread([1.0, 5.0, 1.0], gap=2.0, top=6.0)
    [1.0, 5.0, 3.0]
    """
    order = sorted(range(len(heights)), key=heights.__getitem__)
    placed: dict[int, float] = {}
    floor = float("-inf")
    for index in order:
        placed[index] = floor = max(heights[index], floor)
        floor += gap
    for index in reversed(order):
        placed[index] = min(placed[index], top)
        top = placed[index] - gap
    return [placed[index] for index in range(len(heights))]


def _legend(axes: Any, lines: Sequence[Any], names: Iterable[str]) -> None:
    place = {"loc": "outside lower center", "ncols": 2}
    legend = axes.figure.legend(lines, map(_wrapped, names), frameon=False, labelcolor=INK, **place)
    for text in legend.get_texts():
        text.set_parse_math(False)  # a name with "$" is not a formula


def _wrapped(name: str) -> str:
    return textwrap.fill(name, 21)


def _legend_height(names: Iterable[str]) -> float:
    """Return the inches that a legend needs beyond the two rows that fit on a plot."""
    rows = sum(_wrapped(name).count("\n") + 1 for name in names) / 2
    return max(0.0, rows - 2) * 0.2


@contextmanager
def _axes(x: str, y: str, height: float = 3.0) -> Iterator[tuple[Any, io.StringIO]]:
    """Yield axes to draw on, and a buffer that holds the SVG afterwards."""
    import matplotlib as mpl
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    text = io.StringIO()
    fonts: dict[Any, Any] = {"font.family": "sans-serif", "font.size": FONT, "legend.fontsize": FONT}
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "sppcls"} | fonts):
        figure = Figure(figsize=(4.6, height), layout="constrained")
        FigureCanvasSVG(figure)
        axes = figure.add_subplot()
        yield axes, text
        axes.set_xlabel(x, color=INK)
        axes.set_ylabel(y, color=INK)
        axes.tick_params(which="both", colors=INK)
        axes.grid(alpha=0.25)
        axes.spines[:].set_visible(False)
        whole = io.StringIO()
        nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Glyph .* missing")  # the page's font has it
            figure.savefig(whole, format="svg", transparent=True, metadata=nothing)
    text.write(whole.getvalue()[whole.getvalue().index("<svg") :])
