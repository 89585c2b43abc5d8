"""Plots as inline SVG that follow the page's colours."""

import io
from collections.abc import Mapping, Sequence
from itertools import cycle

COLOURS = ("#3b7dd8", "#d9722c", "#3a9d5d", "#a05cc0", "#c4485a", "#7f7f7f")
INK = "#808080"

Points = Sequence[tuple[float, float]]


def line_plot(curves: Mapping[str, Points], *, x: str, y: str, marks: Sequence[float] = ()) -> str:
    """Return an ``<svg>`` of accuracy curves (y in 0..1, shown in percent); ``marks`` are dotted verticals."""
    import matplotlib as mpl
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "sppcls", "font.family": "sans-serif"}):
        figure = Figure(figsize=(7.2, 3.6), layout="constrained")
        FigureCanvasSVG(figure)
        axes = figure.add_subplot()
        for mark in marks:
            axes.axvline(mark, color=INK, linestyle=":", linewidth=1)
        for (name, points), colour in zip(curves.items(), cycle(COLOURS), strict=False):
            axes.plot(
                [p[0] for p in points], [p[1] * 100 for p in points], "o-", color=colour, label=name, markersize=4
            )
        axes.set_xlabel(x, color=INK)
        axes.set_ylabel(f"{y} (%)", color=INK)
        axes.tick_params(colors=INK)
        axes.grid(alpha=0.25)
        for spine in axes.spines.values():
            spine.set_visible(False)
        if len(curves) > 1:
            axes.legend(frameon=False, labelcolor=INK)
        text = io.StringIO()
        nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(text, format="svg", transparent=True, metadata=nothing)
    return text.getvalue()[text.getvalue().index("<svg") :]
