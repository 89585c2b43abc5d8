"""Files that are whole or not there, also after a power cut, and read only so far as they are of their kind."""

import csv
import io
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import IO, Any


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


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock of a file, which is made if need be, once no other process does; go on without where there is none.

    The file may be replaced meanwhile: who waited for the lock of the old one reads the new one.
    """
    with ExitStack() as stack:
        with suppress(OSError, ImportError):  # no right to write, or no such lock (Windows)
            import fcntl

            path.parent.mkdir(parents=True, exist_ok=True)
            fcntl.flock(stack.enter_context(path.open("ab")), fcntl.LOCK_EX)
        yield


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


def read_bytes(path: Path, limit: int) -> bytes:
    """Return what a regular file holds, of ``limit`` bytes at most; raises ``OSError`` otherwise, and never waits."""
    if not path.is_file():
        raise FileNotFoundError(f"no file {path.name}")
    with path.open("rb") as file:
        content = file.read(limit + 1)
    if len(content) > limit:
        raise OSError(f"more than {limit >> 20} MB")
    return content


def read_config_values(path: Path) -> dict[str, Any]:
    """Return the plain values of a config.yaml; raises ``ValueError`` saying in one line why there are none."""
    import yaml

    try:
        text = read_bytes(path, 1 << 20).decode()
        if text.count("[") + text.count("{") > 1000:  # which the scanner takes a second for where they are nested
            raise ValueError("more lists than a config has")
        if any(isinstance(token, yaml.AliasToken) for token in yaml.scan(text)):
            raise ValueError("it has aliases, of which a few lines can stand for any number of values")
        values = yaml.safe_load(text)
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:  # a date that is none is a ValueError
        raise ValueError(f"{path.name}: {str(error).splitlines()[0]}") from None
    if not isinstance(values, dict):
        raise ValueError(f"{path.name} holds no mapping")
    return values
