"""Decoded images kept at the largest scale that is needed, in shared memory or in a mapped file."""

import hashlib
import os
import shutil
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch

from sppcls.data.source import Source
from sppcls.errors import ConfigError


def cache_dir() -> Path:
    """Return the user's cache folder for this package, without making it."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sppcls"


class PixelCache:
    """One flat buffer with a slot an image, filled by whichever worker reads the image first.

    Images are shrunk to a shorter side of ``short`` pixels; smaller ones are kept as they are. The buffer is a mapped
    file in ``folder``, or shared memory without one. The slots' places follow from the sizes in the scan, so workers
    need no lock: two that fill a slot at once write the same bytes, and the flag is set last.
    """

    def __init__(self, source: Source, short: int, folder: Path | None = None) -> None:
        factor = np.minimum(1.0, short / source.sizes.min(axis=1))
        self.sizes = np.maximum(np.rint(source.sizes * factor[:, None]).astype(np.int64), 1)
        ends = len(source.targets) + np.cumsum(3 * self.sizes.prod(axis=1))
        self._starts = np.concatenate([[len(source.targets)], ends[:-1]])
        self._buffer = _buffer(int(ends[-1]), folder and folder / f"{_fingerprint(source, short)}.pixels")

    def slot(self, index: int) -> torch.Tensor:
        """Return image ``index``'s place as a [3, H, W] view with channels-last strides."""
        height, width = self.sizes[index].tolist()
        start = int(self._starts[index])
        return self._buffer[start : start + 3 * height * width].view(height, width, 3).permute(2, 0, 1)

    def get(self, index: int) -> torch.Tensor | None:
        """Return image ``index`` where it is kept already."""
        return self.slot(index) if self._buffer[index] else None

    def mark(self, index: int) -> None:
        """Say that the slot of image ``index`` is filled."""
        self._buffer[index] = 1


def _fingerprint(source: Source, short: int) -> str:
    digest = hashlib.sha256(f"1 {short}".encode() + source.sizes.tobytes())
    for name in source.names:
        changed = 0
        with suppress(OSError):  # a name that is no file, or a file that is gone
            changed = Path(name).stat().st_mtime_ns
        digest.update(f"{name}\0{changed}\0".encode(errors="surrogateescape"))
    return digest.hexdigest()[:20]


def _buffer(size: int, path: Path | None) -> torch.Tensor:
    if path is None:
        room = shutil.disk_usage("/dev/shm").free if Path("/dev/shm").is_dir() else size
        _check_room(size, room, "data.cache=ram", "data.cache=disk")
        buffer = torch.zeros(size, dtype=torch.uint8)
        buffer.share_memory_()  # type: ignore[no-untyped-call]
        return buffer
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        _check_room(size, shutil.disk_usage(path.parent).free, "data.cache=disk", "data.cache=none")
    return torch.from_file(str(path), shared=True, size=size, dtype=torch.uint8)  # makes a file of zeros if need be


def _check_room(size: int, room: int, key: str, instead: str) -> None:
    if size > room:
        raise ConfigError(f"{key} needs {size / 2**30:.1f} GiB and {room / 2**30:.1f} are free; use {instead}")
