"""How sure a measured difference is: intervals, paired tests over seeds, and summaries over scales."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

BoolArray = npt.NDArray[np.bool_]
FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Estimate:
    """Mean of ``n`` values, their sample deviation and an interval of the mean; None where one value gives none."""

    mean: float
    sd: float | None
    low: float | None
    high: float | None
    n: int


@dataclass(frozen=True)
class Comparison:
    """Mean of variant minus baseline over ``n`` common seeds, its 95 % interval and its two-sided p-values.

    Holm's values are the caller's to fill, a family a kind of test; ``note`` says why a number is missing.
    """

    difference: float
    low: float | None
    high: float | None
    n: int
    p_t: float | None
    p_sign_flip: float | None
    p_t_holm: float | None = None
    p_sign_flip_holm: float | None = None
    note: str = ""


@dataclass(frozen=True)
class Bootstrap:
    """Difference of two mean accuracies and its 95 % percentile interval, as fractions."""

    difference: float
    low: float
    high: float
    resamples: int


def wilson(right: int, images: int, confidence: float = 0.95) -> tuple[float, float]:
    """Return the Wilson interval of an accuracy, as fractions; raises ValueError where there is no image."""
    from scipy import stats  # type: ignore[import-untyped]

    if images == 0:
        raise ValueError("0 images; expected at least 1")
    low, high = stats.binomtest(right, images).proportion_ci(confidence, method="wilson")
    return float(low), float(high)


def estimate(values: Sequence[float], confidence: float = 0.95) -> Estimate:
    """Return mean, sample deviation and Student t interval; raises ValueError on no or non-finite values.

    >>> estimate([0.5, 0.5, 0.5])
    Estimate(mean=0.5, sd=0.0, low=0.5, high=0.5, n=3)
    """
    from scipy import stats

    n = len(values)
    if n == 0 or not np.isfinite(values).all():
        raise ValueError(f"values are {list(values)}; expected one or more finite numbers")
    # Relative to the first one, so that equal values have a deviation of exactly 0.
    shifted = np.asarray(values, dtype=np.float64) - values[0]
    mean = float(values[0] + shifted.mean())
    if n == 1:
        return Estimate(mean, None, None, None, 1)
    sd = float(shifted.std(ddof=1))
    half = float(stats.t.ppf((1 + confidence) / 2, n - 1) * sd / np.sqrt(n))
    return Estimate(mean, sd, mean - half, mean + half, n)


def compare(variant: Mapping[int, float], baseline: Mapping[int, float]) -> Comparison:
    """Compare two sets of values by seed, paired over the seeds that both have.

    Three pairs are the least for an interval and ``p_t`` (paired t-test), six for ``p_sign_flip``: five have none
    below 0.0625. It enumerates all sign flips up to 14 pairs; above, it draws 16384 with a fixed generator. All p are
    1 where all differences are 0. Raises ValueError on no common seed or a value that is not finite.
    """
    differences, noise = _paired(variant, baseline)
    mean, n = estimate(differences.tolist()), len(differences)
    if n < 3:
        few = f"{n} seed{'s'[: n - 1]} in common: no p below 3"
        return Comparison(mean.mean, None, None, n, None, None, note=few)
    if mean.mean == mean.sd == 0:
        return Comparison(0.0, 0.0, 0.0, n, 1.0, 1.0 if n >= 6 else None)
    p_t, p_flip = _tests(differences, noise)
    note = "all differences are equal: t is not defined" if p_t is None else ""
    return Comparison(mean.mean, mean.low, mean.high, n, p_t, p_flip, note=note)


def _paired(variant: Mapping[int, float], baseline: Mapping[int, float]) -> tuple[FloatArray, float]:
    """Return the differences by ascending seed, and the size below which one is a rounding error."""
    seeds = sorted(variant.keys() & baseline.keys())
    if not seeds:
        raise ValueError(f"no seed in common: {sorted(variant)} and {sorted(baseline)}")
    pairs = np.array([(variant[seed], baseline[seed]) for seed in seeds], dtype=np.float64)
    differences, noise = pairs[:, 0] - pairs[:, 1], 1e-12 * float(np.abs(pairs).max())
    # 0.8 - 0.7 and 0.6 - 0.5 are not the same float: as they are, their t is about 1e15.
    if np.ptp(differences) <= noise:
        differences[:] = differences[0] if abs(differences[0]) > noise else 0.0
    return differences, noise


def _tests(differences: FloatArray, noise: float) -> tuple[float | None, float | None]:
    from scipy import stats

    observed, n = differences.mean(), len(differences)

    def statistic(x: FloatArray, axis: int) -> object:
        # SciPy's own tolerance is a share of the observed mean: near 0 it takes ties for smaller or larger ones.
        return np.where(abs(x.mean(axis) - observed) <= noise, observed, x.mean(axis))

    p_t = float(stats.ttest_1samp(differences, 0.0).pvalue) if np.ptp(differences) else None
    # SciPy enumerates where there are no more flips than n_resamples.
    options = {"permutation_type": "samples", "n_resamples": 2**14, "rng": np.random.default_rng(0)}
    return p_t, float(stats.permutation_test((differences,), statistic, **options).pvalue) if n >= 6 else None


def holm(ps: Sequence[float | None]) -> list[float | None]:
    """Return Holm-Bonferroni adjusted p-values in the given order; None stays None and is not of the family.

    >>> holm([0.01, None, 0.04])
    [0.02, None, 0.04]
    """
    values = np.array(ps, dtype=np.float64)  # None becomes nan, which sorts last
    order, family = np.argsort(values), len(ps) - int(np.isnan(values).sum())
    adjusted = np.maximum.accumulate(values[order] * np.arange(family, family - len(ps), -1)).clip(max=1.0)
    return [None if np.isnan(p) else float(p) for p in adjusted[np.argsort(order)]]


def bootstrap_difference(right: BoolArray, baseline: BoolArray, resamples: int = 10000, seed: int = 0) -> Bootstrap:
    """Resample seeds and images of two correctness arrays [S, N] alike; raises ValueError on unlike or empty shapes."""
    if right.shape != baseline.shape or right.ndim != 2 or right.size == 0:
        raise ValueError(f"shapes are {right.shape} and {baseline.shape}; expected the same [seeds, images]")
    difference = right.astype(np.int8) - baseline.astype(np.int8)
    # Images with equal columns are drawn as one group: the same distribution from far fewer columns.
    columns, sizes = np.unique(difference, axis=1, return_counts=True)
    (seeds, images), rng, sums = difference.shape, np.random.default_rng(seed), []
    for start in range(0, resamples, step := 1 + 2**21 // len(sizes)):  # three arrays of up to 16 MiB a step
        count = min(step, resamples - start)
        by_seed = rng.multinomial(seeds, np.full(seeds, 1 / seeds), count) @ columns.astype(np.float64)
        sums.append((by_seed * rng.multinomial(images, sizes / images, count)).sum(axis=1))
    low, high = np.quantile(np.concatenate(sums) / difference.size, [0.025, 0.975])
    return Bootstrap(float(difference.mean()), float(low), float(high), resamples)


def log_scale_area(scales: Sequence[int], accuracies: Sequence[float]) -> float:
    """Return the mean accuracy over log scale; raises ValueError on no scale, a repeated one, or unlike lengths."""
    if not 0 < len(set(scales)) == len(scales) == len(accuracies):
        raise ValueError(f"scales are {list(scales)} of {len(accuracies)} accuracies; expected one each, all different")
    pixels, heights = np.array(sorted(zip(scales, accuracies, strict=True)), dtype=np.float64).T
    logs = np.log(pixels)
    return float(np.trapezoid(heights, logs) / np.ptp(logs) if len(logs) > 1 else heights[0])


def pairwise_agreement(predicted: npt.NDArray[np.int64]) -> FloatArray:
    """Return the share of images with the same class at each pair of scales, [S, S], from classes [S, N]."""
    return np.stack([(predicted == row).mean(axis=1) for row in predicted])
