"""The checkpoints of a run: written atomically, with their SHA-256, and the previous one kept."""

import hashlib
import os
import zipfile
from collections.abc import Callable, Collection
from contextlib import suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from sppcls.errors import SppclsError
from sppcls.files import read_bytes, replacing, write_text
from sppcls.terminal import log

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

Content = dict[str, Any]  # of a checkpoint: tensors and plain values, by the names that Lightning gives them

LAST, PREVIOUS, BEST = "last.ckpt", "previous.ckpt", "best.ckpt"
CALIBRATED = "calibrated.ckpt"  # the last, with batch-norm statistics for each test scale; not to resume from
SUMS = "SHA256SUMS"  # as `sha256sum -c` reads it
CHECKPOINTS = (LAST, PREVIOUS, BEST, CALIBRATED, SUMS)
_told: set[Path] = set()


def has_checkpoint(run: Path) -> bool:
    """Return whether a run has a checkpoint to resume from."""
    return any((run / "checkpoints" / name).is_file() for name in (LAST, PREVIOUS))


class _Hashed:
    """A file wrapper that computes the SHA-256 of what is written."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file, self.digest = file, hashlib.sha256()

    def write(self, data: "ReadableBuffer") -> int:
        self.digest.update(data)
        return self._file.write(data)

    def flush(self) -> None:
        self._file.flush()


def save_whole(path: Path, write: Callable[[Any], None]) -> None:
    """Let ``write`` write the new ``path``; an existing last.ckpt becomes previous.ckpt.

    If killed at any moment, last.ckpt is still intact once there has been one: SHA256SUMS has the line of the
    new file before it is renamed into place, and the line of the old one until then.
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
    """Hard-link a file to a second name, replacing it; copies where links are not supported."""
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
        text = read_bytes(folder / SUMS, 1 << 16).decode()
        lines = (line.partition("  ") for line in text.splitlines())
        return [(digest.lower(), name) for digest, _, name in lines if name]
    return []


def _write_sums(folder: Path, sums: list[tuple[str, str]]) -> None:
    write_text(folder / SUMS, "".join(f"{digest}  {name}\n" for digest, name in sums))


def is_whole(path: Path) -> bool:
    """Return whether a checkpoint matches its SHA-256 or, if none is known, the archive's CRCs."""
    sums = _sums(path.parent)
    with path.open("rb") as file:
        if not any(name == path.name for _, name in sums):
            return _is_whole_archive(file)
        return hashlib.file_digest(file, "sha256").hexdigest() in {digest for digest, _ in sums}


def _is_whole_archive(file: IO[bytes]) -> bool:
    try:
        with zipfile.ZipFile(file) as archive:
            return archive.testzip() is None
    except Exception:  # a damaged archive can raise almost any exception
        return False


def last_whole(folder: Path) -> Path | None:
    """Return the last checkpoint in a folder or, with a warning, the previous one if the last is damaged.

    Raises:
        SppclsError: There are checkpoints, all damaged.
    """
    found = [path for path in (folder / LAST, folder / PREVIOUS) if path.is_file()]
    for path in found:
        if is_whole(path):
            if path is not found[0] and path not in _told:
                _told.add(path)
                log.warning("%s is damaged (SHA-256 mismatch); using %s instead", found[0], path)
            return path
    if found:
        raise SppclsError(f"{found[0]} is damaged (checksum mismatch), and there is no intact earlier one")
    return None


def clear_leftovers(folder: Path, names: Collection[str] = CHECKPOINTS) -> None:
    """Remove half-written files of these names, left in a folder by killed processes."""
    for path in folder.glob(".*.*"):
        name, _, number = path.name[1:].rpartition(".")
        if name in names and number.isdecimal() and path.is_file() and not path.is_symlink():
            path.unlink(missing_ok=True)
