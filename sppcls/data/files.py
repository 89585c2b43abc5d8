"""Image files: their labels, and their sizes, which are read once."""

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext, suppress
from itertools import chain
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from sppcls.data.cache import cache_dir
from sppcls.data.decode import quiet, read_size_unguarded, shown
from sppcls.data.folders import Groups
from sppcls.data.source import Names, text_hashes
from sppcls.errors import ConfigError, DataError, counted, did_you_mean
from sppcls.files import locked, write_bytes
from sppcls.terminal import track

if TYPE_CHECKING:
    import torch

Skipped = list[tuple[str, str]]  # paths, and why each cannot be read
Rows = npt.NDArray[np.int64]
Pair = tuple[int, int]

ON_ERROR = ("fail", "skip")
_THREADS = 16  # they wait for the disk, possibly over a network
_CHUNK, _BLOCK = 128, 2**14
WORTH_A_BAR = 3000


class FileSource:
    """Image files with known sizes (see `sppcls.data.source.Source`); ``names`` are their paths."""

    def __init__(
        self, paths: Iterable[Path | str], targets: npt.ArrayLike, classes: Sequence[str], sizes: Rows
    ) -> None:
        self.names: Sequence[str] = paths if isinstance(paths, Names) else Names(paths)
        self.targets = np.asarray(targets, np.int64)
        self.classes = tuple(classes)
        self.sizes = sizes

    def read(self, index: int, min_short: int | None = None) -> "torch.Tensor":
        """Return image ``index`` as [3, H, W] uint8 RGB; a JPEG may be smaller, down to ``min_short``."""
        from sppcls.data.images import decode  # imports torch, which checking the files does not need

        return decode(self.names[index], min_short)


def read_groups(groups: Groups, root: Path, on_error: str = "fail") -> tuple[FileSource, Skipped]:
    """Scan the files of each class and return them as a source, with the files that were skipped.

    Raises what `scan` does, and ``DataError`` if there is no class or one without a readable image.
    """
    names = Names(chain.from_iterable(groups.values()))
    targets = np.repeat(np.arange(len(groups)), [len(files) for files in groups.values()])
    source, skipped = read_files(names, targets, tuple(groups), root, on_error)
    counts = np.bincount(source.targets, minlength=len(groups))
    bare = [name for name, count in zip(groups, counts, strict=True) if count == 0]
    if bare or not groups:
        where = f"class {', '.join(bare[:5])}" if bare else "a class folder"
        raise DataError(f"{shown(root)}: no readable images in {where}; add some or remove it")
    return source, skipped


def read_files(
    names: Names, targets: npt.NDArray[np.int64], classes: Sequence[str], root: Path, on_error: str = "fail"
) -> tuple[FileSource, Skipped]:
    """Scan files and return them as a source, with the files that were skipped; raises what `scan` does."""
    kept, sizes, skipped = scan(names, on_error, size_cache(root))
    return FileSource(names.pick(kept), targets[kept], classes, sizes), skipped


def scan(paths: Iterable[Path | str], on_error: str = "fail", cache: Path | None = None) -> tuple[Rows, Rows, Skipped]:
    """Return which paths are readable, their sizes [N, 2] int64 as (H, W), and (path, reason) of the others.

    Sizes are read from the files' headers, in threads; ``cache`` is a file that keeps them between runs, by path,
    length and modification time (see `size_cache`). Of the processes that share it, one reads and the others wait.

    Raises:
        ConfigError: ``on_error`` is neither ``fail`` nor ``skip``.
        DataError: With ``fail``, naming the first unreadable file and how many more there are.
    """
    if on_error not in ON_ERROR:
        raise ConfigError(f"data.on_error: got {on_error!r}{did_you_mean(on_error, ON_ERROR)}")
    names = paths if isinstance(paths, Names) else Names(paths)
    found = np.zeros((len(names), 4), np.int64)  # bytes, mtime_ns, H, W; H is -1 for unreadable files
    table = _SizeTable(names, cache)
    why = _probe(_status, names, found[:, 2] == 0, found[:, :2])
    found[list(why), 2] = -1
    table.recall(found)
    if (found[:, 2] == 0).any():
        with locked(cache) if cache else nullcontext():
            table.recall(found)  # what another process has read meanwhile
            unread = found[:, 2] == 0
            why |= _probe(_size, names, unread, found[:, 2:])
            if (found[unread, 2] > 0).any():
                table.keep(found)
    skipped = [(names[index], why[index]) for index in sorted(why)]
    if skipped and on_error == "fail":
        more = f" ({counted(len(skipped) - 1, 'more such file')})" if len(skipped) > 1 else ""
        path, reason = skipped[0]
        raise DataError(f"{shown(path)}: {reason}{more}; data.on_error=skip skips such files")
    kept = np.flatnonzero(found[:, 2] > 0)
    return kept, found[kept, 2:], skipped


def _probe(work: Callable[[str], Pair], names: Names, wanted: npt.NDArray[np.bool_], into: Rows) -> dict[int, str]:
    """Write what ``work`` says of each wanted file into its row, and return why it cannot be read of the others."""
    places, why = np.flatnonzero(wanted), {}

    def attempt(name: str) -> Pair | str:
        try:
            return work(name)
        except OSError as error:
            return error.strerror or "cannot be read"
        except DataError as error:
            return error.reason

    def results() -> Iterator[tuple[int, Pair | str]]:
        # In blocks: a pool consumes all names it is given at once.
        for start in range(0, len(places), _BLOCK):
            block = places[start : start + _BLOCK]
            yield from zip(block.tolist(), pool.map(attempt, names.pick(block), _CHUNK), strict=True)

    with quiet(), ThreadPool(_THREADS) as pool:
        slow = work is _size and len(places) > WORTH_A_BAR
        for index, result in track(results(), "Reading image sizes", len(places)) if slow else results():
            if isinstance(result, str):
                why[index] = result
            else:
                into[index] = result
    return why


def _status(name: str) -> Pair:
    status = Path(name).stat()
    return status.st_size, status.st_mtime_ns


def _size(name: str) -> Pair:
    return read_size_unguarded(Path(name))


def size_cache(root: Path) -> Path | None:
    """Return the file that keeps the sizes of the images under ``root``, in the user's cache folder."""
    digest = hashlib.sha256(os.fsencode(root.resolve())).hexdigest()[:16]
    try:
        return cache_dir() / "sizes" / f"{digest}.bin"
    except RuntimeError:  # a user without a home
        return None


class _SizeTable:
    """A file of rows in the order of the first column: a name's hash, bytes, mtime_ns, H, W, each an int64.

    An entry counts only while the file's length and modification time match; two names of one hash (in a million,
    one chance in thirty million) would have to agree in these too. Without a path nothing is known or kept.
    """

    def __init__(self, names: Names, path: Path | None) -> None:
        self._path = path
        self._keys = text_hashes(names if path else ()).view(np.int64)

    def recall(self, found: Rows) -> None:
        """Fill in the H and W of rows (bytes, mtime_ns, H, W) that have none yet, if the file has them."""
        table = self._table()
        if len(table):
            at = np.searchsorted(table[:, 0], self._keys).clip(max=len(table) - 1)
            known = (table[at, 0] == self._keys) & (table[at, 1:3] == found[:, :2]).all(axis=1) & (found[:, 2] == 0)
            found[known] = table[at[known], 1:]

    def keep(self, found: Rows) -> None:
        """Add the rows that have an H and W to the file."""
        if not self._path:
            return
        table = np.concatenate([np.column_stack([self._keys, found])[found[:, 2] > 0], self._table()])
        with suppress(OSError):  # no space or permission: the next run reads the headers again
            write_bytes(self._path, table[np.unique(table[:, 0], return_index=True)[1]].tobytes())

    def _table(self) -> Rows:
        """Return the file's rows; a missing or damaged file has none."""
        try:
            table = np.frombuffer(self._path.read_bytes() if self._path else b"", np.int64).reshape(-1, 5)
        except (OSError, ValueError):
            return np.empty((0, 5), np.int64)
        return table if (table[:, 3:] > 0).all() else table[:0]
