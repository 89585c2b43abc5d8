"""What pages share: one offline HTML file from a template, how numbers are written, and common parts."""

import platform
import time
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from sppcls.files import write_text
from sppcls.measure.answers import Answers, confusion_counts
from sppcls.measure.statistics import Estimate
from sppcls.terminal import ece_column

MOST = 20  # classes of a confusion matrix


class Table(NamedTuple):
    """A table of text."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]


def write_page(template: str, path: Path, title: str, **values: object) -> Path:
    """Render ``templates/<template>.html``, its text escaped, and write it beside, then rename."""
    import jinja2

    loader = jinja2.FileSystemLoader(Path(__file__).parent / "templates")
    pages = jinja2.Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True)
    pages.filters |= {"percent": percent, "middle": middle}
    made = f"sppcls {version('sppcls')}, Python {platform.python_version()}, {time.strftime('%Y-%m-%d %H:%M')}"
    return write_text(path, pages.get_template(f"{template}.html").render(title=title, made=made, **values))


def percent(share: float | None) -> str:
    """Return a share as a percentage with one digit, or a dash.

    >>> percent(0.9871), percent(None)
    ('98.7%', '-')
    """
    return "-" if share is None else f"{share:.1%}"


def points(share: float | None) -> str:
    """Return a difference of shares in signed percentage points, or a dash.

    >>> points(-0.0125)
    '-1.2'
    """
    return "-" if share is None else f"{round(share * 100, 1) + 0.0:+.1f}"  # and no -0.0


def interval(one: Estimate | None) -> str:
    """Return an estimate in percent with half of its interval, or a dash."""
    if one is None:
        return "-"
    return percent(one.mean)[:-1] + (f" ± {(one.high - one.mean) * 100:.1f}" if one.high is not None else "")


def percent_interval(mean: float, low: float | None = None, high: float | None = None) -> str:
    """Return a share in percent, with its interval where there is one."""
    return percent(mean) + ("" if low is None or high is None else f" ({low * 100:.1f} to {high * 100:.1f})")


def points_interval(difference: float, low: float | None = None, high: float | None = None) -> str:
    """Return a difference in points, with its interval where there is one."""
    return points(difference) + ("" if low is None else f" ({points(low)} to {points(high)})")


def p_value(p: float | None) -> str:
    """Return a p with four digits, or a dash."""
    return "-" if p is None else f"{p:.4f}" if p >= 0.0001 else "< 0.0001"


def amount(value: float) -> str:
    """Return a number of any size with two digits or more."""
    return f"{value:,.0f}" if value >= 10 else f"{value:.2g}"


def duration(seconds: float) -> str:
    """Return a duration in a suitable unit.

    >>> duration(68.4), duration(372), duration(9000)
    ('68 s', '6.2 min', '2.5 h')
    """
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def middle(name: str, most: int = 32) -> str:
    """Return a name of at most ``most`` characters, cut in the middle, since ends tell files and jobs apart.

    >>> middle("photos/IMG_20240131_120000.jpg", 15)
    'photos/…000.jpg'
    """
    return name if len(name) <= most else f"{name[: most // 2]}…{name[len(name) - (most - 1) // 2 :]}"


def part_of(summary: Mapping[str, Any]) -> str:
    """Return the name of the part of the data that a run's figures are of.

    >>> part_of({"part": "test"}), part_of({})
    ('test part', 'validation')
    """
    return "test part" if summary.get("part") == "test" else "validation"


def scale_columns(found: Mapping[str, Any]) -> list[str]:
    """Return the headings of `scale_cells` in a run's summary or an evaluation."""
    return ["top-1", "95 % interval", "top-5", "loss", ece_column(found)]


def scale_cells(row: Mapping[str, Any]) -> list[str]:
    """Return the cells of one scale of an evaluation, under `scale_columns`."""
    between = f"{percent(row.get('acc1_low'))} to {percent(row.get('acc1_high'))}"
    errors = ("-" if row[name] is None else f"{row[name]:.3f}" for name in ("loss", "ece"))
    return [percent(row["acc1"]), between, percent(row["acc5"]), *errors]


def confusion(answers: Sequence[Answers], classes: Sequence[str], scale: int) -> dict[str, Any] | None:
    """Return the matrix of all answers at a scale, in shares of a true class's images, and two tables.

    These are the most confused pairs, and classes, the lowest recall first. Above 20 classes the matrix is of those
    that are confused most. None where there is no answer.
    """
    found = [confusion_counts(one, scale, len(classes)) for one in answers if classes and scale in one.scales]
    if not np.any(found):
        return None
    counts = np.sum(found, axis=0)
    images = counts.sum(axis=1)
    shares = counts / images.clip(min=1)[:, None]
    wrong = np.where(np.eye(len(classes)), 0, shares)
    shown = np.sort(np.argsort(-(wrong.sum(axis=0) + wrong.sum(axis=1)), kind="stable")[:MOST])
    pairs = [divmod(at, len(classes)) for at in np.argsort(-wrong, axis=None, kind="stable")[:10] if wrong.flat[at]]
    by_recall = [k for k in np.argsort(shares.diagonal(), kind="stable") if images[k]]
    return {
        "names": [classes[k] for k in shown],
        "counts": images[shown].tolist(),
        "rows": shares[np.ix_(shown, shown)].tolist(),
        "pairs": [[classes[i], classes[j], f"{counts[i, j]} of {images[i]}", percent(wrong[i, j])] for i, j in pairs],
        "classes": [[classes[k], f"{images[k]:,}", f"{counts[k, k]:,}", percent(shares[k, k])] for k in by_recall],
        "scale": scale,
        "note": f"The {MOST} of {len(classes)} classes that are confused most." if len(classes) > MOST else "",
    }


def data_rows(summaries: Mapping[str, Mapping[str, Any]]) -> list[list[str]]:
    """Return one row per training scale and group of equal variants: what the fit does to the training images."""
    rows: dict[tuple[str, ...], list[str]] = {}
    for name, summary in summaries.items():
        for cost in summary.get("data_costs", []):
            shares = [percent(cost[key]) for key in ("padding", "lost", "upscaled")]
            cells = (str(cost["scale"]), *shares[:2], f"{cost['distortion']:.2f}", shares[2], str(cost["shapes"]))
            rows.setdefault((*cells, f"{cost['megapixels']:,.1f}"), []).append(name)
    every = len(summaries)
    return [["all" if len(names) == every > 1 else ", ".join(names), *cells] for cells, names in rows.items()]
