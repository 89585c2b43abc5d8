"""One offline HTML page from a template: text escaped, plots inline, no request to anywhere."""

import platform
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

from sppcls.files import write_text
from sppcls.terminal import ece_column


def write_page(template: str, path: Path, title: str, **values: Any) -> Path:
    """Render ``templates/<template>.html`` with ``values`` and write it beside, then rename."""
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


def middle(name: str, most: int = 32) -> str:
    """Return a name of ``most`` characters, cut in the middle: its end tells files and jobs apart.

    >>> middle("photos/IMG_20240131_120000.jpg", 15)
    'photos/…000.jpg'
    """
    return name if len(name) <= most else f"{name[: most // 2]}…{name[len(name) - (most - 1) // 2 :]}"


def scale_columns(found: dict[str, Any]) -> list[str]:
    """Return the headings of `scale_cells` in a run's summary or an evaluation."""
    return ["top-1", "95 % interval", "top-5", "loss", ece_column(found)]


def figure(value: float | None) -> str:
    """Return a loss or an error with three digits, or a dash where it is not finite."""
    return "-" if value is None else f"{value:.3f}"


def scale_cells(row: dict[str, Any]) -> list[str]:
    """Return what an evaluation says of one scale under `scale_columns`."""
    between = f"{percent(row.get('acc1_low'))} to {percent(row.get('acc1_high'))}"
    return [percent(row["acc1"]), between, percent(row["acc5"]), figure(row["loss"]), figure(row["ece"])]


def points(share: float | None) -> str:
    """Return a difference of shares in signed percentage points, or a dash.

    >>> points(-0.0125)
    '-1.2'
    """
    return "-" if share is None else f"{round(share * 100, 1) + 0.0:+.1f}"  # and no -0.0


def duration(seconds: float) -> str:
    """Return a time in the unit that suits it.

    >>> duration(68.4), duration(372), duration(9000)
    ('68 s', '6.2 min', '2.5 h')
    """
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
