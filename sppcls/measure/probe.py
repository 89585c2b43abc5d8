"""``sppcls probe``: a linear SVM on features of a frozen network, over random splits (paper, section 3.3)."""

import itertools
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from sppcls.data.cache import cache_dir
from sppcls.data.catalog import split_by_class
from sppcls.data.files import read_groups
from sppcls.data.folders import class_folders, part_folders
from sppcls.data.geometry import Fit
from sppcls.data.source import Source, Subset
from sppcls.errors import ConfigError, DataError, counted, missing_extra
from sppcls.measure.features import Gram, Half, Ints, fingerprint, inner_products, level_features
from sppcls.measure.scales import Evaluation
from sppcls.measure.statistics import estimate
from sppcls.models.backbones import build_trunk
from sppcls.models.classifier import SppClassifier
from sppcls.terminal import track

Doubles = npt.NDArray[np.float64]
Key = tuple[Fit, int, int]  # fit, scale, level


class Variant(NamedTuple):
    """One kind of features: the pyramids of an image at each of ``scales``, side by side."""

    fit: Fit
    scales: tuple[int, ...]
    levels: tuple[int, ...]


@dataclass(frozen=True)
class Options:
    """What to measure, as the command line says it: every fit with every set of scales and every pyramid."""

    data: str
    backbone: str = "efficientnet_lite0"
    weights: str = "pretrained"
    layer: str = "spp"
    fit: tuple[Fit, ...] = ("keep",)
    scales: tuple[tuple[int, ...], ...] = ((224,),)
    levels: tuple[tuple[int, ...], ...] = ((3, 2, 1),)
    train_per_class: int = 30
    test_per_class: int = 50
    splits: int = 10
    seed: int = 0
    c: float = 1.0
    batch_size: int = 8
    device: str = "cpu"
    cache: bool = True


def probe(options: Options) -> dict[str, Any]:
    """Measure as ``options`` say and return what probe.json holds; the first variant is what others are compared with.

    Split r is drawn with the seed ``options.seed + r``, for all variants alike, from the images that can be read.

    Raises:
        ConfigError: No scikit-learn, or a network, weights, layer or scale that cannot be used.
        DataError: No class folders, or a class of too few images.
    """
    if find_spec("sklearn") is None:
        raise missing_extra("sppcls probe", "probe")
    source, skipped = _images(options)
    network = _network(options, source.classes)
    variants = [Variant(*of) for of in itertools.product(options.fit, options.scales, options.levels)]
    started = time.perf_counter()
    with TemporaryDirectory() as nowhere:
        folder = cache_dir() / "features" if options.cache else Path(nowhere)
        features = _features(network, source, options, variants, folder)
        read = np.flatnonzero(~np.any([np.isnan(values[:, 0]) for values in features.values()], axis=0))
        images = Subset(source, read)
        _check_counts(images, options.train_per_class)
        extracted = time.perf_counter()
        found, sizes = _over_splits(images, features, variants, options)
    return _summary(variants, found, sizes) | {
        "images": len(read),
        "classes": len(source.classes),
        "train_images": sizes[0],
        "test_images": sizes[1],
        "left_out": [*skipped, *sorted({*source.names} - {*images.names})],
        "seconds_features": round(extracted - started, 1),
        "seconds_svm": round(time.perf_counter() - extracted, 1),
        "options": asdict(options),
    }


def kernel(grams: Mapping[Key, Gram], variant: Variant) -> Doubles:
    """Return inner products [R, T] of l2-normalised features, from those of their levels (`inner_products`).

    Inner products of concatenated levels are sums over the levels, and a vector's square is one of them. Scales stand
    side by side, each normalised by itself: so each counts the same.
    """
    total: Any = 0.0
    for scale in variant.scales:
        levels = [grams[variant.fit, scale, n] for n in variant.levels]
        products, squares = (np.sum(values, axis=0, dtype=np.float64) for values in zip(*levels, strict=True))
        lengths = np.sqrt(squares.clip(np.finfo(np.float64).tiny))
        total += products / lengths[:, None] / lengths[: products.shape[1]]
    mean: Doubles = total / len(variant.scales)
    return mean


def fit_svm(products: Doubles, targets: Ints, c: float, tol: float = 1e-4) -> tuple[Any, Doubles]:
    """Return a LinearSVC (one against the rest, squared hinge) and the vectors [R - T, T] that other images are to it.

    It is the SVM on the features themselves, which it knows by their inner products alone: those of the T training
    images are factored into T vectors of T values, however long the features, and the other images' follow from it.

    Args:
        products: [R, T], of R images with the T training images, which come first.
        targets: [T] classes.
        c: C of the SVM.
        tol: Where its optimisation stops.
    """
    from scipy.linalg import cholesky, solve_triangular  # type: ignore[import-untyped]
    from sklearn.svm import LinearSVC  # type: ignore[import-untyped]

    # The dual of a squared hinge has 1 / (2 C) on its diagonal. Half of that added here and C doubled is the same
    # problem, and there is a factor even where features repeat or are shorter than T.
    count = len(targets)
    factor = cholesky(products[:count] + np.eye(count) / (4 * c), lower=True)
    svm = LinearSVC(C=2 * c, dual=True, tol=tol, max_iter=10_000, random_state=0).fit(factor, targets)
    return svm, solve_triangular(factor, products[count:].T, lower=True).T


def _over_splits(
    images: Subset, features: Mapping[Key, Half], variants: Sequence[Variant], options: Options
) -> tuple[Doubles, tuple[int, int]]:
    """Return [variants, splits, 2], accuracy over test images and its mean over classes, and a split's two sizes."""
    found, sizes = np.zeros((len(variants), options.splits, 2)), (0, 0)
    for r in track(range(options.splits), "splits"):
        train, test = split_by_class(images, options.seed + r, options.train_per_class, options.test_per_class)
        sizes = len(train.targets), len(test.targets)
        rows = images.indices[np.concatenate([train.indices, test.indices])]  # type: ignore[attr-defined]
        grams = {key: inner_products(values, rows, sizes[0]) for key, values in features.items()}
        for v, variant in enumerate(variants):
            svm, vectors = fit_svm(kernel(grams, variant), train.targets, options.c)
            right = svm.predict(vectors) == test.targets
            found[v, r] = right.mean(), (np.bincount(test.targets, right) / np.bincount(test.targets)).mean()
    return found, sizes


def _summary(variants: Sequence[Variant], found: Doubles, sizes: tuple[int, int]) -> dict[str, Any]:
    """Return the first variant's figures, and a row a variant."""
    rows = [variant._asdict() for variant in variants]
    # Splits share images, which makes the plain interval too narrow: Nadeau and Bengio's correction, 2003.
    wider = (1 + found.shape[1] * sizes[1] / sizes[0]) ** 0.5
    for row, values in zip(rows, found, strict=True):
        for name, column in zip(("accuracy", "mean_class_accuracy"), values.T, strict=True):
            over = estimate(column.tolist())
            row |= {name: over.mean, f"{name}_std": over.sd, f"{name}_of_splits": column.tolist()}
        gain = estimate((values[:, 0] - found[0, :, 0]).tolist())
        half = None if gain.high is None else (gain.high - gain.mean) * wider
        row |= {"difference": gain.mean, "difference_half_width": half}
    return {key: value for key, value in rows[0].items() if "accuracy" in key} | {"variants": rows}


def _features(
    network: SppClassifier, source: Source, options: Options, variants: Sequence[Variant], folder: Path
) -> dict[Key, Half]:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"{folder}: {error.strerror}; --no-cache keeps nothing") from None
    stem = folder / fingerprint(network, source, version("sppcls"), options.backbone, options.layer)
    keys = {(v.fit, scale, n) for v in variants for scale in v.scales for n in v.levels}
    found: dict[Key, Half] = {}
    for fit, scale in sorted({key[:2] for key in keys}):
        look = Evaluation(source, fit, options.batch_size, device=options.device)
        levels = sorted(n for f, s, n in keys if (f, s) == (fit, scale))
        made = level_features(network, look, options.layer, scale, levels, stem)
        found |= {(fit, scale, n): values for n, values in made.items()}
    return found


def _images(options: Options) -> tuple[Source, list[str]]:
    """Return the images of a folder of class folders, and the files that are none."""
    root = Path(options.data)
    if not root.is_dir():
        raise DataError(f"--data {root}: no such folder; name a folder of class folders")
    if parts := part_folders(root)[1:]:
        raise DataError(f"--data {root} has parts; splits are drawn from one folder of class folders, as {parts[0]}")
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
        raise DataError(f"{what}; --train-per-class {train} needs at least {train + 1}, one of them to test")


def _network(options: Options, classes: Sequence[str]) -> SppClassifier:
    torch.manual_seed(options.seed)  # for --weights none
    weights = None if options.weights == "none" else options.weights
    network = SppClassifier(build_trunk(options.backbone, weights=weights), classes, levels=(1,))
    smallest, scale = network.smallest, min(itertools.chain(*options.scales))
    if scale < smallest:
        raise ConfigError(f"--scales {scale} is too small for {options.backbone}; the smallest scale is {smallest}")
    return network
