"""Atomic writes and safe reads of files, and checks of file names."""

import csv
import io
import json
import os
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from math import isfinite
from pathlib import Path
from typing import IO, Any

from sppcls.errors import ConfigError
from sppcls.terminal import printable

TABLE_LIMIT = 64 << 20  # bytes of a JSON or CSV file; the confusion of a thousand classes takes 4 MB


@contextmanager
def replacing(path: Path) -> Iterator[IO[bytes]]:
    """Open a file that replaces ``path`` if the block succeeds: written next to it, synced, renamed."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        beside.unlink(missing_ok=True)
        with beside.open("xb") as file:  # never through an existing link
            yield file
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
        sync_folder(path.parent)
    finally:
        beside.unlink(missing_ok=True)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Wait for a file's lock and hold it; creates the file if needed, and continues where locks are not supported.

    The file may be replaced meanwhile: a process that waited for the old file's lock reads the new file.
    """
    handle = None
    try:
        with suppress(OSError, ImportError):  # no write permission, or no such lock (Windows)
            import fcntl

            path.parent.mkdir(parents=True, exist_ok=True)
            handle = os.open(path, os.O_RDWR | os.O_CREAT)  # does not block on a pipe in a stranger's folder
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        if handle is not None:
            os.close(handle)


def sync_folder(path: Path) -> None:
    """Sync a folder so that renames in it are durable, where supported (Windows cannot open a folder)."""
    with suppress(PermissionError):
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def write_bytes(path: Path, content: bytes) -> Path:
    """Write atomically: ``path`` has the old content or the new, never part of it."""
    with replacing(path) as file:
        file.write(content)
    return path


def write_text(path: Path, text: str) -> Path:
    """Write text atomically."""
    return write_bytes(path, text.encode(errors="replace"))  # a name may have bytes that are not text


def write_csv(path: Path, rows: Sequence[Mapping[str, object]]) -> Path:
    """Write rows as CSV, atomically; columns are in order of first appearance."""
    text, names = io.StringIO(), list(dict.fromkeys(key for row in rows for key in row))
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(map(csv_cell, names))
    writer.writerows([csv_cell(row.get(name)) for name in names] for row in rows)
    return write_text(path, text.getvalue())


def csv_cell(value: object) -> object:
    """Escape a cell so that it is neither a spreadsheet formula nor a terminal command; numeric text is kept.

    >>> [csv_cell(value) for value in ("=1+1", "-1.4", "@a\x1b", "-a", -1.4, "a=b")]
    ["'=1+1", '-1.4', "'@a?", "'-a", -1.4, 'a=b']
    """
    if not isinstance(value, str):
        return value
    with suppress(ValueError):
        float(value)
        return value
    return f"'{printable(value)}" if value.startswith(("=", "+", "-", "@", "\t", "\r")) else printable(value)


def write_json(path: Path, values: object) -> Path:
    """Write JSON atomically; see `to_json`."""
    return write_text(path, to_json(values, indent=2) + "\n")


def to_json(values: object, indent: int | None = None) -> str:
    """Return plain values as JSON, with null for non-finite numbers, which JSON does not have.

    >>> to_json({"loss": float("nan"), "scales": (64, float("inf"))})
    '{"loss": null, "scales": [64, null]}'
    """
    return json.dumps(_finite(values), indent=indent, allow_nan=False)


def _finite(values: object) -> object:
    if isinstance(values, Mapping):
        return {key: _finite(value) for key, value in values.items()}
    if isinstance(values, list | tuple):
        return [_finite(value) for value in values]
    return None if isinstance(values, float) and not isfinite(values) else values


def read_bytes(path: Path, limit: int) -> bytes:
    """Return the content of a regular file of at most ``limit`` bytes; raises ``OSError`` otherwise; never blocks."""
    if not path.is_file():
        raise FileNotFoundError(f"no file {path.name}")
    with path.open("rb") as file:
        content = file.read(limit + 1)
    if len(content) > limit:
        raise OSError(f"more than {limit >> 20} MB")
    return content


def read_json(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file, empty if there is none that can be read."""
    try:
        loaded = json.loads(read_bytes(path, TABLE_LIMIT), parse_constant=lambda _: None)  # NaN is not JSON
    except (OSError, ValueError, RecursionError):
        return {}
    return loaded if isinstance(loaded, dict) else {}


def write_arrays(path: Path, **arrays: Any) -> Path:
    """Write numpy arrays as an .npz file, atomically."""
    import numpy as np

    content = io.BytesIO()
    np.savez_compressed(content, **arrays)
    return write_bytes(path, content.getvalue())


def read_arrays(path: Path) -> dict[str, Any]:
    """Return the arrays of an .npz file without running code from it; raises ``ValueError`` if it is damaged."""
    import numpy as np

    try:
        content = read_bytes(path, 1 << 30)
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            if sum(member.file_size for member in archive.infolist()) > (256 << 20) + 16 * len(content):
                raise ValueError("it unpacks to far more than its size")
        with np.load(io.BytesIO(content), allow_pickle=False) as file:  # np.load leaves a truncated one open
            return {name: file[name] for name in file.files}
    except Exception as error:  # a damaged archive can raise almost any exception
        raise ValueError(f"{path} is damaged ({type(error).__name__})") from None


def read_config_values(path: Path) -> dict[str, Any]:
    """Return the plain values of a config.yaml; raises ``ValueError`` with a one-line reason."""
    import yaml

    try:
        text = read_bytes(path, 1 << 20).decode()
        if text.count("[") + text.count("{") > 1000:  # if nested, they take the scanner a second
            raise ValueError("too many lists or mappings for a config")
        if any(isinstance(token, yaml.AliasToken) for token in yaml.scan(text)):
            raise ValueError("it has YAML aliases, which can expand without limit")
        values = yaml.safe_load(text)
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:  # an invalid date is a ValueError
        raise ValueError(f"{path.name}: {str(error).splitlines()[0]}") from None
    if not isinstance(values, dict):
        raise ValueError(f"{path.name} is not a mapping")
    return values


def path_fault(text: str) -> str | None:
    """Return why a path is invalid, or None: a null byte, or longer than the system allows.

    >>> path_fault("runs/a\\0b"), path_fault("runs/a")
    ('it contains a null byte; remove it', None)
    """
    if "\0" in text:
        return "it contains a null byte; remove it"
    raw = os.fsencode(text)
    longest = max(map(len, raw.split(b"/")))
    if longest > 255 or len(raw) > 4095:
        return f"it is too long ({longest} bytes in one name, {len(raw)} in all); allowed: 255 and 4095"
    return None


def checked_path(path: str | os.PathLike[str], what: str) -> Path:
    """Return a path; raises ``ConfigError`` naming ``what`` if it is invalid."""
    if fault := path_fault(os.fspath(path)):
        raise ConfigError(f"{what} {os.fspath(path)[:60]!r}: {fault}")
    return Path(path)


def is_name(text: object) -> bool:
    """Return whether a text is a safe name inside a folder: printable, a single path component, not ``..``.

    >>> [is_name(text) for text in ("seed-1", "..", "../a", "a/b", "/a", "a\\x1b[2J", "")]
    [True, False, False, False, False, False, False]
    """
    inside = isinstance(text, str) and text not in ("", ".", "..") and not {"/", "\\"} & set(text)
    return inside and str(text).isprintable() and len(os.fsencode(str(text))) <= 255
