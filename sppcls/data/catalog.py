"""Data sets by name: what is under a root, split into training, validation and test sources."""

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from sppcls.data.decode import shown
from sppcls.data.files import Skipped, read_groups
from sppcls.data.folders import Groups, class_folders, named_folders, part_folders, table_parts
from sppcls.data.source import ArraySource, Source, Subset
from sppcls.data.split import pick_per_class, split_by_class
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
_WHAT = {
    "folder": "the folder that holds train/ and val/, or a folder a class",
    "table": "a CSV or Parquet file with the columns path, label and, if there are parts, split",
}
DATA_SETS = ("shapes", "folder", "table", *_LIBRARY)


def load_splits(
    name: str,
    root: str | Path | None = None,
    *,
    seed: int = 0,
    train_per_class: int | None = None,
    val_per_class: int | None = None,
    val_fraction: float | None = None,
    train_dir: str | Path | None = None,
    val_dir: str | Path | None = None,
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
    test part. A table is a CSV or Parquet file of path, label and perhaps split (train, val or test).

    Args:
        root: The set's folder, or the table; ``shapes`` needs none.
        seed: Of the split, of the images that the counts pick, and of ``shapes``.
        train_per_class: Training images a class; by default all, or 80 % of a set that has to be split.
        val_per_class: Validation images a class, or what is left where there are fewer.
        val_fraction: Share of each class for validation, above 0 and below 1, of a set that has to be split; 0.2.
        train_dir, val_dir: The parts of a ``folder`` by other names, relative to ``root`` or absolute; without a
            ``val_dir``, ``train_dir`` is split, and without a ``train_dir`` it is ``train``.
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
    _check_fraction(val_fraction, {"val_dir": val_dir, "val_per_class": val_per_class})
    root = _root(name, root, train_dir, val_dir)
    folder = Path() if name == "shapes" else _existing(name, root, download)
    if name == "shapes":
        parts = _shapes(seed, train_size, val_size, test_size)
    elif train_dir or val_dir:
        parts = [class_folders(part) for part in named_folders(folder, train_dir, val_dir)]
    else:
        parts = _parts(name, folder, download)
    if classes is not None:
        parts = [_keep(part, classes) for part in parts]
    _check_classes(parts, folder)
    read: list[tuple[Source, Skipped]] = [
        read_groups(part, folder, on_error) if isinstance(part, dict) else (part, []) for part in parts
    ]
    train, *held_out = [source for source, _ in read]
    skipped = [file for _, left_out in read for file in left_out]
    if not held_out:
        pair = split_by_class(train, seed, train_per_class, val_per_class, val_fraction)
        return Splits(*pair, skipped=skipped)
    if val_fraction is not None:
        raise ConfigError(f"data.val_fraction={val_fraction}: data={name} has validation images already; leave it out")
    train = pick_per_class(train, seed, train_per_class, strict=True)
    val = pick_per_class(held_out[0], seed, val_per_class)
    return Splits(train, val, held_out[1] if len(held_out) > 1 else None, skipped)


def _check_fraction(fraction: float | None, others: Mapping[str, object]) -> None:
    if fraction is None:
        return
    if not 0 < fraction < 1:
        raise ConfigError(f"data.val_fraction: got {fraction}, it must be above 0 and below 1")
    if beside := [key for key, value in others.items() if value is not None]:
        raise ConfigError(f"data.val_fraction={fraction} and data.{beside[0]} exclude each other; give one")


def _root(
    name: str, root: str | Path | None, train_dir: str | Path | None, val_dir: str | Path | None
) -> str | Path | None:
    """Return the root, which absolute folders of the parts do without."""
    for key, folder in (("train_dir", train_dir), ("val_dir", val_dir)):
        if folder is not None and name != "folder":
            raise ConfigError(f"data.{key}={folder}: data={name} has no such key; use data=folder")
        if folder is not None and root is None and not (train_dir and Path(folder).expanduser().is_absolute()):
            raise ConfigError(f"data.{key}={folder} needs data.root, or data.train_dir and absolute paths")
    return train_dir if root is None else root


def _shapes(seed: int, train_size: int, val_size: int, test_size: int) -> list[Groups | Source]:
    from sppcls.data.shapes import ShapesSource

    sizes = {"train": train_size, "val": val_size, "test": test_size}
    return [ShapesSource(part, size, seed) for part, size in sizes.items() if size or part != "test"]


def _existing(name: str, root: str | Path | None, download: bool) -> Path:
    what = _WHAT.get(name) or f"the folder that holds {_LIBRARY[name].files}"
    if root is None:
        raise DataError(f"data={name} needs data.root: {what}")
    place = Path(root).expanduser().absolute()
    if name == "folder" and place.is_file():
        raise DataError(f"data.root={root} is a file; a table of paths and labels is data=table")
    if name == "table" and place.is_dir():
        raise DataError(f"data.root={root} is a folder; a folder of images is data=folder")
    if not (place.is_file() if name == "table" else place.is_dir()) and not (download and name in _LIBRARY):
        raise DataError(f"data.root={root}: no such {'file' if name == 'table' else 'folder'}; it is {what}")
    return place


def _parts(name: str, root: Path, download: bool) -> list[Groups | Source]:
    """Return the parts of a set in the order train, val, test: one part is still to be split."""
    if name == "table":
        return [*table_parts(root).values()]
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
        needed = "2 labels" if root.is_file() else "2 folders of images, one a class,"
        raise DataError(f"{shown(root)}: {found}; at least {needed} are needed")
    for part, where in zip(parts, ("training", "validation", "test"), strict=False):
        missing, extra = sorted({*train} - {*_classes(part)}), sorted({*_classes(part)} - {*train})
        if missing or extra:
            differ = f"{where} lacks {missing[:5]}" if missing else f"training lacks {extra[:5]}"
            raise DataError(f"{shown(root)}: {where} classes differ from training: {differ}; make them the same")
        bare = [name for name in train if isinstance(part, dict) and not part[name]]
        if bare:
            raise DataError(f"{shown(root)}: {where} class {bare[0]!r} has no images; add some or remove it")
