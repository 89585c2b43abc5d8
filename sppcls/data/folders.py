"""Finds image files and their classes, in folders and in tables of paths and labels."""

import csv
import os
import re
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import NoReturn

from sppcls.data.decode import shown
from sppcls.data.source import Names
from sppcls.errors import DataError, did_you_mean, missing_extra
from sppcls.files import path_fault

Groups = dict[str, Sequence[str]]  # class -> its files

# Not hidden (.DS_Store, ._a.jpg), and with the suffix of a format that `decode` reads.
_IMAGE_NAME = re.compile(
    r"[^.].*\.(jpe?g|jpe|jfif|mpo|a?png|webp|gif|bmp|dib|tiff?|p[pgbn]m|avif|jp2|j2k)", re.I | re.S
)


_VAL = ("val", "validation", "valid")
_PARTS = {"train", "training", "test", "testing", *_VAL}


def part_folders(root: Path) -> list[Path]:
    """Return the folders of a set's parts, in the order train, val, test; or ``root`` if it has no parts.

    A ``train`` that holds folders is a part even without others. Raises ``DataError`` if a folder next to it has
    images but not the name of a part, or if there are parts but no ``train``.
    """
    folders = {path.name: path for path in _folders(root)}
    train, test = folders.get("train"), folders.get("test")
    val = next((folders[name] for name in _VAL if name in folders), None)
    # Competitions often have a test folder of loose, unlabelled images.
    labelled = test if test is not None and _folders(test) else None
    if train and (val or labelled):
        return [part for part in (train, val or labelled, labelled if val else None) if part]
    if train and (_folders(train) or folders.keys() <= {"train", "test"}):
        for path in folders.values():
            if path not in (train, test) and _has_images(path):
                meant = did_you_mean(path.name, (*_VAL, "test"))
                where = f"{shown(path)} has images next to train/, but is not a known part{meant}"
                use = f"data.val_dir={shown(path.name)} validates on it, data.train_dir=train ignores it"
                raise DataError(f"{where} ({use})")
        return [train]
    _refuse_parts_without_train(folders)
    return [root]


def named_folders(root: Path, train: str | Path | None, val: str | Path | None) -> list[Path]:
    """Return the folders of the training and the validation images, given relative to ``root`` or absolute.

    Raises ``DataError`` if there is no such folder, or one lies in the other and would become a class of it.
    """
    given = {"train_dir": train or "train"} | ({"val_dir": val} if val else {})
    folders = [Path(os.path.normpath(root / Path(folder).expanduser())) for folder in given.values()]
    for key, folder in zip(given, folders, strict=True):
        if not folder.is_dir():
            near = did_you_mean(folder.name, [path.name for path in _folders(root)])
            raise DataError(f"data.{key}={given[key]}: no such folder, {shown(folder)}{near}")
    if val and (folders[0].is_relative_to(folders[1]) or folders[1].is_relative_to(folders[0])):
        raise DataError(f"data.val_dir={val}: {shown(folders[1])} and {shown(folders[0])} overlap; use two folders")
    return folders


def _refuse_parts_without_train(folders: dict[str, Path]) -> None:
    parts = [path for name, path in folders.items() if name.casefold() in _PARTS]
    inside = {path: {inner.name for inner in _folders(path)} for path in folders.values()} if parts else {}
    for part in parts:
        if twin := next((path for path in inside if path != part and inside[part] & inside[path]), None):
            why = f"{part.name}/ and {twin.name}/ have the same class folders, but there is no train/"
            raise DataError(f"{shown(part.parent)}: {shown(why)}; rename the training part to 'train'")


def _has_images(folder: Path) -> bool:
    """Return whether there is an image in a folder or in one of its folders, without walking all of it."""
    try:
        files = (file for place in (folder, *_folders(folder)) for file in place.iterdir())
        return any(_IMAGE_NAME.fullmatch(file.name) for file in files)
    except OSError as error:
        _refuse(error)


def class_folders(root: Path) -> Groups:
    """Return the image files of each folder in ``root``, classes and files in sorted order.

    Raises ``DataError`` if two names look the same in print: bytes that are not UTF-8 are all shown alike.
    """
    groups: Groups = {}
    for folder in _folders(root):
        name = shown(folder.name)
        if name in groups:
            raise DataError(f"{shown(root)}: two folders are both shown as {name!r}; rename one")
        groups[name] = Names(_image_names(folder))
    return groups


def _folders(root: Path) -> list[Path]:
    try:
        return sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))
    except OSError as error:
        _refuse(error)


def image_files(folder: Path) -> list[Path]:
    """Return the files at any depth whose suffix is an image's, sorted; hidden files and folders are left out.

    Links are followed, but each folder is visited once. Raises ``DataError`` at an unreadable folder.
    """
    return list(map(Path, _image_names(folder)))


def _image_names(folder: Path) -> list[str]:
    found: list[str] = []
    seen = set()
    for parent, folders, names in os.walk(folder, followlinks=True, onerror=_refuse):
        try:
            status = Path(parent).stat()
        except OSError as error:
            _refuse(error)
        if (status.st_dev, status.st_ino) in seen:
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        above = str(Path(parent, "_"))[:-1]
        found += [above + name for name in names if _IMAGE_NAME.fullmatch(name)]
    return sorted(found, key=lambda name: name.replace(os.sep, "\0"))  # sorted like paths: folder by folder


def _refuse(error: OSError) -> NoReturn:
    advice = "name a folder that exists" if isinstance(error, FileNotFoundError) else "make it readable or move it away"
    raise DataError(f"{shown(error.filename)}: {error.strerror}; {advice}") from error


COLUMNS = ("path", "label", "split")
_PART = {"train": "train", **dict.fromkeys(_VAL, "val"), "test": "test"}
_PARQUET = (".parquet", ".pq")


def table_parts(file: Path) -> dict[str, Groups]:
    """Return the files of each label by part, in the order train, val, test; without a ``split`` column all are train.

    Paths are relative to the table's folder or absolute. Labels are taken as text, in sorted order.

    Raises:
        ConfigError: A Parquet file without pyarrow.
        DataError: Missing or repeated columns, an empty cell, an unknown part, or a repeated path.
    """
    rows = _parquet_rows(file) if file.suffix.lower() in _PARQUET else _csv_rows(file)
    parts: dict[str, dict[str, list[str]]] = {}
    listed: dict[str, int] = {}
    for number, row in enumerate(rows, 1):
        path, label, split = row["path"], row["label"], row.get("split", "train")
        where = f"{shown(file)}: row {number}"
        if fault := path_fault(path) if path and label else "each row needs a path and a label":
            raise DataError(f"{where}: {fault}")
        if split not in _PART:
            raise DataError(f"{where} has the split {split!r}{did_you_mean(split, _PART)}")
        name = os.path.normpath(os.path.join(file.parent, path))  # noqa: PTH118 - one Path per row would take minutes
        if (before := listed.setdefault(name, number)) != number:
            raise DataError(f"{where} repeats the path of row {before}, {shown(path)}; list each image once")
        parts.setdefault(_PART[split], {}).setdefault(shown(label), []).append(name)
    if not listed:
        raise DataError(f"{shown(file)}: no rows; each row needs a path and a label")
    if "train" not in parts:
        raise DataError(f"{shown(file)}: no row has the split 'train'")
    ordered = [part for part in dict.fromkeys(_PART.values()) if part in parts]
    return {part: {label: Names(parts[part][label]) for label in sorted(parts[part])} for part in ordered}


def _csv_rows(file: Path) -> Iterator[dict[str, str]]:
    try:
        with file.open(newline="", encoding="utf-8-sig") as stream:
            lines = csv.reader(stream, strict=True)
            head = [name.strip() for name in next(lines, [])]
            if not head:
                raise DataError(f"{shown(file)}: the file is empty; its first row must name the columns path and label")
            _check_columns(head, file)
            for number, row in enumerate(filter(None, lines), 1):
                if len(row) != len(head):
                    has = f"{len(row)} cells, but the header has {len(head)}"
                    raise DataError(f"{shown(file)}: row {number} has {has}; put quotes around a cell with a comma")
                yield {name: cell.strip() for name, cell in zip(head, row, strict=True)}
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise _unreadable(file, error, "CSV in UTF-8") from None


def _parquet_rows(file: Path) -> Iterator[dict[str, str]]:
    if not find_spec("pyarrow"):
        raise missing_extra(f"data.root={shown(file)} is Parquet, which", "parquet")
    from pyarrow import parquet

    try:
        head = parquet.read_schema(file).names
        _check_columns(head, file)
        table = parquet.read_table(file, columns=[name for name in COLUMNS if name in head])
    except (OSError, ValueError) as error:  # pyarrow's errors are ValueErrors
        raise _unreadable(file, error, "Parquet") from None
    for row in (row for batch in table.to_batches() for row in batch.to_pylist()):
        yield {name: "" if cell is None else str(cell) for name, cell in row.items()}


def _check_columns(head: Sequence[str], file: Path) -> None:
    """Refuse missing and repeated columns; one that is nearly called ``split`` is a mistake, others are left alone."""
    allowed = "path, label and optionally split"
    if twice := [name for name in COLUMNS if head.count(name) > 1]:
        raise DataError(f"{shown(file)}: two columns are called {twice[0]!r}; allowed: {allowed}")
    if missing := [name for name in COLUMNS[:2] if name not in head]:
        among = shown(", ".join(map(repr, head))[:100]) or "none"
        raise DataError(f"{shown(file)}: no column {missing[0]!r} among {among}; needed: {allowed}")
    for name in head if "split" not in head else ():
        if name not in COLUMNS and "?" in (meant := did_you_mean(name.casefold(), ["split"])):
            raise DataError(f"{shown(file)}: unknown column {name!r}{meant}")


def _unreadable(file: Path, error: Exception, form: str) -> DataError:
    why = getattr(error, "strerror", None) or str(error).partition("\n")[0]
    return DataError(f"{shown(file)}: {why}; data=table reads {form}")
