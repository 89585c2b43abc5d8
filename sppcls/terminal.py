"""What a person sees: tables in colour and bars on a terminal, plain text elsewhere."""

import os
import shutil
import sys
from collections.abc import Iterable, Iterator, Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from rich.table import Table

T = TypeVar("T")


def own_plots() -> None:
    """Let matplotlib draw into files: a notebook's ``MPLBACKEND``, inherited here, may not even be importable."""
    os.environ["MPLBACKEND"] = "svg"


def width() -> int:
    """Return how many columns there are to print in; 140 where it is no terminal."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else 140


def show(*things: Any) -> None:
    """Print tables and lines; in colour and as wide as the terminal where there is one."""
    from rich.console import Console

    console = Console() if sys.stdout.isatty() else Console(width=width(), color_system=None)
    for thing in things:
        console.print(thing, highlight=False, markup=False, emoji=False, soft_wrap=isinstance(thing, str))


def table(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> "Table":
    """Return a table of plain text, whose first column is folded where the terminal is narrow."""
    from rich.table import Column, Table
    from rich.text import Text

    made = Table(Column(columns[0], overflow="fold"), *columns[1:], title=Text(title, "table.title"))
    for row in rows:
        made.add_row(*map(Text, row))  # as it is: a name in brackets is no style
    return made


def track(things: Iterable[T], label: str, total: int | None = None) -> Iterator[T]:
    """Yield what is there with a progress bar on standard error, where that is a terminal."""
    if not sys.stderr.isatty() or find_spec("rich") is None:
        yield from things
        return
    from rich.console import Console
    from rich.progress import track as bar

    yield from bar(things, label, total, console=Console(stderr=True), transient=True)


def printable(text: str) -> str:
    """Return text without what a terminal would obey: names may come from strangers.

    >>> printable("a\\x1b[2Jb\\n")
    'a?[2Jb?'
    """
    return "".join(sign if sign.isprintable() else "?" for sign in text)


def markdown(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table in Markdown.

    >>> print(markdown(["a", "b"], [["1", "x|y"]]))
    | a | b |
    |---|---|
    | 1 | x\\|y |
    """
    lines = ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in (columns, *rows)]
    return "\n".join([lines[0], "|---" * len(columns) + "|", *lines[1:]])
