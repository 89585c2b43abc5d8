"""Map-style data sets as sources: torchvision's by name, or your own."""

import hashlib
import importlib
import operator
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from PIL import Image

from sppcls.data.decode import image_array
from sppcls.data.files import WORTH_A_BAR, read_files
from sppcls.data.folders import Groups, class_folders, part_folders
from sppcls.data.geometry import Pixels
from sppcls.data.source import ArraySource, MapStyle, Names, Source, class_difference, is_source
from sppcls.errors import ConfigError, DataError
from sppcls.terminal import track

if TYPE_CHECKING:
    import torch

_ALLOWED = "a Source, a map-style data set of (image, label), or the path of a folder of class folders"
_IMAGES = "a PIL image, a uint8 array [H, W, 3] or [H, W], or a uint8 tensor [3, H, W], [1, H, W] or [H, W]"
_FOLDER = "torchvision.datasets.folder"
_MOST_CLASSES = 100_000


class DatasetSource:
    """A data set of (image, label) as a source; its sizes and labels are found in one pass over all items.

    An image is a PIL image, a uint8 array [H, W, 3] or [H, W], or a uint8 tensor [3, H, W], [1, H, W] or [H, W]; a
    label is an integer from 0. Item i must have the same size every time it is read.

    Args:
        data: The data set, with ``__len__`` and ``__getitem__``.
        classes: Class names; by default ``data.classes``, or else the labels themselves: "0", "1", ...
        name: Name used in messages; the images are named ``name/0``, ``name/1``, ...

    Raises:
        DataError: An item that cannot be read or is not an (image, label) pair; it is named.
    """

    def __init__(self, data: MapStyle, classes: Sequence[str] | None = None, name: str = "data") -> None:
        self.data, self._name = data, name
        self.names: Sequence[str] = Names(f"{name}/{index}" for index in range(len(data)))
        items = (self._item(index) for index in range(len(data)))
        found = track(items, "Reading image sizes", len(data)) if len(data) > WORTH_A_BAR else items
        seen = hashlib.blake2b(digest_size=16)
        rows = np.empty((len(data), 3), np.int64)
        for row, (pixels, label) in zip(rows, found, strict=True):
            seen.update(pixels.tobytes())
            row[:] = label, *pixels.shape[:2]
        self.digest = seen.digest()  # names do not identify pixels, and a cache on disk has to
        self.targets, self.sizes = rows[:, 0], rows[:, 1:]
        given = classes or getattr(data, "classes", None)
        self.classes = tuple(map(str, given or range(min(int(self.targets.max()) + 1, _MOST_CLASSES))))
        wrong = np.flatnonzero((self.targets < 0) | (self.targets >= len(self.classes)))
        if len(wrong):
            has, most = f"has the label {self.targets[wrong[0]]}", len(self.classes) - 1
            raise DataError(f"item {wrong[0]} of {name} {has}; allowed: 0 to {most}, of {most + 1} classes")

    def read(self, index: int, min_short: int | None = None) -> "torch.Tensor":
        """Return image ``index`` as [3, H, W] uint8 RGB."""
        import torch

        pixels, _ = self._item(index)
        if pixels.shape[:2] != tuple(self.sizes[index]):
            was, now = ("{} x {}".format(*size) for size in (self.sizes[index], pixels.shape))
            raise DataError(f"{self.names[index]}: {was} pixels at first, {now} now; data sets must not crop or resize")
        return torch.from_numpy(pixels).permute(2, 0, 1)

    def _item(self, index: int) -> tuple[Pixels, int]:
        where = f"item {index} of {self._name}"
        try:
            item = self.data[index]
        except Exception as error:  # the caller's data set may raise anything
            raise DataError(f"{where}: {type(error).__name__}: {str(error).partition(chr(10))[0]}") from error
        if not isinstance(item, Sequence) or len(item) != 2:
            raise DataError(f"{where} is {_kind(item)}; allowed: (image, label)")
        try:
            return _pixels(item[0]), operator.index(item[1])
        except ValueError:
            raise DataError(f"{where} has {_kind(item[0])} as its image; allowed: {_IMAGES}") from None
        except TypeError:
            raise DataError(f"{where} has {_kind(item[1])} as its label; allowed: an integer from 0") from None


def from_datasets(train: object, val: object = None, on_error: str = "fail") -> tuple[Source, Source | None]:
    """Return the sources of training and validation images; a ``Source`` is returned unchanged.

    Of torchvision's ``ImageFolder`` (and ``Subset`` of one) only the list of files is taken: sizes come from their
    headers, nothing is decoded. Any other data set becomes a `DatasetSource`. One with a ``transform`` is rejected, as
    its effect cannot be known: images are resized and augmented here. Class names are the data set's
    ``classes``; without these they are the training labels.

    Args:
        on_error: ``fail`` or ``skip``, at unreadable files of an ``ImageFolder``.

    Raises:
        ConfigError: Not a source or a map-style data set, a transform, or two different lists of classes.
        DataError: An item that cannot be read or is not an (image, label) pair.
    """
    first = _as_source(train, "train", None, on_error)
    if val is None:
        return first, None
    unnamed = isinstance(first, DatasetSource) and _named(val) is None
    second = _as_source(val, "val", first.classes if unnamed else None, on_error)
    if differ := class_difference(tuple(second.classes), tuple(first.classes)):
        raise ConfigError(f"val: its classes differ from train's ({differ}); give both the same, in the same order")
    return first, second


def _as_source(data: object, name: str, classes: Sequence[str] | None, on_error: str) -> Source:
    if is_source(data):
        return data
    if not isinstance(data, MapStyle) or isinstance(data, (str, dict, np.ndarray)):
        raise ConfigError(f"{name} is {_kind(data)}; allowed: {_ALLOWED}")
    if len(data) == 0:
        raise ConfigError(f"{name} has no images; allowed: {_ALLOWED}")
    _check_transforms(data, name)
    files, root = _files(data), getattr(_base(data), "root", "")
    if files is None:
        return DatasetSource(data, classes or _named(data), name)
    names = Names(os.path.abspath(path) for path, _ in files)  # noqa: PTH100 - one Path per file would take minutes
    targets = np.array([label for _, label in files], np.int64)
    return read_files(names, targets, _named(data) or (), Path(root), on_error)[0]


def _check_transforms(data: object, name: str) -> None:
    for key in ("transform", "transforms", "target_transform"):
        if getattr(data, key, None) is not None:
            why = "images are resized here, and augmented by augment=Augment(...)"
            raise ConfigError(f"{name} has a {key}; create the data set without it: {why}")
    inner = [data.dataset] if hasattr(data, "dataset") else getattr(data, "datasets", ())
    for part in inner:  # of Subset, or of ConcatDataset
        _check_transforms(part, name)


def _files(data: object) -> list[tuple[str, int]] | None:
    """Return the (path, label) pairs of an ImageFolder or a subset of one that reads files as torchvision does."""
    if hasattr(data, "dataset") and hasattr(data, "indices"):
        files = _files(data.dataset)
        return None if files is None else [files[int(index)] for index in data.indices]
    reads = getattr(type(data), "__getitem__", None), getattr(data, "loader", None)
    plain = all(getattr(function, "__module__", "") == _FOLDER for function in reads)
    return list(getattr(data, "samples", ())) if plain else None


def _base(data: object) -> object:
    while hasattr(data, "dataset"):
        data = data.dataset
    return data


def _named(data: object) -> tuple[str, ...] | None:
    names = getattr(data, "classes", None) or getattr(_base(data), "classes", None)
    return tuple(map(str, names)) if names else None


def _pixels(image: object) -> Pixels:
    """Return an image as [H, W, 3] uint8 in its own memory; raises ``ValueError`` if it is not one."""
    if isinstance(image, Image.Image):
        return image_array(image)
    array = image
    if hasattr(image, "detach"):  # a tensor
        array = image.detach().cpu().numpy()
        array = array.transpose(1, 2, 0) if array.ndim == 3 else array
    if not isinstance(array, np.ndarray) or array.dtype != np.uint8 or array.ndim not in (2, 3) or not array.size:
        raise ValueError
    array = array[..., None] if array.ndim == 2 else array
    return np.array(np.broadcast_to(array, (*array.shape[:2], 3)))  # a ValueError unless of 1 or 3 channels


def _kind(value: object) -> str:
    said = f"{type(value).__module__}.{type(value).__qualname__}".removeprefix("builtins.")
    shape, dtype = getattr(value, "shape", None), getattr(value, "dtype", None)
    return f"a {said}" if shape is None else f"a {said} of {dtype} and shape {list(shape)}"


class _Library(NamedTuple):
    """A data set of torchvision: its class, the argument that names a part, the parts (train, val, test), its files."""

    kind: str
    argument: str
    parts: tuple[str | bool, ...]
    files: str


LIBRARY = {
    "caltech101": _Library("Caltech101", "target_type", ("category",), "101_ObjectCategories/"),
    "cifar10": _Library("CIFAR10", "train", (True, False), "cifar-10-batches-py/"),
    "flowers102": _Library("Flowers102", "split", ("train", "val", "test"), "flowers-102/ with jpg/ and *.mat"),
    "food101": _Library("Food101", "split", ("train", "test"), "food-101/ with images/ and meta/"),
    "oxford_iiit_pet": _Library("OxfordIIITPet", "split", ("trainval", "test"), "oxford-iiit-pet/"),
    "imagenet": _Library("ImageNet", "split", ("train", "val"), "train/ and val/, or the three archives,"),
}


def library_parts(name: str, root: Path, download: bool) -> list[Groups | Source]:
    """Return the parts of one of ``LIBRARY`` in the order train, val, test; raises ``DataError`` where it is not there.

    One part is still to be split.
    """
    if name == "caltech101":
        return [class_folders(_caltech101(root, download))]
    if name == "imagenet":
        if not all((root / str(part)).is_dir() for part in LIBRARY[name].parts):
            for part in LIBRARY[name].parts:  # this unpacks the archives
                _open(name, root, part)
        return [class_folders(folder) for folder in part_folders(root)]
    return [_labelled(_open(name, root, part, download=download), name) for part in LIBRARY[name].parts]


def _caltech101(root: Path, download: bool) -> Path:
    name = "101_ObjectCategories"
    if found := [root] if root.name == name else [*root.glob(name), *root.glob(f"*/{name}")]:
        return found[0]
    if not download:
        raise _absent("caltech101", root, "not found")
    _open("caltech101", root, "category", download=True)
    return root / "caltech101" / name


def _open(name: str, root: Path, part: str | bool, **options: bool) -> Any:
    library = LIBRARY[name]
    make = getattr(importlib.import_module("torchvision.datasets"), library.kind)
    try:
        return make(str(root), **{library.argument: part}, **options)
    except Exception as error:  # no network, no file, a damaged archive: each raises a different error
        raise _absent(name, root, str(error).partition("\n")[0].rstrip(".")) from error


def _absent(name: str, root: Path, why: str) -> DataError:
    instead = "" if name == "imagenet" else ", or set data.download=true"
    return DataError(f"data={name}: cannot be loaded from {root} ({why}); put {LIBRARY[name].files} there{instead}")


def _labelled(data: Any, name: str) -> Groups | Source:
    if name == "cifar10":
        return ArraySource(data.data, data.targets, data.classes, f"cifar10/{'train' if data.train else 'test'}")
    groups: dict[str, list[str]] = {label: [] for label in data.classes}
    for file, label in zip(data._images if name == "oxford_iiit_pet" else data._image_files, data._labels, strict=True):
        groups[data.classes[label]].append(str(file))
    return dict(groups)
