"""Files that are whole or not there, also after a power cut."""

import csv
import io
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO


@contextmanager
def replacing(path: Path) -> Iterator[IO[bytes]]:
    """Open a file that takes the place of ``path`` when the block ends well: written beside, synced, renamed."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with beside.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
        sync_folder(path.parent)
    finally:
        beside.unlink(missing_ok=True)


def sync_folder(path: Path) -> None:
    """Make the renames in a folder last, where the system can (Windows cannot open a folder)."""
    with suppress(PermissionError):
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def write_bytes(path: Path, content: bytes) -> Path:
    """Write beside, then rename: ``path`` holds the old content or the new one, never half of it."""
    with replacing(path) as file:
        file.write(content)
    return path


def write_text(path: Path, text: str) -> Path:
    """Write text beside, then rename."""
    return write_bytes(path, text.encode())


def write_csv(path: Path, rows: Sequence[Mapping[str, object]]) -> Path:
    """Write rows under the names of all their columns, in order of appearance, beside, then rename."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(dict.fromkeys(key for row in rows for key in row)), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return write_text(path, text.getvalue())


def write_json(path: Path, values: object) -> Path:
    """Write JSON beside, then rename."""
    return write_text(path, json.dumps(values, indent=2) + "\n")
