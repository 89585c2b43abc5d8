"""``sppcls cache``: the cached pixels, image sizes and features, listed or removed."""

import argparse
import time
from collections.abc import Sequence

from sppcls.commands.arguments import at_least
from sppcls.data.cache_files import CacheFile, cache_dir, cache_files, in_use, megabytes
from sppcls.data.decode import shown
from sppcls.errors import counted
from sppcls.terminal import show, table


def run(clear: bool = False, days: float = 0) -> int:
    """List the cache files, or remove those that no process uses, and return the exit status 0."""
    files = list(cache_files(days))
    free = {file.path for file in files if not in_use(file.path)}
    said = _counted(files if not clear else [file for file in files if file.path in free])
    if not clear:
        rows = [_row(file, file.path not in free) for file in files]
        if rows:
            show(table(f"Cache files in {cache_dir()}", ("file", "MB", "last used", "in use", "images of"), rows))
        show(said + ("; sppcls cache --clear removes those not in use" if files else ""))
        return 0
    for path in free:
        path.unlink(missing_ok=True)
    kept = f"; {len(files) - len(free)} in use, kept" if len(free) < len(files) else ""
    show(f"removed {said}, from {cache_dir()}{kept}")
    return 0


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
    add(
        "--older-than",
        type=at_least(0),
        default=0,
        dest="days",
        metavar="DAYS",
        help="only files that were not used for so long",
    )
