"""Output for people: coloured tables and progress bars on a terminal, plain text elsewhere; always printable.

Nothing else in the package prints: names, errors and logs may come from strangers and contain escape codes.
"""

import io
import logging
import os
import shutil
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from importlib.util import find_spec
from typing import TYPE_CHECKING, NoReturn, TextIO, TypeVar

if TYPE_CHECKING:
    from rich.table import Table
    from rich.text import Text

T = TypeVar("T")
log = logging.getLogger("sppcls")
_LOGGED = ContextVar("sppcls_only_logged", default=False)


def _printable_record(record: logging.LogRecord) -> bool:
    record.msg, record.args = printable(record.getMessage()), ()
    return True


log.addFilter(_printable_record)


class OutputClosedError(BrokenPipeError):
    """The reader of standard output has closed it, as `head` does; the exit status is SIGPIPE's."""

    status = 141


def close_output() -> NoReturn:
    """Raise ``OutputClosedError`` and write nothing more, or Python would complain in its final flush."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    raise OutputClosedError


def width() -> int:
    """Return the width of the output in columns; 140 if it is not a terminal."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else 140


def say(line: str, stream: TextIO | None = None) -> None:
    """Print one line and flush, on standard error unless a stream is given."""
    try:
        print(printable(line), file=stream or sys.stderr, flush=True)
    except BrokenPipeError:
        if stream not in (None, sys.stderr):
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())  # nobody reads it any more


def show(*things: "Table | Text | str") -> None:
    """Print tables made by `table`, texts and lines; on a terminal in colour and at its width."""
    from rich.console import Console
    from rich.table import Table

    class Screen(Console):
        def on_broken_pipe(self) -> None:
            close_output()

    kept = io.StringIO() if _LOGGED.get() else None
    plain = kept is not None or not sys.stdout.isatty()
    console = Screen(width=140 if kept is not None else width(), color_system=None, file=kept) if plain else Screen()
    for thing in things:
        wide = isinstance(thing, Table) and _narrowest(thing) > console.width
        for part in _as_lines(thing) if wide and isinstance(thing, Table) else [thing]:
            shown = printable(part) if isinstance(part, str) else part
            console.print(shown, highlight=False, markup=False, emoji=False, soft_wrap=not isinstance(part, Table))
    for line in kept.getvalue().splitlines() if kept is not None else ():
        log.info(line.rstrip())


@contextmanager
def only_logged() -> Iterator[None]:
    """Send the output of `show` only to the log, and keep the log off the screen."""
    token = _LOGGED.set(True)
    try:
        yield
    finally:
        _LOGGED.reset(token)


def is_only_logged() -> bool:
    """Return whether output goes only to the log, as in a sweep, which prints one line per job."""
    return _LOGGED.get()


def _narrowest(table: "Table") -> int:
    """Return the width that a table needs so that no word or number is cut."""
    columns = [[word for text in (c.header, *c.cells) for word in str(text).split()] for c in table.columns]
    folded = [column.overflow == "fold" for column in table.columns]
    return 1 + sum(
        3 + (8 if fold else max(map(len, words), default=0)) for words, fold in zip(columns, folded, strict=True)
    )


def _as_lines(table: "Table") -> list[str]:
    """Return a table as its title and one line per row, with the column names."""
    rows = zip(*(column.cells for column in table.columns), strict=True)
    named = [[f"{column.header} {cell}" for column, cell in zip(table.columns, row, strict=True)] for row in rows]
    return [*([str(table.title)] if table.title else []), *(", ".join(row) for row in named)]


def table(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> "Table":
    """Return a table of plain text; its first column wraps on a narrow terminal."""
    from rich.table import Column, Table
    from rich.text import Text

    heads = [Column(Text(printable(name)), overflow="ellipsis" if at else "fold") for at, name in enumerate(columns)]
    made = Table(*heads, title=Text(printable(title), "table.title"))
    for row in rows:
        made.add_row(*(Text(printable(cell)) for cell in row))  # verbatim: a name in brackets is not a style
    return made


def track(things: Iterable[T], label: str, total: int | None = None) -> Iterator[T]:
    """Yield the things, with a progress bar on standard error if that is a terminal."""
    if not sys.stderr.isatty() or find_spec("rich") is None:
        yield from things
        return
    from rich.console import Console
    from rich.markup import escape
    from rich.progress import track as bar

    yield from bar(things, escape(printable(label)), total, console=Console(stderr=True), transient=True)


def printable(text: str) -> str:
    """Return text without control characters: names may come from strangers.

    >>> printable("a\\x1b[2Jb\\n")
    'a?[2Jb?'
    """
    return text if text.isprintable() else "".join(sign if sign.isprintable() else "?" for sign in text)


def markdown_text(text: str) -> str:
    """Escape a line for Markdown: nothing in it becomes HTML, a link or an image.

    >>> print(markdown_text("<b>![x](http://a)"))
    \\<b>![x]\\(http://a)
    """
    return printable(text).replace("<", "\\<").replace("](", "]\\(")


def ece_column(found: Mapping[str, object]) -> str:
    """Return the column name of the calibration error; it names label smoothing, which alone makes the error large.

    >>> ece_column({"label_smoothing": 0.1}), ece_column({})
    ('ECE (label smoothing 0.1)', 'ECE')
    """
    smoothing = found.get("label_smoothing")
    return f"ECE (label smoothing {smoothing:g})" if smoothing and isinstance(smoothing, float) else "ECE"


def markdown(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table in Markdown.

    >>> print(markdown(["a", "b"], [["1", "x|y"]]))
    | a | b |
    |---|---|
    | 1 | x\\|y |
    """
    lines = [
        "| " + " | ".join(markdown_text(cell).replace("|", "\\|") for cell in row) + " |" for row in (columns, *rows)
    ]
    return "\n".join([lines[0], "|---" * len(columns) + "|", *lines[1:]])
