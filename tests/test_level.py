"""Simulated studies: the p that decides what stands rejects a true null in at most 5 % of them; the t-test does not."""

import numpy as np
import pytest
from scipy import optimize, stats
from scipy.special import expit

from sppcls.measure.answers import Answers
from sppcls.measure.statistics import crossed, estimate
from sppcls.report.study import contributions

IMAGES = 600
DIFFICULTY = 2.0  # standard deviations on the logit scale: of the images, the same for both variants,
BY_VARIANT = 1.6  # of each image for each variant, the same for all of its seeds, and
BY_SEED = 0.1  # of each seed of each variant: the accuracies of one variant's seeds then have 1.05 points
CELLS = [(seeds, by_variant) for seeds in (5, 6) for by_variant in (0.0, BY_VARIANT)]
NODES, WEIGHTS = np.polynomial.hermite_e.hermegauss(80)


def offset(accuracy, deviation):
    """Return the mean logit at which normal logits have an expected accuracy."""
    return optimize.brentq(lambda at: WEIGHTS @ expit(at + deviation * NODES) / WEIGHTS.sum() - accuracy, -20, 20)


def simulate(rng, studies, seeds, by_variant, *, gain=0.0, accuracies=(0.9,)):
    """Return right answers [2, studies, seeds, scales, images] of baseline and variant, better by ``gain``.

    Every study draws its own images: what an image is to a variant is drawn for each scale too.
    """
    deviation = (DIFFICULTY**2 + by_variant**2 + BY_SEED**2) ** 0.5
    means = np.array([[offset(accuracy + more, deviation) for accuracy in accuracies] for more in (0.0, gain)])
    logits = means[:, None, None, :, None] + DIFFICULTY * rng.standard_normal((1, studies, 1, 1, IMAGES))
    logits = logits + by_variant * rng.standard_normal((2, studies, 1, len(accuracies), IMAGES))
    logits = logits + BY_SEED * rng.standard_normal((2, studies, seeds, 1, 1))
    return rng.random(logits.shape, dtype=np.float32) < expit(logits)


def t_test(by_image):
    counts = by_image.sum(axis=1)
    return float(stats.ttest_1samp(counts, 0.0).pvalue) if np.ptp(counts) else 1.0


def decided(by_image):
    """Return what `compare` gives as p, without its other tests: none where all differences are equal."""
    mean = estimate((by_image.sum(axis=1) / IMAGES).tolist())
    return crossed(mean, by_image)[2] if mean.sd else 1.0


def rejected(rng, studies, seeds, by_variant, tests=(decided, t_test), *, gain=0.0, step=250):
    """Return the share of studies in which each test has p <= 0.05 for top-1."""
    found = []
    for _ in range(studies // step):
        base, variant = simulate(rng, step, seeds, by_variant, gain=gain)[:, :, :, 0].astype(np.float64)
        found += [[test(one) <= 0.05 for test in tests] for one in variant - base]
    return np.mean(found, axis=0)


def test_what_stands_holds_its_level_where_the_t_test_does_not():
    rng = np.random.default_rng(1)
    for seeds, by_variant in CELLS:
        ours, given = rejected(rng, 400, seeds, by_variant, step=200)
        assert ours <= 0.05 + 0.025  # 2.3 standard errors of 400 studies
        assert (given > 0.1) == (by_variant > 0)  # and with it the simulation is the one that was meant


def chosen(rng, studies, seeds, by_variant, losses, *, each_seed, val=400):
    """Return the share of studies in which a variant stands that has the same recipes as the baseline, of which one is
    chosen by a run each on ``val`` images: for each seed, or once for all. ``losses`` are of the recipes' accuracies.
    """
    losses, deviation = np.array(losses), (DIFFICULTY**2 + by_variant**2 + BY_SEED**2) ** 0.5
    means, true = np.array([offset(0.9 - loss, deviation) for loss in losses]), 0.9 - losses
    noise = np.sqrt(0.0105**2 + true * (1 - true) / val)
    tried = true + noise * rng.standard_normal((2, studies, seeds if each_seed else 1, len(losses)))
    logits = means[tried.argmax(-1)][..., None] + DIFFICULTY * rng.standard_normal((1, studies, 1, IMAGES))
    logits = logits + by_variant * rng.standard_normal((2, studies, 1, IMAGES))
    logits = logits + BY_SEED * rng.standard_normal((2, studies, seeds, 1))
    right = (rng.random(logits.shape, dtype=np.float32) < expit(logits)).astype(np.float64)
    return np.mean([decided(one) <= 0.05 for one in right[1] - right[0]])


GRIDS = ((0, 0.005, 0.01, 0.02), (0, 0.01, 0.02, 0.04), (0, 0.02, 0.04, 0.08))


def test_a_recipe_for_each_seed_holds_the_level_where_one_for_all_seeds_does_not():
    rng = np.random.default_rng(3)
    assert chosen(rng, 400, 6, 0.0, GRIDS[1], each_seed=True) <= 0.05 + 0.025
    assert chosen(rng, 400, 6, 0.0, GRIDS[1], each_seed=False) > 0.1


@pytest.mark.slow
@pytest.mark.parametrize("losses", GRIDS)
@pytest.mark.parametrize(("seeds", "by_variant"), [(3, 0.0), (6, 0.0), (6, BY_VARIANT)])
def test_level_of_studies_that_tune(seeds, by_variant, losses):
    rng = np.random.default_rng(seeds)
    each, once = (
        np.mean([chosen(rng, 250, seeds, by_variant, losses, each_seed=own) for _ in range(16)])
        for own in (True, False)
    )
    print(f"\n{seeds} seeds, image by variant {by_variant}, recipes less {losses}: {each:.1%}, one for all {once:.1%}")
    assert each <= 0.06


def test_a_large_difference_stands():
    assert rejected(np.random.default_rng(2), 100, 5, BY_VARIANT, (decided,), gain=0.06, step=100) > 0.9


@pytest.mark.slow
@pytest.mark.parametrize(("seeds", "by_variant"), [(3, 0.0), (3, BY_VARIANT / 2), (3, BY_VARIANT), *CELLS])
def test_level_and_power_of_4000_studies(seeds, by_variant):
    rng = np.random.default_rng(seeds)
    ours, given = rejected(rng, 4000, seeds, by_variant)
    power = [float(rejected(rng, 4000, seeds, by_variant, (decided,), gain=gain)[0]) for gain in (0.02, 0.04)]
    print(
        f"\n{seeds} seeds, image by variant {by_variant}: true null rejected {ours:.1%}, by the t-test {given:.1%}; "
        f"2 points found {power[0]:.1%}, 4 points {power[1]:.1%}"
    )
    assert ours <= 0.06
    if seeds >= 5 and by_variant:
        assert given > 0.1


@pytest.mark.slow
@pytest.mark.parametrize("accuracies", [(0.6, 0.9, 0.75), (0.9, 0.9, 0.9)])
@pytest.mark.parametrize(("seeds", "by_variant"), CELLS)
def test_level_of_the_measures_over_scales(seeds, by_variant, accuracies):
    # Where all scales are alike, which is best is chance, and the spread is the farthest from a mean over images.
    rng, scales = np.random.default_rng(seeds), [48, 64, 96]
    empty = Answers.empty(scales, np.zeros(IMAGES, np.int64))
    found = []
    for _ in range(4000 // 250):
        wrong = (~simulate(rng, 250, seeds, by_variant, accuracies=accuracies)).astype(np.int64)
        for study in wrong.swapaxes(0, 1):
            sides = [[contributions(_said(empty, one), 64) for one in side] for side in study]
            arrays = [
                np.stack([ours[m] - theirs[m] for theirs, ours in zip(*sides, strict=True)])
                for m in ("scale_area", "scale_spread")
            ]
            found.append([decided(one) <= 0.05 for one in arrays])
    area, spread = np.mean(found, axis=0)
    print(f"\n{seeds} seeds, image by variant {by_variant}, {accuracies}: area {area:.1%}, spread {spread:.1%}")
    assert max(area, spread) <= 0.06


def _said(empty, predicted):
    return Answers(**vars(empty) | {"predicted": predicted})
