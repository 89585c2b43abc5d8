"""``sppcls probe``: a linear SVM on features of a frozen network, over random splits (paper, section 3.3)."""

import itertools
import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from sppcls.data.batch import IGNORED
from sppcls.data.files import read_groups
from sppcls.data.folders import class_folders, part_folders
from sppcls.data.geometry import Fit
from sppcls.data.source import Source, Subset
from sppcls.data.split import split_by_class
from sppcls.errors import DataError, counted, missing_extra
from sppcls.measure.scales import Evaluation, evaluating
from sppcls.measure.statistics import estimate
from sppcls.models.backbones import build_trunk
from sppcls.models.classifier import SppClassifier
from sppcls.ops import spatial_pyramid_pool2d
from sppcls.signature import refuse_small
from sppcls.terminal import track

Doubles = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Half = npt.NDArray[np.float16]
Gram = tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]
Key = tuple[Fit, int, int]  # fit, scale, level

GAP = 0  # the level that is the average over the whole map


class Features(NamedTuple):
    """One kind of features: the pyramids of an image at each of ``scales``, side by side."""

    fit: Fit
    scales: tuple[int, ...]
    levels: tuple[int, ...]


@dataclass(frozen=True)
class Options:
    """What to measure: every fit with every set of scales and every pyramid."""

    data: str
    backbone: str
    weights: str
    fit: tuple[Fit, ...]
    scales: tuple[tuple[int, ...], ...]
    levels: tuple[tuple[int, ...], ...]
    train_per_class: int
    test_per_class: int
    splits: int
    seed: int
    c: float
    batch_size: int
    device: str


def probe(options: Options, folder: Path) -> dict[str, Any]:
    """Return what probe.json holds; the first kind of features is what the others are compared with.

    Split r is drawn with the seed ``options.seed + r``, for all kinds alike, from the images that can be read. The
    features lie in ``folder`` meanwhile.

    Raises:
        ConfigError: No scikit-learn, or a network, weights or scale that cannot be used.
        DataError: No class folders, or a class with too few images.
    """
    if find_spec("sklearn") is None:
        raise missing_extra("sppcls probe", "probe")
    source, skipped = _images(options)
    network = _network(options, source.classes)
    kinds = [Features(*of) for of in itertools.product(options.fit, options.scales, options.levels)]
    started = time.perf_counter()
    with TemporaryDirectory(dir=folder, prefix=".features-") as scratch:
        features = _features(network, source, options, Path(scratch))
        read = np.flatnonzero(~np.any([np.isnan(values[:, 0]) for values in features.values()], axis=0))
        images = Subset(source, read)
        _check_counts(images, options.train_per_class)
        extracted = time.perf_counter()
        found, sizes = _over_splits(images, features, kinds, options)
    return _summary(kinds, found, sizes) | {
        "images": len(read),
        "classes": len(source.classes),
        "train_images": sizes[0],
        "test_images": sizes[1],
        "left_out": [*skipped, *sorted({*source.names} - {*images.names})],
        "seconds_features": round(extracted - started, 1),
        "seconds_svm": round(time.perf_counter() - extracted, 1),
        "options": asdict(options),
    }


def _features(network: SppClassifier, source: Source, options: Options, folder: Path) -> dict[Key, Half]:
    levels, scales = (sorted({*itertools.chain(*some)}) for some in (options.levels, options.scales))
    found: dict[Key, Half] = {}
    for fit, scale in itertools.product(dict.fromkeys(options.fit), scales):
        look = Evaluation(source, fit, options.batch_size, device=options.device)
        found |= {(fit, scale, n): made for n, made in _level_features(network, look, scale, levels, folder).items()}
    return found


def _level_features(
    network: SppClassifier, look: Evaluation, scale: int, levels: Sequence[int], folder: Path
) -> dict[int, Half]:
    """Return [N, C * n * n] for each level n, mapped from a file; an image that cannot be read is a row of NaN.

    An image's values are fractions of the largest one in its map: this keeps normalised features the same, avoids
    precision is never left, and no level depends on the others.
    """
    made: dict[int, Half] = {}
    unread = np.ones(len(look.source.targets), np.bool_)
    total, batches = look.batches(network, scale)
    with closing(batches), evaluating(network, look.device):
        for batch in track(batches, f"{look.fit} {scale}", total):
            kept = batch["targets"] != IGNORED
            if not bool(kept.any()):
                continue
            with torch.inference_mode():
                maps = network.trunk(network.normalize(batch["images"][kept].to(look.device)))
                maps = maps / maps.abs().amax((1, 2, 3), keepdim=True).clamp_min(torch.finfo(maps.dtype).tiny)
                parts = [maps.mean((2, 3)) if n == GAP else spatial_pyramid_pool2d(maps, (n,)) for n in levels]
            for n, part in zip(levels, parts, strict=True):
                if n not in made:
                    file, shape = folder / f"{look.fit}-{scale}-{n}.npy", (len(unread), part.shape[1])
                    made[n] = np.lib.format.open_memmap(file, "w+", np.float16, shape)
                made[n][batch["indices"][kept]] = part.cpu().numpy()
            unread[batch["indices"][kept]] = False
    if not made:
        raise DataError(f"none of {counted(len(unread), 'image')} could be read")
    for values in made.values():
        values[unread] = np.nan
    return made


def inner_products(features: Half, rows: Ints, columns: int) -> Gram:
    """Return the inner products of some images with the first ``columns`` of them, [R, columns], and squares [R]."""
    products, squares = np.zeros((len(rows), columns), np.float32), np.zeros(len(rows), np.float32)
    for start in range(0, features.shape[1], step := 4096):  # 110 MB at a time for 6,900 images
        part = features[rows, start : start + step].astype(np.float32)
        products += part @ part[:columns].T
        squares += np.einsum("nd,nd->n", part, part)
    return products, squares


def kernel(grams: Mapping[Key, Gram], kind: Features) -> Doubles:
    """Return inner products [R, T] of l2-normalised features, from those of their levels (`inner_products`).

    Those of concatenated levels are sums over the levels. Scales stand side by side, each normalised by itself.
    """
    total: Any = 0.0
    for scale in kind.scales:
        levels = [grams[kind.fit, scale, n] for n in kind.levels]
        products, squares = (np.sum(values, axis=0, dtype=np.float64) for values in zip(*levels, strict=True))
        lengths = np.sqrt(squares.clip(np.finfo(np.float64).tiny))
        total += products / lengths[:, None] / lengths[: products.shape[1]]
    mean: Doubles = total / len(kind.scales)
    return mean


def fit_svm(products: Doubles, targets: Ints, c: float, tol: float = 1e-4) -> tuple[Any, Doubles]:
    """Return a LinearSVC (one against the rest, squared hinge) and the vectors [R - T, T] of the other images.

    It is the SVM on the features themselves, from their inner products alone: those of the T training images are
    factored into T vectors of T values, however long the features, and the other images' follow from it. ``products``
    [R, T] are of R images with the T training images, which come first, of classes ``targets`` [T].
    """
    from scipy.linalg import cholesky, solve_triangular  # type: ignore[import-untyped]
    from sklearn.svm import LinearSVC  # type: ignore[import-untyped]

    # The dual of a squared hinge has 1 / (2 C) on its diagonal. Half of that added here and C doubled is the same
    # problem, and the factorisation exists even if features repeat or are shorter than T.
    count = len(targets)
    factor = cholesky(products[:count] + np.eye(count) / (4 * c), lower=True)
    svm = LinearSVC(C=2 * c, dual=True, tol=tol, max_iter=10_000, random_state=0).fit(factor, targets)
    return svm, solve_triangular(factor, products[count:].T, lower=True).T


def _over_splits(
    images: Subset, features: Mapping[Key, Half], kinds: Sequence[Features], options: Options
) -> tuple[Doubles, tuple[int, int]]:
    """Return [kinds, splits, 2], accuracy over test images and its mean over classes, and a split's two sizes."""
    found, sizes = np.zeros((len(kinds), options.splits, 2)), (0, 0)
    for r in track(range(options.splits), "splits"):
        train, test = split_by_class(images, options.seed + r, options.train_per_class, options.test_per_class)
        sizes = len(train.targets), len(test.targets)
        rows = images.indices[np.concatenate([train.indices, test.indices])]  # type: ignore[attr-defined]
        grams = {key: inner_products(values, rows, sizes[0]) for key, values in features.items()}
        for k, kind in enumerate(kinds):
            svm, vectors = fit_svm(kernel(grams, kind), train.targets, options.c)
            right = svm.predict(vectors) == test.targets
            found[k, r] = right.mean(), (np.bincount(test.targets, right) / np.bincount(test.targets)).mean()
    return found, sizes


def _summary(kinds: Sequence[Features], found: Doubles, sizes: tuple[int, int]) -> dict[str, Any]:
    """Return the first kind's figures, and a row a kind."""
    rows: list[dict[str, Any]] = []
    # Splits share images, which makes the plain interval too narrow: Nadeau and Bengio's correction, 2003.
    wider = (1 + found.shape[1] * sizes[1] / sizes[0]) ** 0.5
    for kind, values in zip(kinds, found, strict=True):
        row = kind._asdict()
        for name, column in zip(("accuracy", "mean_class_accuracy"), values.T.tolist(), strict=True):
            over = estimate(column)
            row |= {name: over.mean, f"{name}_std": over.sd, f"{name}_of_splits": column}
        gain = estimate((values[:, 0] - found[0, :, 0]).tolist())
        half = None if gain.high is None else (gain.high - gain.mean) * wider
        rows.append(row | {"difference": gain.mean, "difference_half_width": half})
    return {key: value for key, value in rows[0].items() if "accuracy" in key} | {"variants": rows}


def _images(options: Options) -> tuple[Source, list[str]]:
    """Return the images of a folder of class folders, and the unreadable files."""
    root = Path(options.data)
    if not root.is_dir():
        raise DataError(f"--data {root}: no such folder; name a folder of class folders")
    if parts := part_folders(root)[1:]:
        raise DataError(f"--data {root} has train/val parts; give one folder of class folders, such as {parts[0]}")
    groups = class_folders(root)
    if len(groups) < 2:
        raise DataError(f"--data {root}: class folders are {list(groups)}; at least 2 are needed")
    source, skipped = read_groups(groups, root, "skip")
    _check_counts(source, options.train_per_class)
    return source, [name for name, _ in skipped]


def _check_counts(source: Source, train: int) -> None:
    counts = np.bincount(source.targets, minlength=len(source.classes))
    least = int(counts.argmin())
    if counts[least] <= train:
        what = f"class {source.classes[least]!r} has {counted(int(counts[least]), 'image')} that can be read"
        raise DataError(f"{what}; --train-per-class {train} needs at least {train + 1}, one of them for testing")


def _network(options: Options, classes: Sequence[str]) -> SppClassifier:
    torch.manual_seed(options.seed)  # for --weights none
    weights = None if options.weights == "none" else options.weights
    network = SppClassifier(build_trunk(options.backbone, weights=weights), classes, levels=(1,))
    refuse_small("--scales", itertools.chain(*options.scales), network.smallest, options.backbone)
    return network
