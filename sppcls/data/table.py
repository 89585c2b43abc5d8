"""A table of files and labels, CSV or Parquet, as the parts of a data set."""

import csv
import os
from collections.abc import Iterable, Iterator, Sequence
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import Any

from sppcls.data.decode import shown
from sppcls.data.names import Names
from sppcls.data.paths import Groups
from sppcls.errors import DataError, did_you_mean, missing_extra
from sppcls.path_checks import path_fault

COLUMNS = ("path", "label", "split")
_PART = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
_PARQUET = (".parquet", ".pq")


def table_parts(file: Path) -> dict[str, Groups]:
    """Return the files of each label by part, in the order train, val, test; without a column ``split`` all are train.

    Paths are relative to the table's folder or absolute. Labels are taken as text, in sorted order.

    Raises:
        ConfigError: A Parquet file without pyarrow.
        DataError: Missing or repeated columns, an empty cell, an unknown part, a path that is listed twice.
    """
    rows = _parquet_rows(file) if file.suffix.lower() in _PARQUET else _csv_rows(file)
    parts: dict[str, dict[str, list[str]]] = {}
    listed: dict[str, int] = {}
    for number, (path, label, split) in enumerate(rows, 1):
        where = f"{shown(file)}: row {number}"
        if fault := path_fault(path) if path and label else "a row needs a path and a label":
            raise DataError(f"{where}: {fault}")
        if split not in _PART:
            raise DataError(f"{where} has the split {split!r}{did_you_mean(split, _PART)}")
        name = os.path.normpath(os.path.join(file.parent, path))  # noqa: PTH118 - a Path a row would take minutes
        if (before := listed.setdefault(name, number)) != number:
            raise DataError(f"{where} has the path of row {before}, {shown(path)}; list each image once")
        parts.setdefault(_PART[split], {}).setdefault(shown(label), []).append(name)
    if not listed:
        raise DataError(f"{shown(file)}: no rows; a row has a path and a label")
    if "train" not in parts:
        raise DataError(f"{shown(file)}: no row has the split 'train'")
    ordered = [part for part in ("train", "val", "test") if part in parts]
    return {part: {label: Names(parts[part][label]) for label in sorted(parts[part])} for part in ordered}


def _csv_rows(file: Path) -> Iterator[tuple[str, str, str]]:
    try:
        with file.open(newline="", encoding="utf-8-sig") as stream:
            lines = csv.reader(stream, strict=True)
            head = [name.strip() for name in next(lines, [])]
            if not head:
                raise DataError(f"{shown(file)}: the file is empty; its first row names the columns, path and label")
            at = _places(head, file)
            for number, row in enumerate((row for row in lines if row), 1):
                if len(row) != len(head):
                    said = f"{len(row)} cells, and the header has {len(head)}"
                    raise DataError(f"{shown(file)}: row {number} has {said}; put quotes around a cell with a comma")
                yield _cells([row[place].strip() for place in at])
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise _unreadable(file, error, "CSV in UTF-8") from None


def _parquet_rows(file: Path) -> Iterator[tuple[str, str, str]]:
    if not find_spec("pyarrow"):
        raise missing_extra(f"data.root={shown(file)} is Parquet, which", "parquet")
    from pyarrow import parquet

    try:
        head = parquet.read_schema(file).names
        wanted = [head[place] for place in _places(head, file)]
        columns = parquet.read_table(file, columns=wanted).to_pydict()
    except (OSError, ValueError) as error:  # pyarrow's errors are ValueErrors
        raise _unreadable(file, error, "Parquet") from None
    for row in zip(*(columns[name] for name in wanted), strict=True):
        yield _cells(["" if cell is None else str(cell) for cell in row])


def _cells(found: Sequence[str]) -> tuple[str, str, str]:
    path, label, split = islice((*found, "train"), 3)
    return path, label, split


def _places(head: Sequence[str], file: Path) -> list[int]:
    """Return where the columns are; one that is nearly called ``split`` is a mistake, others are left alone."""
    allowed = "path, label and, if there are parts, split"
    if twice := [name for name in COLUMNS if head.count(name) > 1]:
        raise DataError(f"{shown(file)}: two columns are called {twice[0]!r}; allowed: {allowed}")
    if missing := [name for name in COLUMNS[:2] if name not in head]:
        raise DataError(f"{shown(file)}: no column {missing[0]!r} among {_some(head)}; needed: {allowed}")
    if "split" not in head:
        for name in head:
            if name not in COLUMNS and "?" in (meant := did_you_mean(name.casefold(), ["split"])):
                raise DataError(f"{shown(file)}: unknown column {name!r}{meant}")
    return [head.index(name) for name in COLUMNS if name in head]


def _some(names: Iterable[str]) -> str:
    return shown(", ".join(map(repr, names))[:100]) or "none"


def _unreadable(file: Path, error: Any, form: str) -> DataError:
    why = getattr(error, "strerror", None) or str(error).partition("\n")[0]
    return DataError(f"{shown(file)}: {why}; data=table reads {form}")
