"""``sppcls cache``: list or remove cached pixels and image sizes."""

import os
import re
import time
from argparse import ArgumentParser, Namespace
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from sppcls.commands.arguments import at_least
from sppcls.data.cache import HEADER, MAGIC, cache_dir, lock, megabytes
from sppcls.data.decode import shown
from sppcls.errors import counted
from sppcls.terminal import show, table

# What this package writes, by folder. Nothing else is ever listed or removed.
_KINDS = {
    "": r"[0-9a-f]{20}\.pixels",
    "sizes": r"[0-9a-f]{16}\.bin",
}
_DAY = 86400


def run(given: Namespace) -> int:
    """List the cache files, or remove those not in use."""
    files = list(_cache_files(given.older_than))
    used = {file for file in files if _in_use(file)}
    if not given.clear:
        if files:
            rows = [_row(file, file in used) for file in files]
            show(table(f"Cache files in {cache_dir()}", ("file", "MB", "last used", "in use", "made from"), rows))
        show(_counted(files) + ("; sppcls cache --clear removes those not in use" if files else ""))
        return 0
    free = [file for file in files if file not in used]
    removed = _counted(free)
    for file in free:
        file.unlink(missing_ok=True)
    show(f"removed {removed}, from {cache_dir()}{f'; {len(used)} in use, kept' if used else ''}")
    return 0


def _cache_files(days: float) -> Iterator[Path]:
    """Yield this package's cache files that were not used in the last ``days`` days; links are left out."""
    for kind, pattern in _KINDS.items():
        folder = cache_dir() / kind
        if not folder.is_dir() or (kind and folder.is_symlink()):
            continue
        for path in sorted(folder.iterdir()):
            ours = re.fullmatch(pattern, path.name) and path.is_file() and not path.is_symlink()
            if ours and time.time() - _last_use(path) >= days * _DAY:
                yield path


def _last_use(path: Path) -> float:
    status = path.stat()  # a mapped file of pixels has its time of change set when it is opened
    return status.st_mtime if path.parent == cache_dir() else max(status.st_atime, status.st_mtime)


def _images_of(path: Path) -> str:
    if path.suffix == ".pixels":  # reading another file would count as its last use
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


def _counted(files: Sequence[Path]) -> str:
    return f"{counted(len(files), 'file')}, {megabytes(sum(map(_room, files)))} MB"


def _room(path: Path) -> int:
    return 512 * path.stat().st_blocks


def _row(path: Path, in_use: bool) -> list[str]:
    used = time.strftime("%Y-%m-%d %H:%M", time.localtime(_last_use(path)))
    name = str(path.relative_to(cache_dir()))
    return [name, megabytes(_room(path)), used, "yes" if in_use else "", shown(_images_of(path))]


def options(verb: ArgumentParser) -> None:
    """Add the options of the verb."""
    add = verb.add_argument
    add("--clear", action="store_true", help="remove the files that are not in use")
    add("--older-than", type=at_least(0), default=0, metavar="DAYS", help="only files not used for this many days")
