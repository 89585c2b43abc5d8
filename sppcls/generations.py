"""The checkpoints of a run: each whole or not there, its SHA-256 beside it, and the one before the last kept."""

import hashlib
import logging
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

from sppcls.atomic import replacing, write_text
from sppcls.errors import SppclsError

LAST, PREVIOUS, BEST = "last.ckpt", "previous.ckpt", "best.ckpt"
SUMS = "SHA256SUMS"  # as `sha256sum -c` reads it
log = logging.getLogger("sppcls")


class _Hashed:
    """A file to write to that takes the SHA-256 of what passes."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file, self.digest = file, hashlib.sha256()

    def write(self, data: Any) -> int:
        self.digest.update(data)
        return self._file.write(data)

    def flush(self) -> None:
        self._file.flush()


def save_whole(path: Path, write: Callable[[Any], None]) -> None:
    """Let ``write`` fill the next ``path``; a last.ckpt that is there becomes previous.ckpt.

    Killed at any moment it leaves a last.ckpt that is whole, once there has been one: SHA256SUMS has the line of the
    new file before the file has its name, and the line of the old one until then.
    """
    with replacing(path) as file:
        hashed = _Hashed(file)
        write(hashed)
        sums = _sums(path.parent)
        line = (hashed.digest.hexdigest(), path.name)
        _write_sums(path.parent, [*sums, line])
        if path.name == LAST and path.exists():
            _link(path, path.with_name(PREVIOUS))
            sums = [(digest, PREVIOUS if name == LAST else name) for digest, name in sums if name != PREVIOUS]
    _write_sums(path.parent, [*(kept for kept in sums if kept[1] != path.name), line])


def _link(source: Path, target: Path) -> None:
    """Give a file a second name, in place of what had it; a copy where the disk knows no links."""
    beside = target.with_name(f".{target.name}.{os.getpid()}")
    beside.unlink(missing_ok=True)
    try:
        os.link(source, beside)
        beside.replace(target)
    except OSError:
        with replacing(target) as file:
            file.write(source.read_bytes())
    finally:
        beside.unlink(missing_ok=True)


def _sums(folder: Path) -> list[tuple[str, str]]:
    with suppress(OSError, UnicodeDecodeError):
        lines = (line.partition("  ") for line in (folder / SUMS).read_text().splitlines())
        return [(digest, name) for digest, _, name in lines if name]
    return []


def _write_sums(folder: Path, sums: list[tuple[str, str]]) -> None:
    write_text(folder / SUMS, "".join(f"{digest}  {name}\n" for digest, name in sums))


def is_whole(path: Path) -> bool:
    """Return whether a checkpoint has the SHA-256 that it was saved with, or none is known of it."""
    sums = _sums(path.parent)
    if not any(name == path.name for _, name in sums):
        return True
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() in {digest for digest, _ in sums}


def last_whole(folder: Path) -> Path | None:
    """Return the last checkpoint in a folder, or the one before where the last is damaged, which is logged.

    Raises:
        SppclsError: There are checkpoints, all damaged.
    """
    found = [path for path in (folder / LAST, folder / PREVIOUS) if path.is_file()]
    for path in found:
        if is_whole(path):
            if path is not found[0]:
                log.warning("%s is damaged (its SHA-256 is not the one it was saved with); %s is used", found[0], path)
            return path
    if found:
        raise SppclsError(f"{found[0]} is damaged: its SHA-256 is not the one in {SUMS}, and no whole one is before it")
    return None


def clear_leftovers(folder: Path) -> None:
    """Take away what a killed save has left half-written."""
    for path in folder.glob(".*.*"):
        path.unlink(missing_ok=True)
