"""Where images come from: what a source is, the names of its files, and which images it has."""

import hashlib
import os
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypeGuard, overload, runtime_checkable

import numpy as np
import numpy.typing as npt

from sppcls.files import read_arrays, write_arrays

if TYPE_CHECKING:
    import torch


class Source(Protocol):
    """Labelled images whose sizes are known without reading pixels.

    Attributes:
        classes: Class names; a target is a position in it.
        targets: [N] int64.
        sizes: [N, 2] int64, the (H, W) of each image as a person sees it (EXIF orientation applied).
        names: [N] one name per image: its path, or ``shapes/train/17``.
    """

    classes: tuple[str, ...]
    targets: npt.NDArray[np.int64]
    sizes: npt.NDArray[np.int64]
    names: Sequence[str]

    def read(self, index: int, min_short: int | None = None) -> "torch.Tensor":
        """Return image ``index`` as [3, H, W] uint8 RGB.

        ``min_short`` allows a decoder to return a smaller image, of the same content and aspect, whose shorter
        side is still at least that many pixels. Raises ``DataError`` naming the file if it cannot be read.
        """
        ...


def is_source(data: object) -> TypeGuard[Source]:
    """Return whether an object has all that a source has."""
    return all(hasattr(data, part) for part in ("classes", "targets", "sizes", "names", "read"))


@runtime_checkable
class MapStyle(Protocol):
    """What has items by position, whatever they are."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: int, /) -> object: ...


class Names(Sequence[str]):
    """Strings or paths in one block of bytes: 16 bytes each beside their text, and nothing that a fork has to copy.

    >>> names = Names(["a/b.jpg", "c.png"])
    >>> names[-1], list(names), len(names.pick([1, 1]))
    ('c.png', ['a/b.jpg', 'c.png'], 2)
    """

    def __init__(self, names: Iterable[str | Path] = ()) -> None:
        self._text, ends = bytearray(), array("q", [0])
        for name in names:
            self._text += os.fspath(name).encode(errors="surrogateescape")
            ends.append(len(self._text))
        edges = np.array(ends)
        self._starts, self._ends = edges[:-1], edges[1:]

    def pick(self, indices: npt.ArrayLike) -> "Names":
        """Return the names at ``indices``, which share the text."""
        picked = Names()
        picked._text, at = self._text, np.asarray(indices, np.int64)
        picked._starts, picked._ends = self._starts[at], self._ends[at]
        return picked

    def __len__(self) -> int:
        return len(self._ends)

    @overload
    def __getitem__(self, at: int) -> str: ...
    @overload
    def __getitem__(self, at: slice) -> "Names": ...
    def __getitem__(self, at: int | slice) -> "str | Names":
        if isinstance(at, slice):
            return self.pick(range(*at.indices(len(self))))
        return self._text[self._starts[at] : self._ends[at]].decode(errors="surrogateescape")

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and list(self) == list(other)


class ArraySource:
    """Images of one size held in memory, [N, H, W, 3] uint8."""

    def __init__(
        self, images: npt.NDArray[np.uint8], targets: Sequence[int], classes: Sequence[str], prefix: str
    ) -> None:
        self.images = images
        self.targets = np.asarray(targets, np.int64)
        self.classes = tuple(classes)
        self.sizes = np.tile(np.array(images.shape[1:3], np.int64), (len(images), 1))
        self.names: Sequence[str] = Names(f"{prefix}/{index}" for index in range(len(images)))

    def read(self, index: int, min_short: int | None = None) -> "torch.Tensor":
        """Return a copy of image ``index`` as [3, H, W] uint8."""
        import torch

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
        self.digest: bytes = getattr(source, "digest", b"")
        names = source.names if isinstance(source.names, Names) else Names(source.names)
        self.names: Sequence[str] = names.pick(self.indices)

    def read(self, index: int, min_short: int | None = None) -> "torch.Tensor":
        """Return image ``index`` of the subset as the source reads it."""
        return self.source.read(int(self.indices[index]), min_short)


def text_hashes(texts: Iterable[str]) -> npt.NDArray[np.uint64]:
    """Return a hash of each text."""
    digests = (hashlib.blake2b(text.encode(errors="surrogateescape"), digest_size=8).digest() for text in texts)
    return np.frombuffer(b"".join(digests), ">u8").astype(np.uint64)


FILE = "images.npz"


@dataclass(frozen=True)
class Identity:
    """Names, sizes and classes of the images of a run, independent of where their folder is.

    Attributes:
        classes: The class names, in the order of the targets.
        names: A hash of each image's part (train or val) and name.
        images: A hash of each image's part, name, class and (H, W), in the same order.
        counts: Images of each part.
    """

    classes: tuple[str, ...]
    names: npt.NDArray[np.uint64]
    images: npt.NDArray[np.uint64]
    counts: tuple[int, ...]

    @classmethod
    def of(cls, *parts: Source | None) -> "Identity":
        """Return the identity of training and validation images."""
        sources = [part for part in parts if part is not None]
        texts = (text for number, source in enumerate(sources) for text in _identities(number, source))
        names, images = text_hashes(texts).reshape(-1, 2).T
        return cls(sources[0].classes, names, images, tuple(len(source.targets) for source in sources))

    def save(self, folder: Path) -> None:
        """Write ``images.npz`` into ``folder``."""
        write_arrays(folder / FILE, names=self.names, images=self.images, counts=np.array(self.counts))

    @classmethod
    def read(cls, folder: Path, classes: tuple[str, ...]) -> "Identity | None":
        """Return the identity saved in a folder, or None if there is none that can be read."""
        try:
            found = read_arrays(folder / FILE)
            return cls(classes, found["names"], found["images"], tuple(found["counts"].tolist()))
        except (KeyError, ValueError):
            return None

    @property
    def digest(self) -> str:
        """The digest of an identity: equal for the same images in the same order, of the same classes."""
        found = hashlib.sha256("\0".join(self.classes).encode(errors="surrogateescape"))
        found.update(self.images.tobytes())
        return found.hexdigest()[:16]

    def difference(self, before: "Identity") -> str:
        """Return in words what has changed since ``before``, image by image."""
        added, removed = (
            int((~np.isin(some.names, other.names)).sum()) for some, other in ((self, before), (before, self))
        )
        changed = int((~np.isin(self.images, before.images)).sum()) - added
        found = {"removed": removed, "added": added, "with another class or size": changed}
        return ", ".join(f"{count} {what}" for what, count in found.items() if count) or "in another order"


def class_difference(now: tuple[str, ...], before: tuple[str, ...]) -> str:
    """Describe how two lists of classes differ; empty if they are equal."""
    gone, new = ([name for name in one if name not in other] for one, other in ((before, now), (now, before)))
    found = {"removed": gone, "added": new}
    listed = [f"{what} {', '.join(map(repr, names[:5]))}" for what, names in found.items() if names]
    return "; ".join(listed) if listed else "in another order" if now != before else ""


def _identities(part: int, source: Source) -> Iterator[str]:
    """Yield what the two hashes of each image are of."""
    # The first and last of sorted names share the prefix common to all.
    common = len(os.path.commonpath([Path(min(source.names)).parent, Path(max(source.names)).parent]))
    for name, target, (height, width) in zip(source.names, source.targets, source.sizes.tolist(), strict=True):
        within = f"{part}\0{name[common:]}"
        yield within
        yield f"{within}\0{source.classes[target]}\0{height}\0{width}"
