"""Inspects a set of images: its contents, broken files, and the cost of an epoch at each scale."""

import hashlib
import os
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from sppcls.data.decode import decode_array, quiet, shown
from sppcls.data.files import scan
from sppcls.data.folders import Groups, class_folders, image_files, part_folders, table_parts
from sppcls.data.plan import TrainingPlan
from sppcls.data.planner import Planner
from sppcls.data.schedule import Schedule
from sppcls.errors import ConfigError, DataError, counted
from sppcls.measure.mixing import Mixing, mixing
from sppcls.settings import DataSpec
from sppcls.terminal import track

STRIDE = 8  # of the default network, which would have to be built with torch to know it
Counts = dict[str, tuple[int | None, ...]]  # class -> its images in each part, None if it has no folder there
Histogram = tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]  # counts [K], edges [K + 1] of a logarithmic axis


@dataclass(frozen=True)
class ScaleCost:
    """An epoch at one scale; shares are 0 to 1."""

    scale: int  # shorter side in pixels
    padding: float  # share of the tensors' pixels; 0 for crop and warp
    megapixels: float  # of all tensors
    upscaled: float  # share of the images whose shorter side is below the scale
    lost: float  # mean share of an image's area that crop cuts away; otherwise 0
    distortion: float  # geometric mean of the factors, 1 or more, by which the images' aspects change
    shapes: int  # different tensor sizes


class Copies(NamedTuple):
    """Files of identical content; across parts they leak training data, across classes a label is wrong."""

    across_parts: bool
    across_classes: bool
    files: list[Path]


@dataclass(frozen=True)
class DataFacts:
    """What `examine` found: absolute paths, and counts of images that can be read."""

    root: Path
    parts: dict[str, int]  # train, val and test, or "all" of a set without parts
    classes: Counts  # the largest first
    loose: list[Path]  # image files outside the class folders, which are ignored
    imbalance: float | None  # largest over smallest class with any image, in the first part
    sizes: dict[str, tuple[float, float, float]]  # smallest, median, largest, in pixels; aspect is width / height
    short: Histogram  # shorter sides in pixels
    aspect: Histogram  # widths over heights; what is beyond 8:1 counts as 8:1
    decoded: bool  # whether every file was fully decoded, or only its header read
    broken: dict[Path, str]  # and why
    copies: list[Copies]  # across parts first, then across classes
    costs: list[ScaleCost]  # an epoch of the first part
    mixing: Mixing | None  # of that epoch's steps


def scale_costs(planner: Planner, scales: Sequence[int]) -> list[ScaleCost]:
    """Return the cost of an epoch at each scale; reads no file.

    Raises:
        ConfigError: A scale below 1.
    """
    if min(scales, default=1) < 1:
        raise ConfigError(f"scale {min(scales)}: a scale is a shorter side in pixels; give 1 or more")
    sizes, fit = planner.sizes, planner.fit
    short, long = sizes.min(axis=1), sizes.max(axis=1)
    lost = float(1 - (short / long).mean()) if fit == "crop" else 0.0
    costs = []
    for scale in scales:
        plan = planner.plan(0, schedule=Schedule("single", (scale,)))
        padding = plan.padding(sizes) if fit == "keep" else 0.0
        upscaled = float((short < scale).mean())
        distortion = mean_distortion(planner, plan)
        costs.append(ScaleCost(scale, padding, plan.pixels / 1e6, upscaled, lost, distortion, plan.shapes))
    return costs


def mean_distortion(planner: Planner, plan: TrainingPlan) -> float:
    """Return the geometric mean of the factors, 1 or more, by which an epoch changes the aspects of its images."""
    if planner.fit != "warp":
        return plan.stretch(planner.sizes) if planner.fit == "keep" else 1.0
    aspects = np.log(planner.sizes[:, 1] / planner.sizes[:, 0])
    return float(np.exp(np.abs(aspects).mean()))


def examine(root: str | Path, scales: Sequence[int], *, decode_all: bool = False) -> DataFacts:
    """Examine a folder with train/ and val/, a folder of class folders, or a table; broken files do not stop it.

    A file is broken if its header cannot be read, or, with ``decode_all``, the whole of it.

    Raises:
        ConfigError: A scale below 1.
        DataError: No such folder, or no image in it that can be read.
    """
    folder = Path(root).expanduser().absolute()
    if not folder.exists():
        raise DataError(f"{shown(root)} does not exist; give train/ and val/, class folders, or a table")
    tops = part_folders(folder) if folder.is_dir() else []
    parts = {"all" if top == folder else top.name: class_folders(top) for top in tops} or table_parts(folder)
    places = {
        Path(file): (part, name) for part, groups in parts.items() for name, files in groups.items() for file in files
    }
    loose = [file for top in tops for file in image_files(top) if file.parent == top]
    sizes, broken = _sizes(list(places), decode_all)
    if not sizes:
        found = f"{counted(len(broken), 'broken file')}, {counted(len(loose), 'image')} outside the class folders"
        raise DataError(f"{shown(folder)}: no images in class folders ({found}); put images into one folder per class")
    classes = _class_counts(parts, Counter(places[file] for file in sizes))
    filled = [row[0] for row in classes.values() if row[0]]
    planner, targets = _training(sizes, places, next(iter(parts)), scales)
    heights, widths = np.array(list(sizes.values())).T
    columns = {"height": heights, "width": widths, "shorter side": np.minimum(heights, widths)}
    columns["aspect"] = widths / heights
    return DataFacts(
        root=folder,
        parts={part: sum(row[i] or 0 for row in classes.values()) for i, part in enumerate(parts)},
        classes=classes,
        loose=loose,
        imbalance=max(filled) / min(filled) if filled else None,
        sizes={key: (float(c.min()), float(np.median(c)), float(c.max())) for key, c in columns.items()},
        short=_log_histogram(columns["shorter side"], 6),
        # Twelve bins an octave have 1:1, 4:3, 3:2, 16:9 and 2:1 near a bin's middle.
        aspect=_log_histogram(columns["aspect"].clip(1 / 8, 8), 12),
        decoded=decode_all,
        broken=broken,
        copies=_copies(list(sizes), places),
        costs=scale_costs(planner, scales) if targets else [],
        mixing=mixing(planner, targets) if targets else None,
    )


def _training(
    sizes: Mapping[Path, list[int]], places: Mapping[Path, tuple[str, str]], part: str, scales: Sequence[int]
) -> tuple[Planner, list[int]]:
    """Return the plan of a training with the default settings on the first part, and the classes of its images."""
    files = [file for file in sizes if places[file][0] == part]
    names = {name: k for k, name in enumerate(sorted({places[file][1] for file in files}))}
    defaults = DataSpec()
    of = np.array([sizes[file] for file in files]), Schedule("single", (max(scales, default=1),)), defaults.batch_size
    return Planner(*of, mix=defaults.mix, multiple=STRIDE), [names[places[file][1]] for file in files]


def _class_counts(parts: Mapping[str, Groups], counts: Mapping[tuple[str, str], int]) -> Counts:
    names = sorted({name for groups in parts.values() for name in groups})
    rows = {n: tuple(counts[part, n] if n in groups else None for part, groups in parts.items()) for n in names}
    return dict(sorted(rows.items(), key=lambda row: [-(count or 0) for count in row[1]]))


def _sizes(files: Sequence[Path], decode_all: bool) -> tuple[dict[Path, list[int]], dict[Path, str]]:
    """Return the (H, W) of the files that can be read, and why the others cannot."""
    kept, found, skipped = scan(files, "skip")  # without the cache, which trusts files as they were
    sizes = {files[index]: size for index, size in zip(kept, found.tolist(), strict=True)}
    broken = {Path(file): reason for file, reason in skipped}
    if decode_all:
        errors = zip(sizes, _each(_decode, list(sizes), "Decoding images"), strict=True)
        broken |= {file: error.reason for file, error in errors if isinstance(error, DataError)}
    return {file: size for file, size in sizes.items() if file not in broken}, broken


def _each(work: Callable[[Path], Hashable], files: Sequence[Path], label: str) -> list[Hashable]:
    """Return what ``work`` gives for each file, or the error it raises, done in threads."""

    def attempt(file: Path) -> Hashable:
        try:
            return work(file)
        except (DataError, OSError) as error:
            return error

    with quiet(), ThreadPool(8) as pool:  # waits for the disk; each may hold a decoded image
        return list(track(pool.imap(attempt, files, chunksize=16), label, len(files)))


def _decode(file: Path) -> None:
    decode_array(file, 1)  # a JPEG at an eighth of its size: every byte is still read


def _copies(files: Sequence[Path], places: Mapping[Path, tuple[str, str]]) -> list[Copies]:
    """Return the groups of files of identical content; only files that agree so far are compared further."""
    same: list[list[Path]] = []
    for key in (os.path.getsize, _ending, _content):
        groups: dict[Hashable, list[Path]] = defaultdict(list)
        # A file that can no longer be read has its own error as its key, and so equals no other.
        for file, value in zip(files, _each(key, files, "Comparing files"), strict=True):
            groups[value].append(file)
        same = [group for group in groups.values() if len(group) > 1]
        files = [file for group in same for file in group]
    parts, classes = ([len({places[file][i] for file in group}) > 1 for group in same] for i in (0, 1))
    return sorted(map(Copies, parts, classes, same), key=lambda c: (not c.across_parts, not c.across_classes, c.files))


def _ending(file: Path) -> Hashable:
    # The beginnings of one camera's files are alike, endings are pixels: so a large set is not read in full.
    with file.open("rb") as stream:
        start = stream.seek(max(file.stat().st_size - 4096, 0))
        return start, hashlib.sha256(stream.read()).digest()


def _content(file: Path) -> Hashable:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").digest()


def _log_histogram(values: npt.NDArray[np.float64], per_octave: int) -> Histogram:
    places = np.rint(per_octave * np.log2(values)).astype(np.int64)
    edges = np.arange(places.min(), places.max() + 2) - 0.5
    return np.bincount(places - places.min()), np.exp2(edges / per_octave)
