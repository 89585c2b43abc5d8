"""Data sets by name: what is under a root, split into training, validation and test sources."""

import hashlib
import importlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from sppcls.data.decode import shown
from sppcls.data.files import ArraySource, Skipped, Subset, read_groups
from sppcls.data.paths import Groups, class_folders, part_folders
from sppcls.data.source import Source
from sppcls.errors import ConfigError, DataError, did_you_mean


@dataclass(frozen=True)
class Splits:
    """The sources of a data set, of the same classes; ``skipped`` has (path, reason) of the unreadable files."""

    train: Source
    val: Source
    test: Source | None = None
    skipped: Skipped = field(default_factory=list)


class _Library(NamedTuple):
    """A data set of torchvision: its class, the argument that names a part, the parts (train, val, test), its files."""

    kind: str
    argument: str
    parts: tuple[Any, ...]
    files: str


_LIBRARY = {
    "caltech101": _Library("Caltech101", "target_type", ("category",), "101_ObjectCategories/"),
    "cifar10": _Library("CIFAR10", "train", (True, False), "cifar-10-batches-py/"),
    "flowers102": _Library("Flowers102", "split", ("train", "val", "test"), "flowers-102/ with jpg/ and *.mat"),
    "food101": _Library("Food101", "split", ("train", "test"), "food-101/ with images/ and meta/"),
    "oxford_iiit_pet": _Library("OxfordIIITPet", "split", ("trainval", "test"), "oxford-iiit-pet/"),
    "imagenet": _Library("ImageNet", "split", ("train", "val"), "train/ and val/, or the three archives,"),
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
    """Return the training, validation and test sources of a data set, one of ``DATA_SETS``.

    A folder holds train/ and val/ (or validation/, or test/), or else a folder a class, which are then split: an
    image's place follows from the seed and from its own class's files. A set without a validation part uses its
    test part.

    Args:
        root: The set's folder; ``shapes`` needs none.
        seed: Of the split, of the images that the counts pick, and of ``shapes``.
        train_per_class: Training images a class; by default all, or 80 % of a set that has to be split.
        val_per_class: Validation images a class, or what is left where there are fewer.
        on_error: ``fail`` or ``skip``, at files that are no readable image.
        train_size, val_size, test_size: Images of ``shapes``; a ``test_size`` of 0 gives no test source.

    Raises:
        ConfigError: An unknown set or class, or a count below 1.
        DataError: Missing, empty, unreadable or inconsistent data, or fewer images than the counts ask for.
    """
    if name not in DATA_SETS:
        raise ConfigError(f"data: no data set {name!r}{did_you_mean(name, DATA_SETS)}")
    for key, count in (("train_per_class", train_per_class), ("val_per_class", val_per_class)):
        if count is not None and count < 1:
            raise ConfigError(f"data.{key}: got {count}, it must be 1 or more")
    folder = Path() if name == "shapes" else _existing(name, root, download)
    parts = _shapes(seed, train_size, val_size, test_size) if name == "shapes" else _parts(name, folder, download)
    if classes is not None:
        parts = [_keep(part, classes) for part in parts]
    _check_classes(parts, folder)
    read: list[tuple[Source, Skipped]] = [
        read_groups(part, folder, on_error) if isinstance(part, dict) else (part, []) for part in parts
    ]
    train, *held_out = [source for source, _ in read]
    skipped = [file for _, left_out in read for file in left_out]
    if not held_out:
        return Splits(*split_by_class(train, seed, train_per_class, val_per_class), skipped=skipped)
    train, val = _pick(train, seed, train_per_class, strict=True), _pick(held_out[0], seed, val_per_class)
    return Splits(train, val, held_out[1] if len(held_out) > 1 else None, skipped)


def split_by_class(source: Source, seed: int, n_train: int | None, n_val: int | None) -> tuple[Source, Source]:
    """Split each class in two, 80 % and 20 % where no count is given; see `load_splits`.

    Raises ``DataError`` naming the smallest class where nothing of it would be left for one of the two.
    """
    orders = _orders(source, seed)
    n, name = min((len(order), name) for order, name in zip(orders, source.classes, strict=True))
    if min(_shares(n, n_train, n_val)) < 1:
        key, other = ("val_per_class", "training") if n_train is None else ("train_per_class", "validation")
        why = f"data.{key}={n_train or n_val} leaves none for {other}; it can be at most {n - 1}"
        raise DataError(f"class {name!r} has {n} image{'s' * (n > 1)}: {why if n > 1 else 'a split needs 2'}")
    train, val = [], []
    for order in orders:
        first, last = _shares(len(order), n_train, n_val)
        train += order[:first]
        val += order[len(order) - last :]  # from the end: another train_per_class leaves the validation set as it is
    return Subset(source, sorted(train)), Subset(source, sorted(val))


def _shares(n: int, train: int | None, val: int | None) -> tuple[int, int]:
    if train is None:
        val = max(1, round(n / 5)) if val is None else val
        return n - val, val
    return train, n - train if val is None else min(val, n - train)


def _pick(source: Source, seed: int, count: int | None, strict: bool = False) -> Source:
    if count is None:
        return source
    orders = _orders(source, seed)
    n, name = min((len(order), name) for order, name in zip(orders, source.classes, strict=True))
    if strict and n < count:
        raise DataError(f"class {name!r} has {n} training images: data.train_per_class={count} can be at most {n}")
    return Subset(source, sorted(i for order in orders for i in order[:count]))


def _orders(source: Source, seed: int) -> list[list[int]]:
    """Return each class's indices, ordered by a hash of the seed and the end of an image's name.

    So where the folder lies, other classes, and files that come or go leave the order of the rest as it is.
    """

    def rank(index: int) -> bytes:
        name = "/".join(Path(source.names[index]).parts[-2:])
        return hashlib.sha256(f"{seed}/{name}".encode(errors="surrogateescape")).digest()

    targets = range(len(source.classes))
    return [sorted(np.flatnonzero(source.targets == target).tolist(), key=rank) for target in targets]


def _shapes(seed: int, train_size: int, val_size: int, test_size: int) -> list[Groups | Source]:
    from sppcls.data.shapes import ShapesSource

    sizes = {"train": train_size, "val": val_size, "test": test_size}
    return [ShapesSource(part, size, seed) for part, size in sizes.items() if size or part != "test"]


def _existing(name: str, root: str | Path | None, download: bool) -> Path:
    what = _LIBRARY[name].files if name in _LIBRARY else "train/ and val/, or a folder a class"
    if root is None:
        raise DataError(f"data={name} needs data.root: the folder that holds {what}")
    folder = Path(root).expanduser().absolute()
    if not folder.is_dir() and not (download and name in _LIBRARY):
        raise DataError(f"data.root={root}: no such folder; it is where {what} should be")
    return folder


def _parts(name: str, root: Path, download: bool) -> list[Groups | Source]:
    """Return the parts of a set in the order train, val, test: one part is still to be split."""
    if name == "caltech101":
        return [class_folders(_caltech101(root, download))]
    if name == "imagenet" and not all((root / part).is_dir() for part in ("train", "val")):
        for part in _LIBRARY[name].parts:  # this unpacks the archives
            _torchvision(name, root, part)
    if name in ("folder", "imagenet"):
        return [class_folders(folder) for folder in part_folders(root)]
    return [_labelled(_torchvision(name, root, part, download=download), name) for part in _LIBRARY[name].parts]


def _caltech101(root: Path, download: bool) -> Path:
    name = "101_ObjectCategories"
    if found := [root] if root.name == name else [*root.glob(name), *root.glob(f"*/{name}")]:
        return found[0]
    if not download:
        raise _absent("caltech101", root, "not found")
    _torchvision("caltech101", root, "category", download=True)
    return root / "caltech101" / name


def _torchvision(name: str, root: Path, part: Any, **options: Any) -> Any:
    kind, argument, _, _ = _LIBRARY[name]
    make = getattr(importlib.import_module("torchvision.datasets"), kind)
    try:
        return make(str(root), **{argument: part}, **options)
    except Exception as error:  # no network, no file, a damaged archive: each raises something else
        raise _absent(name, root, str(error).partition("\n")[0].rstrip(".")) from error


def _absent(name: str, root: Path, why: str) -> DataError:
    instead = "" if name == "imagenet" else ", or set data.download=true"
    return DataError(f"data={name}: cannot be used from {root} ({why}); put {_LIBRARY[name].files} there{instead}")


def _labelled(data: Any, name: str) -> Groups | Source:
    if name == "cifar10":
        return ArraySource(data.data, data.targets, data.classes, f"cifar10/{'train' if data.train else 'test'}")
    groups: dict[str, list[str]] = {label: [] for label in data.classes}
    for file, label in zip(data._images if name == "oxford_iiit_pet" else data._image_files, data._labels, strict=True):
        groups[data.classes[label]].append(str(file))
    return dict(groups)


def _classes(part: Groups | Source) -> list[str]:
    return list(part if isinstance(part, dict) else part.classes)


def _keep(part: Groups | Source, classes: Sequence[str]) -> Groups | Source:
    """Leave only ``classes``, in the order of the data set."""
    have = _classes(part)
    for name in classes:
        if name not in have:
            raise ConfigError(f"data.classes: no class {name!r}{did_you_mean(name, have)}")
    kept = [name for name in have if name in set(classes)]
    if isinstance(part, dict):
        return {name: part[name] for name in kept}
    return Subset(part, np.flatnonzero(np.isin(part.targets, [have.index(name) for name in kept])), kept)


def _check_classes(parts: Sequence[Groups | Source], root: Path) -> None:
    train = _classes(parts[0])
    if len(train) < 2:
        found = f"only one class, {train[0]!r}" if train else "no class folders"
        raise DataError(f"{shown(root)}: {found}; at least 2 folders of images are needed, one a class")
    for part, where in zip(parts, ("training", "validation", "test"), strict=False):
        missing, extra = sorted({*train} - {*_classes(part)}), sorted({*_classes(part)} - {*train})
        if missing or extra:
            differ = f"{where} lacks {missing[:5]}" if missing else f"training lacks {extra[:5]}"
            raise DataError(f"{shown(root)}: {where} classes differ from training: {differ}; make them the same")
        bare = [name for name in train if isinstance(part, dict) and not part[name]]
        if bare:
            raise DataError(f"{shown(root)}: {where} class {bare[0]!r} has no images; add some or remove it")
