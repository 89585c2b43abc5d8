"""``sppcls data``: inspect a data set: contents, broken files, duplicates."""

from argparse import ArgumentParser, Namespace
from pathlib import Path

from rich.table import Table

from sppcls.commands.arguments import path_text, scale_list
from sppcls.errors import ConfigError, DataError
from sppcls.measure.dataset import DataFacts, examine
from sppcls.report.data_page import plain, remarks, sheets, write_data_page
from sppcls.terminal import show, table


def run(given: Namespace) -> int:
    """Run `examine`, print the findings, and write them to the page ``--out`` if given; 3 if a file is broken."""
    page = Path(given.out) if given.out is not None else None
    if page and (page.is_dir() or not page.absolute().parent.is_dir()):
        raise ConfigError(f"--out {plain(given.out)}: cannot be written; give FILE.html in an existing folder")
    facts = examine(given.directory, given.scales, decode_all=given.decode)
    show(*data_tables(facts), *remarks(facts))
    if page:
        show(f"page: {plain(write_data_page(facts, page))}")
    return DataError.exit_status if facts.broken else 0


def data_tables(facts: DataFacts) -> list[Table]:
    """Return the non-empty tables; long ones are cut to their first 12 and last 5 rows."""
    found = {title: sheet for title, sheet in sheets(facts).items() if sheet[1]}
    return [table(title, columns, _shortened(rows)) for title, (columns, rows) in found.items()]


def _shortened(rows: list[list[str]]) -> list[list[str]]:
    return rows if len(rows) <= 18 else [*rows[:12], [f"... {len(rows) - 17} more"], *rows[-5:]]


def options(verb: ArgumentParser) -> None:
    """Add the options of the verb."""
    add = verb.add_argument
    add("directory", type=path_text, metavar="DIR", help="class folders, train/ and val/, or a table")
    add("--scales", type=scale_list, default=(96, 128, 224), help="scales to estimate costs for (96,128,224)")
    add("--decode", action="store_true", help="fully decode every image, to find truncated files")
    add("--out", type=path_text, metavar="FILE.html", help="write an offline HTML page")
