"""Image files with their sizes, from headers and cached between runs; and sources of files, arrays and parts."""

import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from multiprocessing.pool import ThreadPool
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from sppcls.atomic import write_text
from sppcls.data.cache_files import cache_dir
from sppcls.data.decode import quiet, read_size_unguarded, shown
from sppcls.data.images import decode
from sppcls.data.paths import Groups
from sppcls.data.source import Source
from sppcls.errors import ConfigError, DataError, did_you_mean
from sppcls.terminal import track

Skipped = list[tuple[str, str]]
_Entry = list[int]  # bytes, mtime_ns, H, W

ON_ERROR = ("fail", "skip")
_THREADS = 16  # they wait for the disk, which may be a network's
_CHUNK = 128
_WORTH_A_BAR = 3000


class FileSource:
    """Image files with known sizes (see `sppcls.data.source.Source`); ``names`` are their paths."""

    def __init__(
        self, paths: Iterable[Path], targets: Sequence[int], classes: Sequence[str], sizes: npt.NDArray[np.int64]
    ) -> None:
        self.names: Sequence[str] = [str(path) for path in paths]
        self.targets = np.asarray(targets, np.int64)
        self.classes = tuple(classes)
        self.sizes = sizes

    def read(self, index: int, min_short: int | None = None) -> torch.Tensor:
        """Return image ``index`` as [3, H, W] uint8 RGB; a JPEG may be smaller, down to ``min_short``."""
        return decode(self.names[index], min_short)


class ArraySource:
    """Images of one size held in memory, [N, H, W, 3] uint8 (see `sppcls.data.source.Source`)."""

    def __init__(
        self, images: npt.NDArray[np.uint8], targets: Sequence[int], classes: Sequence[str], prefix: str
    ) -> None:
        self.images = images
        self.targets = np.asarray(targets, np.int64)
        self.classes = tuple(classes)
        self.sizes = np.tile(np.array(images.shape[1:3], np.int64), (len(images), 1))
        self.names: Sequence[str] = [f"{prefix}/{index}" for index in range(len(images))]

    def read(self, index: int, min_short: int | None = None) -> torch.Tensor:
        """Return a copy of image ``index`` as [3, H, W] uint8."""
        return torch.from_numpy(self.images[index].copy()).permute(2, 0, 1)


class Subset:
    """Some images of a source, in the order of ``indices``; with ``classes``, its targets are positions in these."""

    def __init__(self, source: Source, indices: Iterable[int], classes: Sequence[str] | None = None) -> None:
        self.source = source
        self.indices = np.asarray(list(indices), np.int64)
        self.classes = source.classes if classes is None else tuple(classes)
        self.targets = source.targets[self.indices]
        if classes is not None:
            self.targets = np.array([self.classes.index(source.classes[t]) for t in self.targets], np.int64)
        self.sizes = source.sizes[self.indices]
        self.names: Sequence[str] = [source.names[i] for i in self.indices]

    def read(self, index: int, min_short: int | None = None) -> torch.Tensor:
        """Return image ``index`` of the subset as the source reads it."""
        return self.source.read(int(self.indices[index]), min_short)


def read_groups(groups: Groups, root: Path, on_error: str = "fail") -> tuple[FileSource, Skipped]:
    """Scan the files of each class and return them as a source, with the files that were skipped.

    Raises what `scan` does, and ``DataError`` where there is no class or one without a readable image.
    """
    targets = {path: target for target, files in enumerate(groups.values()) for path in files}
    kept, sizes, skipped = scan(list(targets), on_error, size_cache(root))
    source = FileSource(kept, [targets[path] for path in kept], tuple(groups), sizes)
    counts = np.bincount(source.targets, minlength=len(groups))
    bare = [name for name, count in zip(groups, counts, strict=True) if count == 0]
    if bare or not groups:
        where = f"class {', '.join(bare[:5])}" if bare else "a class folder"
        raise DataError(f"{shown(root)}: no readable image in {where}; add some or remove it")
    return source, skipped


def scan(
    paths: Sequence[Path], on_error: str = "fail", cache: Path | None = None
) -> tuple[list[Path], npt.NDArray[np.int64], Skipped]:
    """Return the readable paths, their sizes [N, 2] int64 as (H, W), and (path, reason) of the others.

    Sizes are read from the files' headers, in threads; ``cache`` is a file that keeps them between runs, by path,
    length and time of change (see `size_cache`).

    Raises:
        ConfigError: ``on_error`` is neither ``fail`` nor ``skip``.
        DataError: With ``fail``, naming the first unreadable file and how many more there are.
    """
    if on_error not in ON_ERROR:
        raise ConfigError(f"data.on_error: got {on_error!r}{did_you_mean(on_error, ON_ERROR)}")
    known = _load(cache) if cache else {}
    entries = _probe_all(paths, known)
    fresh = {str(path): entry for path, entry in zip(paths, entries, strict=True) if isinstance(entry, list)}
    if cache and any(known.get(name) != entry for name, entry in fresh.items()):
        with suppress(OSError):  # no room or no right to write: the next run reads the headers again
            cache.parent.mkdir(parents=True, exist_ok=True)
            write_text(cache, json.dumps(known | fresh))
    skipped = [(str(path), entry) for path, entry in zip(paths, entries, strict=True) if isinstance(entry, str)]
    if skipped and on_error == "fail":
        more = f" ({len(skipped) - 1} more such files)" if len(skipped) > 1 else ""
        path, reason = skipped[0]
        raise DataError(f"{shown(path)}: {reason}{more}; data.on_error=skip leaves such files out")
    sizes = np.array([entry[2:] for entry in entries if isinstance(entry, list)], np.int64).reshape(-1, 2)
    return [path for path in paths if str(path) in fresh], sizes, skipped


def _probe_all(paths: Sequence[Path], known: Mapping[str, _Entry]) -> list[_Entry | str]:
    with quiet(), ThreadPool(_THREADS) as pool:
        entries: Iterable[_Entry | str] = pool.imap(lambda path: _probe(path, known), paths, _CHUNK)
        if len(paths) - len(known) > _WORTH_A_BAR:
            entries = track(entries, "Reading image sizes", len(paths))
        return list(entries)


def _probe(path: Path, known: Mapping[str, _Entry]) -> _Entry | str:
    """Return the entry of one file, or why it has none."""
    try:
        status = path.stat()
        entry = known.get(str(path))
        if entry is not None and entry[:2] == [status.st_size, status.st_mtime_ns]:
            return entry
        return [status.st_size, status.st_mtime_ns, *read_size_unguarded(path)]
    except DataError as error:
        return str(error).removeprefix(f"{shown(path)}: ")
    except OSError as error:
        return error.strerror or "cannot be read"


def size_cache(root: Path) -> Path | None:
    """Return the file that keeps the sizes of the images under ``root``, in the user's cache folder."""
    digest = hashlib.sha256(os.fsencode(root.resolve())).hexdigest()[:16]
    try:
        return cache_dir() / "sizes" / f"{digest}.json"
    except RuntimeError:  # a user without a home
        return None


def _load(cache: Path) -> dict[str, _Entry]:
    """Return what a cache file holds; a missing or damaged one holds nothing."""
    try:
        entries = json.loads(cache.read_bytes())
        whole = all(len(entry) == 4 and all(type(value) is int for value in entry) for entry in entries.values())
    except (OSError, ValueError, TypeError, AttributeError):
        return {}
    return entries if whole else {}
