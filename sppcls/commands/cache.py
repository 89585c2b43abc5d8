"""``sppcls cache``: the cached pixels, image sizes and features, listed or removed."""

import argparse
import os
import re
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from sppcls.commands.arguments import at_least
from sppcls.data.cache import HEADER, MAGIC, cache_dir, lock, megabytes
from sppcls.data.decode import shown
from sppcls.errors import counted
from sppcls.terminal import show, table

# What this package writes, by folder. Nothing else is ever listed or removed.
_KINDS = {
    "": r"[0-9a-f]{20}\.pixels",
    "sizes": r"[0-9a-f]{16}\.(json|bin)",
    "features": r"[0-9a-f]{20}-\w+-\d+-\d+\.npy",
}
_DAY = 86400


class CacheFile(NamedTuple):
    """A file in the cache folder: the bytes it takes, when it was last used, and what it was made from."""

    path: Path
    size: int
    used: float
    images_of: str


def run(clear: bool = False, days: float = 0) -> int:
    """List the cache files, or remove those that no process uses, and return the exit status 0."""
    files = list(_cache_files(days))
    free = {file.path for file in files if not _in_use(file.path)}
    total = _counted(files if not clear else [file for file in files if file.path in free])
    if not clear:
        rows = [_row(file, file.path not in free) for file in files]
        if rows:
            show(table(f"Cache files in {cache_dir()}", ("file", "MB", "last used", "in use", "images of"), rows))
        show(total + ("; sppcls cache --clear removes those not in use" if files else ""))
        return 0
    for path in free:
        path.unlink(missing_ok=True)
    kept = f"; {len(files) - len(free)} in use, kept" if len(free) < len(files) else ""
    show(f"removed {total}, from {cache_dir()}{kept}")
    return 0


def _cache_files(days: float) -> Iterator[CacheFile]:
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


def _images_of(path: Path) -> str:
    with suppress(OSError), path.open("rb") as file:
        head = file.read(HEADER)
        if head.startswith(MAGIC):
            return os.fsdecode(head[len(MAGIC) :].rstrip(b"\0"))
    return ""


def _in_use(path: Path) -> bool:
    """Return whether a process has the file open."""
    try:
        with path.open("rb") as file:
            return not lock(file, exclusive=True)
    except OSError:
        return False


def _counted(files: Sequence[CacheFile]) -> str:
    return f"{counted(len(files), 'file')}, {megabytes(sum(file.size for file in files))} MB"


def _row(file: CacheFile, in_use: bool) -> list[str]:
    used = time.strftime("%Y-%m-%d %H:%M", time.localtime(file.used))
    name = str(file.path.relative_to(cache_dir()))
    return [name, megabytes(file.size), used, "yes" if in_use else "", shown(file.images_of)]


def options(verb: argparse.ArgumentParser) -> None:
    """Add the options of the verb."""
    add = verb.add_argument
    add("--clear", action="store_true", help="remove the files that no process uses")
    days = "only files that were not used for so long"
    add("--older-than", type=at_least(0), default=0, dest="days", metavar="DAYS", help=days)
