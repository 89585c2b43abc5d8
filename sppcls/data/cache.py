"""A pixel cache between epochs, in shared memory or a mapped file: batches are bit-identical with and without it."""

import errno
import hashlib
import os
import shutil
import weakref
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Self

import numpy as np
import numpy.typing as npt

from sppcls.data.geometry import Fit, Size, content_size, fitted_sizes, reduction
from sppcls.data.source import Source
from sppcls.errors import ConfigError

if TYPE_CHECKING:
    import torch

Shapes = npt.NDArray[np.int64]  # [scales, images, 2], (H, W)

HEADER = 4096  # bytes before the pixels: what the file is, and which folder's images it has
MAGIC = b"sppcls pixels\n"
_JPEG = (".jpg", ".jpeg", ".jpe", ".jfif")
_SHM = Path("/dev/shm")
_MOST_DECODED = 12  # times a tensor: a JPEG that `reduction` applies to takes at most 6.25 times its aspect


def cache_dir() -> Path:
    """Return the user's cache folder for this package, without creating it."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sppcls"


class PixelCache:
    """One flat buffer with a slot for each image at each scale, filled by whichever worker reads the image first.

    A slot holds the image as a tensor holds it; with ``crop`` as the decoder gives it for that scale, unless that is
    far larger. What has no slot is read anew, as are images in other tensors. The slots' places follow from the sizes
    in the scan, so workers need no lock: two that fill a slot at once write the same bytes, and the flag is set last.

    Args:
        source: The images.
        tensors: The (H, W) [N, 2] of each image's tensor, or (0, 0), by the tensors' shorter side.
        fit, multiple: As `fit_image` takes them.
    """

    _buffer: "torch.Tensor"

    def __init__(self, source: Source, tensors: Mapping[int, Shapes], fit: Fit = "keep", multiple: int = 1) -> None:
        self.source, self.fit, self.multiple, self.shorts = source, fit, multiple, tuple(sorted(tensors))
        self._sizes = source.sizes
        boxes = np.stack([tensors[short] for short in self.shorts])
        if fit == "crop":
            self._shapes, rooms = _decoded(source, self.shorts, boxes)
        else:
            self._shapes = fitted_sizes(source.sizes, boxes, multiple) if fit == "keep" else boxes
            rooms = 3 * self._shapes.prod(-1)
        ends = np.cumsum(rooms, 0)
        images = len(self.shorts) + ends[-1]  # one flag per scale, then the slots
        self._flags = HEADER + np.cumsum(images) - images
        self._starts = self._flags + len(self.shorts) + ends - 3 * self._shapes.prod(-1)
        self.size = HEADER + int(images.sum())
        self._path: Path | None = None

    def __getstate__(self) -> dict[str, object]:
        return self.__dict__ | ({"_buffer": None} if self._path else {})  # a mapped file would be pickled as a copy

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__ |= state
        if self._path:
            self._buffer = _mapped(self._path, self.size)

    def open(self, path: Path | None = None) -> Self:
        """Allocate a file, which may already be filled, or shared memory; raises ``OSError`` if there is no space."""
        import torch

        self._path, self._buffer = path, _mapped(path, self.size) if path else torch.zeros(self.size, dtype=torch.uint8)
        if not path:
            self._buffer.share_memory_()  # type: ignore[no-untyped-call]
        head = (MAGIC + os.fsencode(_folder(self.source)))[: HEADER - 1].ljust(HEADER, b"\0")
        self._buffer[:HEADER] = torch.frombuffer(bytearray(head), dtype=torch.uint8)
        return self

    def part(self, indices: Shapes) -> Self:
        """Return the cache of a subset, in the same buffer."""
        part = object.__new__(type(self))
        part.__dict__ |= self.__dict__
        part._sizes, part._flags = self._sizes[indices], self._flags[indices]
        part._shapes, part._starts = self._shapes[:, indices], self._starts[:, indices]
        return part

    def get(self, index: int, size: Size) -> "torch.Tensor | None":
        """Return image ``index`` for a tensor of ``size``, [3, h, w], if cached: already fitted, or decoded."""
        if min(size) not in self.shorts:
            return None
        k = self.shorts.index(min(size))
        if not self._buffer[self._flags[index] + k]:
            return None
        slot = self._slot(k, index)
        h, w = self._sizes[index].tolist()
        inner = content_size((h, w), size, self.fit, self.multiple)
        return slot if self.fit == "crop" or slot.shape[1:] == inner else None

    def put(self, index: int, image: "torch.Tensor", short: int, fit_image: "Callable[..., torch.Tensor]") -> None:
        """Cache image ``index``, read with ``min_short=short``, at every scale where reading gives the same pixels."""
        h, w = self._sizes[index].tolist()
        n = reduction(min(h, w), short)
        unreduced = n > 1 and image.shape[1:] == (h, w)  # its format is never reduced
        for k, other in enumerate(self.shorts):
            slot = self._slot(k, index)
            fits = slot.shape == image.shape if self.fit == "crop" else slot.numel() > 0
            if fits and (unreduced or reduction(min(h, w), other) == n):
                fit_image(image, (slot.shape[1], slot.shape[2]), "warp", native=(h, w), out=slot)
                self._buffer[self._flags[index] + k] = 1

    def file_name(self) -> str:
        """Return a name that changes with everything the cached pixels depend on."""
        versions = f"3 {version('torch')} {version('pillow')} {self.shorts}"
        digest = hashlib.sha256(versions.encode() + self._shapes.tobytes() + self._sizes.tobytes())
        digest.update(getattr(self.source, "digest", b""))  # for pixels that are not in files
        for name in self.source.names:
            changed = 0
            with suppress(OSError):  # a name that is not a file, or a deleted file
                changed = Path(name).stat().st_mtime_ns
            digest.update(f"{name}\0{changed}\0".encode(errors="surrogateescape"))
        return f"{digest.hexdigest()[:20]}.pixels"

    def _slot(self, k: int, index: int) -> "torch.Tensor":
        """Return a slot as a [3, H, W] view with channels-last strides."""
        height, width = self._shapes[k, index].tolist()
        start = int(self._starts[k, index])
        return self._buffer[start : start + 3 * height * width].view(height, width, 3).permute(2, 0, 1)


def open_caches(caches: Mapping[str, PixelCache], folder: Path | None) -> str:
    """Reserve space for all caches, in ``folder`` or in shared memory, and return a line that says how much.

    Raises:
        ConfigError: There is not enough space; files created for them are removed.
    """
    paths = {name: folder / cache.file_name() if folder else None for name, cache in caches.items()}
    new = {name: path for name, path in paths.items() if not (path and path.exists())}
    sizes = {name: cache.size for name, cache in caches.items()}
    parts = ", ".join(f"{name} {megabytes(size)}" for name, size in sizes.items())
    total = f"{megabytes(sum(sizes.values()))} MB in {folder or 'shared memory'} ({parts})"
    key, use = ("disk", "sppcls cache --clear, or data.cache=none") if folder else ("ram", "data.cache=disk or none")
    try:
        if folder:
            folder.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(folder or _SHM).free if folder or _SHM.is_dir() else 2**63
        if sum(sizes[name] for name in new) > free:
            raise OSError(errno.ENOSPC, f"only {megabytes(free)} MB are free")
        for name, cache in caches.items():
            cache.open(paths[name])
    except (OSError, RuntimeError) as error:  # torch raises the second if shared memory is full
        for path in filter(None, new.values()):
            path.unlink(missing_ok=True)
        why = error.strerror if isinstance(error, OSError) else str(error).partition("\n")[0]
        raise ConfigError(f"data.cache={key} needs {total}: {why}; use {use}") from None
    return f"data.cache={key}: {total}"


def megabytes(size: int) -> str:
    """Return bytes as whole megabytes, rounded up.

    >>> megabytes(1_234_567_890), megabytes(1)
    ('1,235', '1')
    """
    return f"{-(-size // 10**6):,}"


def _mapped(path: Path, size: int) -> "torch.Tensor":
    import torch

    file = open_reserved(path, size)
    buffer = torch.from_file(str(path), shared=True, size=size, dtype=torch.uint8)
    weakref.finalize(buffer, file.close)
    return buffer


def open_reserved(path: Path, size: int) -> BinaryIO:
    """Open a file of ``size`` bytes, creating it if needed; it counts as in use until it is closed.

    All its space is allocated now: writing to a mapped page without any would kill the process (SIGBUS). Raises
    ``OSError`` if there is not enough space, and then leaves no file.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    file = path.open("ab", buffering=0)
    lock(file, exclusive=False)
    try:
        _reserve(file, size)
    except BaseException:
        file.close()
        path.unlink(missing_ok=True)
        raise
    os.utime(path)
    return file


def _reserve(file: BinaryIO, size: int) -> None:
    """Extend a file to ``size`` allocated bytes; its content stays."""
    missing = size - os.fstat(file.fileno()).st_size
    if missing > 0 and hasattr(os, "posix_fallocate"):
        os.posix_fallocate(file.fileno(), 0, size)
        missing = 0
    for start in range(0, missing, 1 << 20):  # macOS, Windows
        file.write(bytes(min(1 << 20, missing - start)))


def lock(file: BinaryIO, exclusive: bool) -> bool:
    """Mark a file as in use, or check (``exclusive``) that no process uses it."""
    try:
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB if exclusive else fcntl.LOCK_SH)
    except (ImportError, OSError) as error:  # other errors than this one: Windows, and file systems without locks
        return not isinstance(error, BlockingIOError)
    return True


def _folder(source: Source) -> str:
    """Return the folder that holds all images of a source."""
    folders = {name.rpartition(os.sep)[0] for name in source.names}
    return os.path.commonpath(folders) if len({folder.startswith(os.sep) for folder in folders}) == 1 else ""


def _decoded(source: Source, shorts: Sequence[int], boxes: Shapes) -> tuple[Shapes, Shapes]:
    """Return what reading for each shorter side gives, going by names, and the bytes that it takes.

    Scales for which it is the same share a slot; what is far larger than the boxes is (0, 0).
    """
    sides, which = np.unique(source.sizes.min(1), return_inverse=True)
    levels = np.array([[reduction(side, short) for side in sides.tolist()] for short in shorts])[:, which]
    levels[:, [not name.lower().endswith(_JPEG) for name in source.names]] = 1
    shapes: Shapes = -(-source.sizes // levels[..., None])
    rooms = 3 * shapes.prod(-1)
    rooms[1:][(shapes[1:] == shapes[:-1]).all(-1)] = 0
    large = rooms.sum(0) > _MOST_DECODED * 3 * boxes.prod(-1).sum(0)
    return np.where(large[:, None], 0, shapes), np.where(large, 0, rooms)
