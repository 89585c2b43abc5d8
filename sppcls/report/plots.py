"""Plots as inline SVG that follow the page's colours."""

import io
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

COLOURS = ("#3b7dd8", "#d9722c", "#3a9d5d", "#a05cc0", "#c4485a", "#7f7f7f", "#b0892c", "#2c9fa8")
INK = "#808080"


@dataclass(frozen=True)
class Curve:
    """Points (x, y), y in 0..1, and where there are several seeds the (low, high) of each."""

    points: Sequence[tuple[float, float]]
    band: Sequence[tuple[float, float]] = ()
    style: str = "o-"
    colour: int | None = None


def line_plot(curves: Mapping[str, Curve], *, x: str, y: str, marks: Sequence[float] = (), log: bool = False) -> str:
    """Return an ``<svg>`` of curves in percent; ``marks`` are dotted verticals, ``log`` doubles along x."""
    with _axes(x, f"{y} (%)") as (axes, text):
        for mark in marks:
            axes.axvline(mark, color=INK, linestyle=":", linewidth=1)
        for number, (name, curve) in enumerate(curves.items()):
            colour = COLOURS[(number if curve.colour is None else curve.colour) % len(COLOURS)]
            across = [p[0] for p in curve.points]
            axes.plot(across, _percent(p[1] for p in curve.points), curve.style, color=colour, label=name, markersize=4)
            if curve.band:
                low, high = (_percent(b[side] for b in curve.band) for side in (0, 1))
                axes.fill_between(across, low, high, color=colour, alpha=0.18, linewidth=0)
        if log:
            ticks = sorted({p[0] for curve in curves.values() for p in curve.points})
            axes.set_xscale("log", base=2)
            axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks], minor=False)
        else:
            axes.xaxis.get_major_locator().set_params(integer=True)
        _legend(axes, len(curves))
    return text.getvalue()


def dot_plot(dots: Mapping[str, tuple[float, float | None, float | None]], *, x: str) -> str:
    """Return an ``<svg>`` of one value in percent a name, with its interval, under one another."""
    with _axes(f"{x} (%)", "", height=0.8 + 0.32 * len(dots)) as (axes, text):
        for row, (value, low, high) in enumerate(dots.values()):
            colour = COLOURS[row % len(COLOURS)]
            axes.plot([value * 100], [row], "o", color=colour)
            if low is not None and high is not None:
                axes.plot([low * 100, high * 100], [row, row], "-", color=colour, linewidth=2, alpha=0.6)
        axes.axvline(0, color=INK, linewidth=0.8)
        axes.set_yticks(range(len(dots)), list(dots))
        axes.set_ylim(len(dots) - 0.5, -0.5)
    return text.getvalue()


def scatter_plot(dots: Mapping[str, Sequence[tuple[float, float]]], *, x: str, y: str) -> str:
    """Return an ``<svg>`` of points (x, y), y in 0..1, a colour a name."""
    with _axes(x, f"{y} (%)") as (axes, text):
        for number, (name, points) in enumerate(dots.items()):
            colour = COLOURS[number % len(COLOURS)]
            axes.plot([p[0] for p in points], _percent(p[1] for p in points), "o", color=colour, label=name, alpha=0.7)
        _legend(axes, len(dots))
    return text.getvalue()


def _percent(values: Any) -> list[float]:
    return [min(max(value, 0), 1) * 100 for value in values]


def _legend(axes: Any, names: int) -> None:
    if names > 1:
        place = {"loc": "outside lower center", "ncols": 2, "fontsize": "small"}
        axes.figure.legend(frameon=False, labelcolor=INK, **place)


@contextmanager
def _axes(x: str, y: str, height: float = 3.4) -> Iterator[tuple[Any, io.StringIO]]:
    """Give axes to draw on, and a text that holds the drawing afterwards."""
    import matplotlib as mpl
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    text = io.StringIO()
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "sppcls", "font.family": "sans-serif"}):
        figure = Figure(figsize=(5.8, height), layout="constrained")
        FigureCanvasSVG(figure)
        axes = figure.add_subplot()
        yield axes, text
        axes.set_xlabel(x, color=INK)
        axes.set_ylabel(y, color=INK)
        axes.tick_params(which="both", colors=INK)
        axes.grid(alpha=0.25)
        for spine in axes.spines.values():
            spine.set_visible(False)
        whole = io.StringIO()
        nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(whole, format="svg", transparent=True, metadata=nothing)
    text.write(whole.getvalue()[whole.getvalue().index("<svg") :])
