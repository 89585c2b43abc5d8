"""The files in the user's cache folder: opened with their room reserved, and listed."""

import os
import re
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO, NamedTuple

HEADER = 4096  # bytes before the pixels: what the file is, and which images it is of
_MAGIC = b"sppcls pixels\n"
# What this package writes, by folder. Nothing else is ever listed or removed.
_KINDS = {
    "": r"[0-9a-f]{20}\.pixels",
    "sizes": r"[0-9a-f]{16}\.(json|bin)",
    "features": r"[0-9a-f]{20}-\w+-\d+-\d+\.npy",
}
_DAY = 86400


def cache_dir() -> Path:
    """Return the user's cache folder for this package, without making it."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sppcls"


def open_reserved(path: Path, size: int) -> BinaryIO:
    """Return a file of ``size`` bytes, made where it is not there; it counts as in use until it is closed.

    All its room is taken now: writing to a mapped page that finds none would kill the process (SIGBUS). Raises
    ``OSError`` where there is no room, and leaves no file then.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    file = path.open("ab", buffering=0)
    _lock(file, exclusive=False)
    try:
        reserve(file, size)
    except BaseException:
        file.close()
        path.unlink(missing_ok=True)
        raise
    os.utime(path)
    return file


def reserve(file: BinaryIO, size: int) -> None:
    """Lengthen a file to ``size`` bytes that are really there; what it holds stays."""
    missing = size - os.fstat(file.fileno()).st_size
    if missing > 0 and hasattr(os, "posix_fallocate"):
        os.posix_fallocate(file.fileno(), 0, size)
    elif missing > 0:  # macOS, Windows
        for start in range(0, missing, 1 << 20):
            file.write(bytes(min(1 << 20, missing - start)))


def megabytes(size: int) -> str:
    """Return bytes as whole megabytes, rounded up.

    >>> megabytes(1_234_567_890), megabytes(1)
    ('1,235', '1')
    """
    return f"{-(-size // 10**6):,}"


class CacheFile(NamedTuple):
    """A file in the cache folder: the bytes it takes, when it was last used, and what it was made from."""

    path: Path
    size: int
    used: float
    images_of: str


def cache_files(days: float = 0) -> Iterator[CacheFile]:
    """Yield this package's cache files that were not used in the last ``days`` days; links are left out."""
    for kind, pattern in _KINDS.items():
        folder = cache_dir() / kind
        if not folder.is_dir() or (kind and folder.is_symlink()):
            continue
        for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
            if re.fullmatch(pattern, entry.name) and entry.is_file(follow_symlinks=False):
                status, path = entry.stat(follow_symlinks=False), Path(entry.path)
                used = max(status.st_atime, status.st_mtime) if kind else status.st_mtime
                if time.time() - used >= days * _DAY:
                    yield CacheFile(path, 512 * status.st_blocks, used, "" if kind else _images_of(path))


def header(images_of: str) -> bytes:
    """Return the first bytes of a file of pixels, which say what it is."""
    return (_MAGIC + os.fsencode(images_of))[: HEADER - 1].ljust(HEADER, b"\0")


def _images_of(path: Path) -> str:
    with suppress(OSError), path.open("rb") as file:
        head = file.read(HEADER)
        if head.startswith(_MAGIC):
            return os.fsdecode(head[len(_MAGIC) :].rstrip(b"\0"))
    return ""


def in_use(path: Path) -> bool:
    """Return whether a process has the file open."""
    try:
        with path.open("rb") as file:
            return not _lock(file, exclusive=True)
    except OSError:
        return False


def _lock(file: BinaryIO, exclusive: bool) -> bool:
    """Mark a file as in use, or find out (``exclusive``) whether no process has."""
    try:
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB if exclusive else fcntl.LOCK_SH)
    except BlockingIOError:
        return False
    except (ImportError, OSError):  # Windows, and file systems without locks
        return True
    return True
