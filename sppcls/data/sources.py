"""Data sets by name: what is under a root, split into training, validation and test sources."""

import hashlib
import importlib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from sppcls.data.files import Skipped, class_folders, read_groups, shown, size_cache
from sppcls.data.source import Source
from sppcls.errors import ConfigError, DataError, did_you_mean

Indices = npt.NDArray[np.int64]
Groups = dict[str, list[Path]]


@dataclass(frozen=True)
class Splits:
    """The sources of a data set; their classes are the same. ``skipped`` holds (path, reason) of unreadable files."""

    train: Source
    val: Source
    test: Source | None = None
    skipped: tuple[tuple[str, str], ...] = ()


class ArraySource:
    """Images of one size held in memory, [N, H, W, 3] uint8 (see `sppcls.data.source.Source`)."""

    def __init__(
        self, images: npt.NDArray[np.uint8], targets: Sequence[int], classes: Sequence[str], prefix: str
    ) -> None:
        self.images = images
        self.targets = np.asarray(targets, np.int64)
        self.classes = tuple(classes)
        self.sizes = np.tile(np.array(images.shape[1:3], np.int64), (len(images), 1))
        self.names = [f"{prefix}/{index}" for index in range(len(images))]

    def read(self, index: int, min_short: int | None = None) -> torch.Tensor:  # noqa: ARG002
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
        self.names = [source.names[i] for i in self.indices]

    def read(self, index: int, min_short: int | None = None) -> torch.Tensor:
        """Return image ``index`` of the subset as the source reads it."""
        return self.source.read(int(self.indices[index]), min_short)


@dataclass(frozen=True)
class _Library:
    """A data set of torchvision: its class, the arguments of each split (train, val, test), and its files."""

    kind: str
    splits: tuple[Mapping[str, Any], ...]
    files: str


_LIBRARY = {
    "cifar10": _Library("CIFAR10", ({"train": True}, {"train": False}), "cifar-10-batches-py/ (cifar-10-python.tar.gz)"),
    "flowers102": _Library(
        "Flowers102",
        ({"split": "train"}, {"split": "val"}, {"split": "test"}),
        "flowers-102/jpg/, flowers-102/imagelabels.mat and flowers-102/setid.mat",
    ),
    "food101": _Library("Food101", ({"split": "train"}, {"split": "test"}), "food-101/images/ and food-101/meta/"),
    "oxford_iiit_pet": _Library(
        "OxfordIIITPet",
        ({"split": "trainval"}, {"split": "test"}),
        "oxford-iiit-pet/images/ and oxford-iiit-pet/annotations/",
    ),
    "imagenet": _Library(
        "ImageNet", ({"split": "train"}, {"split": "val"}), "train/ and val/ with a folder a class, or the three archives"
    ),
    "caltech101": _Library("Caltech101", ({},), "101_ObjectCategories/"),
}
DATA_SETS = ("shapes", "folder", *_LIBRARY)


def load_splits(
    name: str,
    root: str | Path | None = None,
    *,
    seed: int = 0,
    train_per_class: int | None = None,
    val_per_class: int | None = None,
    classes: Sequence[str] | None = None,
    on_error: str = "fail",
    download: bool = False,
    train_size: int = 2000,
    val_size: int = 500,
    test_size: int = 0,
) -> Splits:
    """Return the training, validation and test sources of a data set.

    A folder holds train/ and val/ (or validation/, or test/), or a folder a class, which are split with ``seed``: an
    image's place depends on the seed and on its own class's files alone. Sets without a validation part use their
    test part.

    Args:
        name: One of `DATA_SETS`.
        root: The set's folder; ``shapes`` needs none.
        seed: Of the split, of the images that the counts pick, and of ``shapes``.
        train_per_class: Training images a class; by default all, or 80 % of a set that has to be split.
        val_per_class: Validation images a class, or what is left where there are fewer.
        classes: The classes to keep; by default all.
        on_error: ``fail`` or ``skip``, at files that are no readable image.
        download: Let torchvision download what is missing.
        train_size: Images of ``shapes``, as are ``val_size`` and ``test_size``.

    Raises:
        ConfigError: An unknown set or class, or a count below 1.
        DataError: Missing, empty, unreadable or inconsistent data, and counts larger than there is.
    """
    for key, count in (("train_per_class", train_per_class), ("val_per_class", val_per_class)):
        if count is not None and count < 1:
            raise ConfigError(f"data.{key}: got {count}, it must be 1 or more")
    if name not in DATA_SETS:
        raise ConfigError(f"data: no data set {name!r}{did_you_mean(name, DATA_SETS)}")
    skipped: Skipped = []
    if name == "shapes":
        sources = _shapes(seed, classes, train_size, val_size, test_size)
    else:
        folder = _root(name, root, download)
        parts = _parts(name, folder, download)
        sources = [_read(part, folder, classes, on_error, skipped) for part in parts]
    train, *others = sources
    if others:
        _check_same_classes(train, others)
        train = pick(train, _ranked(train, seed), train_per_class, "train_per_class")
        val = pick(others[0], _ranked(others[0], seed), val_per_class)
    else:
        train, val = split(train, seed, train_per_class, val_per_class)
    return Splits(train, val, others[1] if len(others) > 1 else None, tuple(skipped))
