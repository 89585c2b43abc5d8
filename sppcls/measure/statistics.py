"""Statistics of differences: intervals, paired tests over seeds and images, and summaries over scales."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Estimate:
    """Mean of ``n`` values, their sample deviation, and the interval of the mean from three values on."""

    mean: float
    sd: float | None
    low: float | None
    high: float | None
    n: int


@dataclass(frozen=True)
class Comparison:
    """Mean of variant minus baseline over ``n`` common seeds, with its 95 % interval and two-sided p.

    Interval and p count both seeds and images as random draws; the caller fills in ``p_holm``. ``note`` says why there
    is no p.
    """

    difference: float
    n: int
    low: float | None = None
    high: float | None = None
    p: float | None = None
    p_holm: float | None = None
    note: str = ""


def wilson(right: int, images: int) -> tuple[float, float]:
    """Return the 95 % Wilson interval of an accuracy, as fractions; raises ValueError at impossible counts."""
    if not 0 <= right <= images or images == 0:
        raise ValueError(f"{right} right of {images} images; expected at least 1 image, and 0 to all of them right")
    # Not from scipy.stats, whose import would add a second to every evaluation.
    share, z = right / images, NormalDist().inv_cdf(0.975)
    half = z * np.sqrt(share * (1 - share) / images + z * z / (4 * images * images))
    low, high = ((share + z * z / (2 * images) + side * half) / (1 + z * z / images) for side in (-1, 1))
    return float(max(low, 0.0)), float(min(high, 1.0))


def estimate(values: Sequence[float]) -> Estimate:
    """Return mean, sample deviation and, from three values on, Student's 95 % t interval of the mean.

    The t quantile of two values is 12.7, an interval that says nothing. Raises ValueError on no or non-finite values.

    >>> estimate([0.5, 0.5, 0.5])
    Estimate(mean=0.5, sd=0.0, low=0.5, high=0.5, n=3)
    """
    from scipy.special import stdtrit  # type: ignore[import-untyped]

    n = len(values)
    if n == 0 or not np.isfinite(values).all():
        raise ValueError(f"values are {list(values)}; expected one or more finite numbers")
    # Relative to the first one, so that equal values have a deviation of exactly 0.
    shifted = np.asarray(values, dtype=np.float64) - values[0]
    mean = float(values[0] + shifted.mean())
    sd = float(shifted.std(ddof=1)) if n > 1 else None
    if n < 3 or sd is None:
        return Estimate(mean, sd, None, None, n)
    half = float(stdtrit(n - 1, 0.975) * sd / np.sqrt(n))
    return Estimate(mean, sd, mean - half, mean + half, n)


def compare(
    variant: Mapping[int, float], baseline: Mapping[int, float], by_image: FloatArray | None = None
) -> Comparison:
    """Compare two sets of values by seed, paired over the seeds that both have.

    ``by_image`` [pairs by ascending seed, images] is what each image adds to the differences, its mean over images.
    There is no interval and no p without it, below three pairs, or where all differences are equal and not 0. Raises
    ValueError on no common seed, a value that is not finite, or another number of pairs.
    """
    differences = _paired(variant, baseline)
    mean, n = estimate(differences.tolist()), len(differences)
    if by_image is not None and (by_image.ndim != 2 or len(by_image) != n or by_image.shape[1] < 2):
        raise ValueError(f"by_image is {by_image.shape}; expected [{n}, 2 images or more]")
    if n < 3:
        return Comparison(mean.mean, n, note=f"{n} seed{'s'[: n - 1]} in common, 3 are needed")
    if mean.sd == 0 and mean.mean:
        return Comparison(mean.mean, n, note="all differences are equal: p is not defined")
    return Comparison(mean.mean, n, *(() if by_image is None else crossed(mean, by_image)))


def crossed(mean: Estimate, by_image: FloatArray) -> tuple[float, float, float]:
    """Return the 95 % interval of a mean over seeds and its two-sided p, treating images as random like seeds.

    The variance of the mean has two parts: over seeds, as in the t-test, and over images, which is what the seeds
    have in common, their covariance over the images of ``by_image`` [seeds, images]. The half width at a level is the
    root of the sum of squares of both parts' Student t half widths, which covers at least as often as the level says
    (Banerjee, 1961). The least p is 1e-12.
    """
    from scipy.optimize import brentq  # type: ignore[import-untyped]
    from scipy.special import stdtrit

    seeds, images = by_image.shape
    covariance = np.cov(by_image)
    shared = max(float(covariance.sum() - covariance.trace()) / (seeds * (seeds - 1)), 0.0)
    variances, freedom = np.array([(mean.sd or 0.0) ** 2 / seeds, shared / images]), np.array([seeds - 1, images - 1])

    def half(level: float) -> float:
        return float(np.sqrt(variances @ stdtrit(freedom, level / 2) ** 2))

    least, size = 1e-12, abs(mean.mean)
    p = 1.0 if size == 0 else least if half(least) <= size else brentq(lambda at: half(at) - size, least, 1.0)
    return mean.mean - half(0.05), mean.mean + half(0.05), float(p)


def _paired(variant: Mapping[int, float], baseline: Mapping[int, float]) -> FloatArray:
    """Return the differences by ascending seed."""
    seeds = sorted(variant.keys() & baseline.keys())
    if not seeds:
        raise ValueError(f"no seed in common: {sorted(variant)} and {sorted(baseline)}")
    pairs = np.array([(variant[seed], baseline[seed]) for seed in seeds], dtype=np.float64)
    differences, noise = pairs[:, 0] - pairs[:, 1], 1e-12 * float(np.abs(pairs).max())
    # 0.8 - 0.7 and 0.6 - 0.5 are not the same float: without rounding, their t is about 1e15.
    if np.ptp(differences) <= noise:
        differences[:] = differences[0] if abs(differences[0]) > noise else 0.0
    return differences


def holm(ps: Sequence[float | None]) -> list[float | None]:
    """Return Holm-Bonferroni adjusted p-values in the given order; None stays None and is not in the family.

    >>> holm([0.01, None, 0.04])
    [0.02, None, 0.04]
    """
    values = np.array(ps, dtype=np.float64)  # None becomes nan, which sorts last
    order, family = np.argsort(values), len(ps) - int(np.isnan(values).sum())
    adjusted = np.maximum.accumulate(values[order] * np.arange(family, family - len(ps), -1)).clip(max=1.0)
    return [None if np.isnan(p) else float(p) for p in adjusted[np.argsort(order)]]


def log_scale_area(scales: Sequence[int], accuracies: Sequence[float]) -> float:
    """Return the mean accuracy over log scale; raises ValueError on no scale, a repeated one, or different lengths."""
    if not 0 < len(set(scales)) == len(scales) == len(accuracies):
        raise ValueError(f"scales are {list(scales)} of {len(accuracies)} accuracies; expected one each, no repeats")
    pixels, heights = np.array(sorted(zip(scales, accuracies, strict=True)), dtype=np.float64).T
    logs = np.log(pixels)
    return float(np.trapezoid(heights, logs) / np.ptp(logs) if len(logs) > 1 else heights[0])


def pairwise_agreement(predicted: npt.NDArray[np.int64]) -> FloatArray:
    """Return the share of images with the same class at each pair of scales, [S, S], from classes [S, N]."""
    return np.stack([(predicted == row).mean(axis=1) for row in predicted])
