"""Data sets by name: a root folder, split into training, validation and test sources."""

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from sppcls.data.datasets import LIBRARY, library_parts
from sppcls.data.decode import shown
from sppcls.data.files import Skipped, read_groups
from sppcls.data.folders import Groups, class_folders, named_folders, part_folders, table_parts
from sppcls.data.shapes import ShapesSource
from sppcls.data.source import Source, Subset
from sppcls.data.split import hold_out, pick_per_class, smallest_class, split_by_class
from sppcls.errors import ConfigError, DataError, counted, did_you_mean


@dataclass(frozen=True)
class Splits:
    """The sources of a data set, of the same classes; ``skipped`` has (path, reason) of the unreadable files."""

    train: Source
    val: Source
    test: Source | None = None
    skipped: Skipped = field(default_factory=list)


_WHAT = {
    "folder": "the folder with train/ and val/, or with one folder per class",
    "table": "a CSV or Parquet file with the columns path, label and optionally split",
}
DATA_SETS = ("shapes", "folder", "table", *LIBRARY)
Part = Groups | Source


def load_splits(name: str, root: str | Path | None = None, **options: Any) -> Splits:
    """Return the training, validation and test sources of a data set; ``options`` are those of `DataSet`."""
    return DataSet(name, root, **options).load()


@dataclass(frozen=True)
class DataSet:
    """A data set by name, and what to take of it.

    A folder holds train/ and val/ (or validation/, or test/), or else one folder per class, which is then split: an
    image's place follows from the seed and from its own class's files. Without a validation part the test part is used.

    Attributes:
        name, root: One of ``DATA_SETS``, and its folder or table; ``shapes`` needs none.
        seed: Seed of the split, of the per-class selection, and of ``shapes``.
        train_per_class: Training images per class; by default all, or 80 % of a set that has to be split.
        val_per_class: Validation images per class, or as many as are left.
        test_per_class: Test images per class of a set that has to be split; the same ones whatever the seed is.
        val_fraction: Share of each class for validation of a set that has to be split; 0.2.
        train_dir, val_dir: Parts of a ``folder`` with other names, relative to ``root`` or absolute; without a
            ``val_dir``, ``train_dir`` is split.
        on_error: ``fail`` or ``skip``, at files that are not readable images.
        train_size, val_size, test_size: Images of ``shapes``; a ``test_size`` of 0 gives no test source.
    """

    name: str
    root: str | Path | None = None
    _: KW_ONLY
    seed: int = 0
    train_per_class: int | None = None
    val_per_class: int | None = None
    test_per_class: int | None = None
    val_fraction: float | None = None
    train_dir: str | Path | None = None
    val_dir: str | Path | None = None
    classes: Sequence[str] | None = None
    on_error: str = "fail"
    download: bool = False
    train_size: int = 2000
    val_size: int = 500
    test_size: int = 0

    def load(self) -> Splits:
        """Return the training, validation and test sources.

        Raises:
            ConfigError: An unknown set or class, or a count below 1.
            DataError: Missing, empty, unreadable or inconsistent data, or fewer images than requested.
        """
        self._check()
        place = Path() if self.name == "shapes" else self._place()
        parts = self._parts(place)
        if self.classes is not None:
            parts = [_keep(part, self.classes) for part in parts]
        _check_classes(parts, place)
        read: list[tuple[Source, Skipped]] = [
            read_groups(part, place, self.on_error) if isinstance(part, dict) else (part, []) for part in parts
        ]
        return self._split([source for source, _ in read], [file for _, left_out in read for file in left_out])

    def _split(self, sources: list[Source], skipped: Skipped) -> Splits:
        train_count, val_count = self.train_per_class, self.val_per_class
        if len(sources) == 1:
            rest, held = hold_out(sources[0], self.test_per_class)
            return Splits(*split_by_class(rest, self.seed, train_count, val_count, self.val_fraction), held, skipped)
        if self.test_per_class is not None:
            has = f"data={self.name} has parts already"
            raise ConfigError(f"data.test_per_class={self.test_per_class}: {has}; leave it out")
        if self.val_fraction is not None:
            has = f"data={self.name} has validation images already"
            raise ConfigError(f"data.val_fraction={self.val_fraction}: {has}; leave it out")
        train, val, *test = sources
        n, name = smallest_class(train)
        if n < (train_count or 0):
            most = f"data.train_per_class={train_count} can be at most {n}"
            raise DataError(f"class {name!r} has {counted(n, 'training image')}: {most}")
        picked = pick_per_class(train, self.seed, train_count), pick_per_class(val, self.seed, val_count)
        return Splits(*picked, test[0] if test else None, skipped)

    def _check(self) -> None:
        if self.name not in DATA_SETS:
            raise ConfigError(f"data: no data set {self.name!r}{did_you_mean(self.name, DATA_SETS)}")
        for key in ("train_per_class", "val_per_class", "test_per_class"):
            if (count := getattr(self, key)) is not None and count < 1:
                raise ConfigError(f"data.{key}: got {count}, allowed: 1 or more")
        for key in ("train_dir", "val_dir"):
            if (folder := getattr(self, key)) is not None and self.name != "folder":
                raise ConfigError(f"data.{key}={folder}: data={self.name} has no such key; use data=folder")
            absolute = self.train_dir and folder and Path(folder).expanduser().is_absolute()
            if folder is not None and self.root is None and not absolute:
                raise ConfigError(f"data.{key}={folder} needs data.root, or data.train_dir and absolute paths")
        if self.val_fraction is None:
            return
        if not 0 < self.val_fraction < 1:
            raise ConfigError(f"data.val_fraction: got {self.val_fraction}, it must be above 0 and below 1")
        if beside := [key for key in ("val_dir", "val_per_class") if getattr(self, key) is not None]:
            raise ConfigError(
                f"data.val_fraction={self.val_fraction} and data.{beside[0]} cannot be combined; give one"
            )

    def _place(self) -> Path:
        """Return the folder or table; absolute folders of the parts need no root."""
        name, root = self.name, self.train_dir if self.root is None else self.root
        what = _WHAT.get(name) or f"the folder that holds {LIBRARY[name].files}"
        if root is None:
            raise DataError(f"data={name} needs data.root: {what}")
        place = Path(root).expanduser().absolute()
        if name == "folder" and place.is_file():
            raise DataError(f"data.root={root} is a file; a table of paths and labels is data=table")
        if name == "table" and place.is_dir():
            raise DataError(f"data.root={root} is a folder; a folder of images is data=folder")
        if not place.exists() and not (self.download and name in LIBRARY):
            raise DataError(f"data.root={root}: no such {'file' if name == 'table' else 'folder'}; expected {what}")
        return place

    def _parts(self, root: Path) -> list[Part]:
        """Return the parts of a set in the order train, val, test; a single part still has to be split."""
        name = self.name
        if name == "shapes":
            sizes = {"train": self.train_size, "val": self.val_size, "test": self.test_size}
            seeds = {"test": 0}  # the same whatever the seed is
            wanted = {part: size for part, size in sizes.items() if size or part != "test"}
            return [ShapesSource(part, size, seeds.get(part, self.seed)) for part, size in wanted.items()]
        if name == "table":
            return [*table_parts(root).values()]
        if name in LIBRARY:
            return library_parts(name, root, self.download)
        named = self.train_dir or self.val_dir
        folders = named_folders(root, self.train_dir, self.val_dir) if named else part_folders(root)
        return [class_folders(folder) for folder in folders]


def _classes(part: Part) -> list[str]:
    return list(part if isinstance(part, dict) else part.classes)


def _keep(part: Part, classes: Sequence[str]) -> Part:
    """Keep only ``classes``, in the order of the data set."""
    have = _classes(part)
    if unknown := [name for name in classes if name not in have]:
        raise ConfigError(f"data.classes: no class {unknown[0]!r}{did_you_mean(unknown[0], have)}")
    kept = [name for name in have if name in classes]
    if isinstance(part, dict):
        return {name: part[name] for name in kept}
    return Subset(part, np.flatnonzero(np.isin(part.targets, [have.index(name) for name in kept])), kept)


def _check_classes(parts: Sequence[Part], root: Path) -> None:
    train = _classes(parts[0])
    if len(train) < 2:
        found = f"only one class, {train[0]!r}" if train else "no class folders"
        needed = "2 labels" if root.is_file() else "2 class folders with images"
        raise DataError(f"{shown(root)}: {found}; at least {needed} are needed")
    for part, where in zip(parts, ("training", "validation", "test"), strict=False):
        missing, extra = sorted({*train} - {*_classes(part)}), sorted({*_classes(part)} - {*train})
        if missing or extra:
            differ = f"{where} lacks {missing[:5]}" if missing else f"training lacks {extra[:5]}"
            raise DataError(f"{shown(root)}: {where} classes differ from training: {differ}; use the same in both")
        bare = [name for name in train if isinstance(part, dict) and not part[name]]
        if bare:
            raise DataError(f"{shown(root)}: {where} class {bare[0]!r} has no images; add some or remove it")
