"""Pixels kept between epochs, in shared memory or in a mapped file: batches are the same to the bit without them."""

import errno
import hashlib
import os
import shutil
import weakref
from collections.abc import Mapping, Sequence
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import torch

from sppcls.data.cache_files import HEADER, header, megabytes, open_reserved
from sppcls.data.cut import Fit, aspect_buckets, bucket_size
from sppcls.data.geometry import Size, fitted_size, reduction
from sppcls.data.images import fit_image
from sppcls.data.source import Source
from sppcls.errors import ConfigError

Shapes = npt.NDArray[np.int64]  # [scales, images, 2], (H, W)

_JPEG = (".jpg", ".jpeg", ".jpe", ".jfif")
_SHM = Path("/dev/shm")
_MOST_DECODED = 12  # times a tensor: a JPEG that `reduction` applies to takes at most 6.25 times its aspect


class PixelCache:
    """One flat buffer with a slot for each image at each scale, filled by whichever worker reads the image first.

    A slot holds the image as a tensor holds it (``keep``, ``warp``), or as the decoder gives it for that scale: for
    ``crop``, and where that takes less than half the room. What has no slot is read anew: images in other tensors, and,
    with ``crop``, images of which only a far larger form could be kept. The slots' places follow from the sizes in the
    scan, so workers need no lock: two that fill a slot at once write the same bytes, and the flag is set last.

    Args:
        source: The images.
        tensors: The (H, W) of the tensor that each image will stand in [N, 2], or (0, 0), by the tensors' shorter side.
        fit: As `fit_image` takes it.
    """

    def __init__(self, source: Source, tensors: Mapping[int, Shapes], fit: Fit = "keep") -> None:
        self.source, self.fit, self.shorts = source, fit, tuple(sorted(tensors))
        self._sizes = source.sizes
        boxes = np.stack([tensors[short] for short in self.shorts])
        decoded = _decoded_shapes(source, self.shorts)
        fitted = _fitted_shapes(source.sizes, boxes) if fit == "keep" else boxes
        room, most = _ends(decoded, share=True)[-1], _ends(fitted)[-1]
        if fit == "crop":
            self._fitted = np.zeros(len(source.sizes), np.bool_)
            decoded = np.where((room <= _MOST_DECODED * most)[:, None], decoded, 0)
        else:
            self._fitted = 2 * room >= most
        self._shapes = np.where(self._fitted[:, None], fitted, decoded)
        ends = np.where(self._fitted, _ends(self._shapes), _ends(self._shapes, share=True))
        images = len(self.shorts) + ends[-1]  # a flag a scale, then the slots
        self._flags = HEADER + np.cumsum(images) - images
        self._starts = self._flags + len(self.shorts) + ends - 3 * self._shapes.prod(-1)
        self.size = HEADER + int(images.sum())
        self._path: Path | None = None
        self._buffer = torch.empty(0, dtype=torch.uint8)

    def __getstate__(self) -> dict[str, object]:
        return self.__dict__ | ({"_buffer": None} if self._path else {})  # a mapped file would travel as a copy

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__ |= state
        if self._path:
            self._buffer = _mapped(self._path, self.size)

    def open(self, path: Path | None = None) -> Self:
        """Take the room: a file, which may be filled already, or shared memory; raises ``OSError`` without room."""
        self._path, self._buffer = path, _mapped(path, self.size) if path else _shared(self.size)
        self._buffer[:HEADER] = torch.frombuffer(bytearray(header(_folder(self.source))), dtype=torch.uint8)
        return self

    def part(self, indices: Shapes) -> Self:
        """Return the cache of a subset, in the same buffer."""
        part = object.__new__(type(self))
        part.__dict__ |= self.__dict__
        part._sizes, part._fitted, part._flags = self._sizes[indices], self._fitted[indices], self._flags[indices]
        part._shapes, part._starts = self._shapes[:, indices], self._starts[:, indices]
        return part

    def get(self, index: int, size: Size) -> torch.Tensor | None:
        """Return image ``index`` for a tensor of ``size``, [3, h, w], where it is kept: fitted already, or decoded."""
        if min(size) not in self.shorts:
            return None
        k = self.shorts.index(min(size))
        if not self._buffer[self._flags[index] + k]:
            return None
        slot = self._slot(k, index)
        if self._fitted[index]:
            h, w = self._sizes[index].tolist()
            inner = fitted_size(h, w, size) if self.fit == "keep" else size
            return slot if slot.shape[1:] == inner else None
        return slot

    def put(self, index: int, image: torch.Tensor, short: int) -> None:
        """Keep image ``index``, read with ``min_short=short``, wherever reading gives the same."""
        h, w = self._sizes[index].tolist()
        n = reduction(min(h, w), short)
        unreduced = n > 1 and image.shape[1:] == (h, w)  # of a format that is never reduced
        for k, other in enumerate(self.shorts):
            slot = self._slot(k, index)
            fits = slot.numel() > 0 if self._fitted[index] else slot.shape == image.shape
            if fits and (unreduced or reduction(min(h, w), other) == n):
                fit_image(image, (slot.shape[1], slot.shape[2]), "warp", native=(h, w), out=slot)
                self._buffer[self._flags[index] + k] = 1

    def file_name(self) -> str:
        """Return a name that changes with whatever the kept pixels depend on."""
        versions = f"2 {version('torch')} {version('pillow')} {self.shorts}"
        digest = hashlib.sha256(versions.encode() + self._shapes.tobytes() + self._sizes.tobytes())
        digest.update(getattr(self.source, "digest", b""))  # of pixels that are in no files
        for name in self.source.names:
            changed = 0
            with suppress(OSError):  # a name that is no file, or a file that is gone
                changed = Path(name).stat().st_mtime_ns
            digest.update(f"{name}\0{changed}\0".encode(errors="surrogateescape"))
        return f"{digest.hexdigest()[:20]}.pixels"

    def _slot(self, k: int, index: int) -> torch.Tensor:
        """Return a place as a [3, H, W] view with channels-last strides."""
        height, width = self._shapes[k, index].tolist()
        start = int(self._starts[k, index])
        return self._buffer[start : start + 3 * height * width].view(height, width, 3).permute(2, 0, 1)


def open_caches(caches: Mapping[str, PixelCache], folder: Path | None) -> str:
    """Reserve the room for all caches, in ``folder`` or in shared memory, and return a line that says how much it is.

    Raises:
        ConfigError: There is no room for them all; files that were made for them are removed.
    """
    paths = {name: folder / cache.file_name() if folder else None for name, cache in caches.items()}
    new = {name: path for name, path in paths.items() if not (path and path.exists())}
    parts = ", ".join(f"{name} {megabytes(cache.size)}" for name, cache in caches.items())
    said = f"{megabytes(sum(cache.size for cache in caches.values()))} MB in {folder or 'shared memory'} ({parts})"
    key, instead = (
        ("disk", "sppcls cache --clear, or data.cache=none") if folder else ("ram", "data.cache=disk or none")
    )
    try:
        free = _free(folder)
        if sum(caches[name].size for name in new) > free:
            raise OSError(errno.ENOSPC, f"{megabytes(free)} MB are free")
        for name, cache in caches.items():
            cache.open(paths[name])
    except (OSError, RuntimeError) as error:  # torch raises the second where shared memory is full
        for path in filter(None, new.values()):
            path.unlink(missing_ok=True)
        why = error.strerror if isinstance(error, OSError) else str(error).partition("\n")[0]
        raise ConfigError(f"data.cache={key} needs {said}: {why}; use {instead}") from None
    return f"data.cache={key}: {said}"


def _free(folder: Path | None) -> int:
    if folder is None:
        return shutil.disk_usage(_SHM).free if _SHM.is_dir() else 2**63
    folder.mkdir(parents=True, exist_ok=True)
    return shutil.disk_usage(folder).free


def _mapped(path: Path, size: int) -> torch.Tensor:
    file = open_reserved(path, size)
    buffer = torch.from_file(str(path), shared=True, size=size, dtype=torch.uint8)
    weakref.finalize(buffer, file.close)
    return buffer


def _shared(size: int) -> torch.Tensor:
    buffer = torch.zeros(size, dtype=torch.uint8)
    buffer.share_memory_()  # type: ignore[no-untyped-call]
    return buffer


def _folder(source: Source) -> str:
    """Return the folder that holds all images of a source."""
    folders = {name.rpartition(os.sep)[0] for name in source.names}
    return os.path.commonpath(folders) if len({folder.startswith(os.sep) for folder in folders}) == 1 else ""


def own_tensors(sizes: Shapes, scales: Sequence[int], fit: Fit = "keep", max_aspect: float = 4.0) -> dict[int, Shapes]:
    """Return the (H, W) of the tensors [N, 2] of images among their like, by scale: as `plan_evaluation` plans them."""
    if fit != "keep":
        return {scale: np.full_like(sizes, scale) for scale in scales}
    buckets, which = np.unique(aspect_buckets(sizes, max_aspect), return_inverse=True)
    return {
        scale: np.array([bucket_size(bucket, bucket, scale) for bucket in buckets.tolist()])[which] for scale in scales
    }


def _ends(shapes: Shapes, share: bool = False) -> npt.NDArray[np.int64]:
    """Return where slots end, [scales, images], counted from the image's first; equal shapes may share a slot."""
    own = np.ones(shapes.shape[:2], np.bool_)
    if share:
        own[1:] = (shapes[1:] != shapes[:-1]).any(-1)
    ends: npt.NDArray[np.int64] = np.cumsum(3 * shapes.prod(-1) * own, 0)
    return ends


def _decoded_shapes(source: Source, shorts: Sequence[int]) -> Shapes:
    """Return what reading for each shorter side gives, going by names; a slot of a wrong shape stays empty."""
    sides, which = np.unique(source.sizes.min(1), return_inverse=True)
    levels = np.array([[reduction(side, short) for side in sides.tolist()] for short in shorts])[:, which]
    levels[:, [not name.lower().endswith(_JPEG) for name in source.names]] = 1
    shapes: Shapes = -(-source.sizes // levels[..., None])
    return shapes


def _fitted_shapes(sizes: Shapes, boxes: Shapes) -> Shapes:
    """Return `fitted_size` of each image in its boxes, (0, 0) where there is none."""
    (h, w), (height, width) = sizes.T, np.moveaxis(boxes, -1, 0)
    by_height = np.stack([height, np.rint(w * height / h)], -1)
    by_width = np.stack([np.rint(h * width / w), width], -1)
    fitted = np.where((height * w <= width * h)[..., None], by_height, by_width)
    return np.where(boxes > 0, np.maximum(fitted, 1), 0).astype(np.int64)
