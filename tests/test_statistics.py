import itertools
import json
import math
import subprocess
import sys
from dataclasses import asdict

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy import stats

from sppcls.measure.statistics import (
    compare,
    crossed,
    estimate,
    holm,
    log_scale_area,
    pairwise_agreement,
    wilson,
)

IMAGES = 1000
cheap = settings(max_examples=50, deadline=None)
right = st.integers(700, 706) | st.integers(0, IMAGES)  # few different counts: many differences are equal


def pairs_of(least, most):
    return st.lists(st.tuples(right, right), min_size=least, max_size=most)


def by_seed(values):
    return dict(enumerate(values))


def compare_counts(pairs, images=IMAGES, by_image=None):
    variant, baseline = zip(*pairs, strict=True)
    return compare(by_seed([k / images for k in variant]), by_seed([k / images for k in baseline]), by_image)


def by_image_of(pairs, images=IMAGES):
    """Return arrays [pairs, images] whose rows have the pairs' differences, each row's rights on its own images."""
    rng = np.random.default_rng(0)
    rows = [[rng.permutation(images) < k for k in pair] for pair in pairs]
    return np.array([a.astype(float) - b for a, b in rows])


def test_importing_the_module_does_not_import_scipy():
    check = "import sys, sppcls.measure.statistics; print('scipy.stats' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


@pytest.mark.parametrize(("hits", "images"), [(0, 10), (10, 10), (5, 7), (90, 100), (38000, 50000)])
def test_wilson_is_scipys(hits, images):
    expected = stats.binomtest(hits, images).proportion_ci(0.95, method="wilson")
    assert wilson(hits, images) == pytest.approx(tuple(expected), abs=1e-12)


def test_wilson_of_a_worked_example():
    assert wilson(90, 100) == pytest.approx((0.825634, 0.944771), abs=1e-6)


@pytest.mark.parametrize(("hits", "images"), [(0, 0), (3, 2), (-1, 5)])
def test_wilson_refuses_impossible_counts(hits, images):
    with pytest.raises(ValueError, match="expected at least 1 image"):
        wilson(hits, images)


@cheap
@given(st.integers(1, 5000), st.floats(0, 1))
def test_wilson_contains_the_accuracy_and_stays_a_fraction(images, share):
    hits = round(share * images)
    low, high = wilson(hits, images)
    assert 0 <= low <= hits / images + 1e-12
    assert hits / images - 1e-12 <= high <= 1


def test_estimate_of_a_worked_example():
    # t of 2 degrees of freedom at 0.975 is 4.302653; 4.302653 * 0.02 / sqrt(3) is 0.0496828.
    got = estimate([0.70, 0.74, 0.72])
    assert (got.mean, got.sd, got.n) == (pytest.approx(0.72), pytest.approx(0.02), 3)
    assert (got.low, got.high) == (pytest.approx(0.6703172, abs=1e-7), pytest.approx(0.7696828, abs=1e-7))


def test_estimate_has_an_interval_from_three_values_on():
    assert asdict(estimate([0.8])) == {"mean": 0.8, "sd": None, "low": None, "high": None, "n": 1}
    # Student's t makes 45.0 +- 254.1 of these two.
    got = estimate([0.25, 0.65])
    assert (got.mean, got.sd) == (pytest.approx(0.45), pytest.approx(0.08**0.5))
    assert got.low is got.high is None
    assert estimate([0.25, 0.65, 0.45]).low is not None


@pytest.mark.parametrize("n", [3, 7])
def test_estimate_of_equal_values_is_that_value_exactly(n):
    # The plain mean of three times 0.1 is 0.10000000000000002.
    assert asdict(estimate([0.1] * n)) == {"mean": 0.1, "sd": 0.0, "low": 0.1, "high": 0.1, "n": n}


@pytest.mark.parametrize("values", [[], [0.5, math.nan], [math.inf]])
def test_estimate_refuses_what_has_no_mean(values):
    with pytest.raises(ValueError, match="expected one or more finite numbers"):
        estimate(values)


@cheap
@given(st.lists(st.floats(0, 1), min_size=3, max_size=12))
def test_estimate_agrees_with_scipy_and_contains_its_mean(values):
    got = estimate(values)
    assert got.low <= got.mean <= got.high
    assert (got.mean, got.sd) == (pytest.approx(np.mean(values)), pytest.approx(np.std(values, ddof=1), abs=1e-15))
    if got.sd > 1e-9:
        want = stats.t.interval(0.95, len(values) - 1, np.mean(values), stats.sem(values))
        assert (got.low, got.high) == pytest.approx(want)


def test_compare_of_a_worked_example():
    # Seed s is better on 1 + s images of its own ten of 40: no image in common, so p is that of t with 3 degrees.
    by_image = np.zeros((4, 40))
    for seed in range(4):
        by_image[seed, seed * 10 : seed * 10 + 1 + seed] = 1
    got = compare(by_seed([0.725, 0.75, 0.775, 0.8]), by_seed([0.7] * 4), by_image)
    half = 3.182446 * 0.025 * math.sqrt(5 / 3) / 2  # the deviation of 1, 2, 3, 4 is sqrt(5 / 3)
    assert got.difference == pytest.approx(0.0625)
    assert (got.low, got.high) == pytest.approx((0.0625 - half, 0.0625 + half), abs=1e-7)
    assert got.p == pytest.approx(2 * stats.t.sf(2.5 / math.sqrt(5 / 12), 3))
    assert (got.n, got.p_holm, got.note) == (4, None, "")
    alone = compare(by_seed([0.725, 0.75, 0.775, 0.8]), by_seed([0.7] * 4))
    assert (alone.difference, alone.low, alone.high, alone.p, alone.note) == (got.difference, None, None, None, "")


@cheap
@given(pairs_of(3, 18))
def test_swapping_variant_and_baseline_turns_the_sign_only(pairs):
    by_image = by_image_of(pairs)
    got = compare_counts(pairs, by_image=by_image)
    swapped = compare_counts([(b, a) for a, b in pairs], by_image=-by_image)
    assert swapped.difference == pytest.approx(-got.difference, abs=1e-15)
    if got.low is not None:
        assert swapped.high == pytest.approx(-got.low, abs=1e-12)
    assert swapped.p == pytest.approx(got.p)
    assert (swapped.n, swapped.note) == (got.n, got.note)


@cheap
@given(pairs_of(3, 14), st.randoms(use_true_random=False))
def test_order_of_the_seeds_does_not_matter(pairs, random):
    variant, baseline = by_seed([a / IMAGES for a, _ in pairs]), by_seed([b / IMAGES for _, b in pairs])
    shuffled = list(variant.items())
    random.shuffle(shuffled)
    assert compare(dict(shuffled), baseline) == compare(variant, baseline)


@pytest.mark.parametrize("n", [3, 5, 6, 15])
def test_no_difference_has_p_1(n):
    pairs = [(700 + i, 700 + i) for i in range(n)]
    got = compare_counts(pairs, by_image=by_image_of(pairs))
    assert (got.difference, got.p, got.note) == (0, 1, "")
    assert got.low <= 0 <= got.high


@pytest.mark.parametrize("n", [3, 5, 6, 8])
def test_equal_differences_have_no_p(n):
    # 0.8 - 0.7 is not 0.6 - 0.5 in floating point: SciPy's t would be 1e15 or so, and its p 1e-30 or less.
    values = [0.8, 0.6, 0.3, 0.9, 0.7, 0.4, 0.2, 0.5][:n]
    by_image = by_image_of([(value * 10, value * 10 - 1) for value in values], 10)
    got = compare(by_seed(values), by_seed([round(value - 0.1, 1) for value in values]), by_image)
    assert len({a - round(a - 0.1, 1) for a in values}) > 1
    assert (got.p, got.low, got.note) == (None, None, "all differences are equal: p is not defined")
    assert got.difference == pytest.approx(0.1)


@pytest.mark.parametrize(("n", "note"), [(1, "1 seed in common, 3 are needed"), (2, "2 seeds in common, 3 are needed")])
@pytest.mark.parametrize("gain", [0, 10])
def test_below_three_seeds_there_is_a_difference_and_a_note(n, note, gain):
    pairs = [(700 + gain, 700)] * n
    got = compare_counts(pairs, by_image=by_image_of(pairs))
    assert (got.difference, got.n, got.note) == (pytest.approx(gain / IMAGES), n, note)
    assert got.low is got.high is got.p is got.p_holm is None


def test_only_the_common_seeds_are_compared():
    variant, baseline = {4: 0.75, 1: 0.71, 2: 0.72, 9: 0.0}, {7: 1.0, 2: 0.70, 4: 0.72, 1: 0.70}
    got = compare(variant, baseline)
    assert got == compare(by_seed([0.71, 0.72, 0.75]), by_seed([0.70, 0.70, 0.72]))
    assert got.n == 3


@pytest.mark.parametrize(("variant", "baseline"), [({1: 0.5}, {2: 0.5}), ({}, {}), ({1: 0.5}, {})])
def test_no_common_seed_is_an_error(variant, baseline):
    with pytest.raises(ValueError, match="no seed in common"):
        compare(variant, baseline)


def test_a_value_that_is_not_finite_is_an_error():
    with pytest.raises(ValueError, match="finite"):
        compare({0: math.nan, 1: 0.5, 2: 0.5}, {0: 0.5, 1: 0.5, 2: 0.4})


@pytest.mark.parametrize(
    ("ps", "adjusted"),
    [
        ([0.01, 0.04, 0.03, 0.005], [0.03, 0.06, 0.06, 0.02]),
        ([0.01, None, 0.04, 0.03, None, 0.005], [0.03, None, 0.06, 0.06, None, 0.02]),
        ([0.5, 0.6, 0.9], [1, 1, 1]),
        ([0.02, 0.02], [0.04, 0.04]),
        ([0.0, 1.0], [0, 1]),
        ([0.04], [0.04]),
        ([None], [None]),
        ([], []),
    ],
)
def test_holm_of_worked_examples(ps, adjusted):
    assert holm(ps) == [pytest.approx(p) if p is not None else None for p in adjusted]


@cheap
@given(st.lists(st.none() | st.floats(0, 1), max_size=12))
def test_holm_keeps_the_order_and_never_lowers_a_p(ps):
    got = holm(ps)
    assert [p is None for p in got] == [p is None for p in ps]
    known = sorted((p, q) for p, q in zip(ps, got, strict=True) if p is not None)
    assert all(p <= q <= min(1, p * len(known)) for p, q in known)
    assert all(a[1] <= b[1] for a, b in itertools.pairwise(known))
    assert all(a[1] == b[1] for a, b in itertools.pairwise(known) if a[0] == b[0])
    # Holm rejects at 0.05 exactly what the step-down procedure of its definition rejects.
    rejected = 0
    while rejected < len(known) and known[rejected][0] * (len(known) - rejected) <= 0.05:
        rejected += 1
    assert sum(q <= 0.05 for _, q in known) == rejected


def mean_squares(by_image):
    """Return the mean squares of seeds, images and rest of a two-way table, one cell at a time."""
    seeds, images = by_image.shape
    whole, rows, columns = by_image.mean(), by_image.mean(axis=1), by_image.mean(axis=0)
    of_seeds = sum(images * (row - whole) ** 2 for row in rows) / (seeds - 1)
    of_images = sum(seeds * (column - whole) ** 2 for column in columns) / (images - 1)
    rest = sum((by_image[s, i] - rows[s] - columns[i] + whole) ** 2 for s in range(seeds) for i in range(images))
    return of_seeds, of_images, rest / (seeds - 1) / (images - 1)


def decided(by_image):
    return crossed(estimate(by_image.mean(axis=1).tolist()), by_image)


tables = st.tuples(st.integers(3, 6), st.integers(2, 12)).flatmap(
    lambda shape: st.lists(st.integers(-1, 1), min_size=shape[0] * shape[1], max_size=shape[0] * shape[1]).map(
        lambda cells: np.array(cells, dtype=np.float64).reshape(shape)
    )
)


@cheap
@given(tables)
def test_what_decides_has_the_variances_of_a_two_way_analysis(by_image):
    (seeds, images), (of_seeds, of_images, rest) = by_image.shape, mean_squares(by_image)
    low, high, p = decided(by_image)
    cells, mean = by_image.size, by_image.mean()

    def half(level):
        variances = [(of_seeds, seeds - 1), (max(of_images - rest, 0), images - 1)]
        return sum(stats.t.isf(level / 2, freedom) ** 2 * part / cells for part, freedom in variances) ** 0.5

    assert (low, high) == pytest.approx((mean - half(0.05), mean + half(0.05)), abs=1e-7)
    if abs(mean) > 1e-9 and p > 1e-6:
        assert half(p) == pytest.approx(abs(mean), rel=1e-4)  # p is the level at which the interval ends at 0
    assert (p <= 0.05) == (low > 0 or high < 0) or abs(p - 0.05) < 1e-6


@cheap
@given(tables, st.randoms(use_true_random=False))
def test_what_decides_is_never_surer_than_the_t_test_and_has_no_order(by_image, random):
    rows = by_image.mean(axis=1)
    assume(np.ptp(rows) > 1e-9)
    (low, high, p), given = decided(by_image), estimate(rows.tolist())
    assert low <= given.low + 1e-9
    assert high >= given.high - 1e-9
    assert p >= stats.ttest_1samp(rows, 0).pvalue - 1e-9
    order = [random.sample(range(size), size) for size in by_image.shape]
    assert decided(by_image[np.ix_(*order)]) == pytest.approx((low, high, p), abs=1e-9)


def test_what_decides_is_the_t_test_where_seeds_have_no_image_in_common():
    by_image = np.zeros((4, 40))
    for seed, count in enumerate((3, 5, 4, 7)):
        by_image[seed, seed * 10 : seed * 10 + count] = 1
    test = stats.ttest_1samp(by_image.mean(axis=1), 0)
    assert decided(by_image) == pytest.approx((*test.confidence_interval(), test.pvalue))


def test_what_decides_is_as_wide_as_the_images_say_where_seeds_agree():
    row = np.random.default_rng(1).integers(-1, 2, 20000) + 0.1
    by_image = np.stack([row, row, row, row + 1e-6])
    half = 1.96 * row.std() / math.sqrt(len(row))
    low, high, _ = decided(by_image)
    assert (low, high) == pytest.approx((row.mean() - half, row.mean() + half), abs=half / 100)


def test_what_decides_is_wider_where_the_seeds_disagree():
    alike, unlike = np.zeros((4, 4000)), np.zeros((4, 4000))
    alike[:, :2000], unlike[:2] = 1, 1
    (low, high, _), (lower, higher, _) = decided(alike), decided(unlike)
    assert low + high == pytest.approx(lower + higher) == pytest.approx(1)
    assert higher - lower > 10 * (high - low)


def test_a_difference_far_beyond_its_interval_has_the_least_p():
    by_image = np.ones((5, 1000))
    by_image[np.arange(5), np.arange(5) * 3] = [0, 0, 0, 0, -1]
    assert 1e-12 <= decided(by_image)[2] < 1e-9


@pytest.mark.parametrize("shape", [(2, 5), (3, 1), (3,), (4, 0)])
def test_compare_refuses_an_array_of_other_pairs_or_without_images(shape):
    with pytest.raises(ValueError, match=r"by_image is .*; expected \[3, 2 images or more\]"):
        compare(by_seed([0.5, 0.6, 0.7]), by_seed([0.5, 0.5, 0.5]), np.zeros(shape))


def test_log_scale_area_of_worked_examples():
    # Powers of two are equally far apart: (0.7 + 2 * 0.6 + 0.5) / 4 in any order; 64 to 128 is a third of 64 to 512.
    assert log_scale_area([64, 128, 256], [0.7, 0.6, 0.5]) == pytest.approx(0.6)
    assert log_scale_area([256, 64, 128], [0.5, 0.7, 0.6]) == pytest.approx(0.6)
    assert log_scale_area([64, 512, 128], [0.3, 0.9, 0.6]) == pytest.approx(0.45 / 3 + 0.75 * 2 / 3)
    assert log_scale_area([224], [0.8]) == 0.8


@cheap
@given(st.lists(st.integers(1, 1000), min_size=1, max_size=8, unique=True), st.floats(0, 1), st.data())
def test_log_scale_area_is_a_mean(scales, accuracy, data):
    assert log_scale_area(scales, [accuracy] * len(scales)) == pytest.approx(accuracy)
    heights = data.draw(st.lists(st.floats(0, 1), min_size=len(scales), max_size=len(scales)))
    area = log_scale_area(scales, heights)
    assert min(heights) - 1e-9 <= area <= max(heights) + 1e-9
    assert log_scale_area([7 * scale for scale in scales], heights) == pytest.approx(area, abs=1e-9)


@pytest.mark.parametrize(("scales", "accuracies"), [([], []), ([64], []), ([64, 96], [0.5]), ([64, 64], [0.5, 0.6])])
def test_log_scale_area_refuses_scales_without_one_accuracy_each(scales, accuracies):
    with pytest.raises(ValueError, match="expected one each"):
        log_scale_area(scales, accuracies)


def test_pairwise_agreement_of_a_worked_example():
    got = pairwise_agreement(np.array([[0, 1, 2, 3], [0, 1, 2, 0], [1, 1, 0, 0]]))
    assert got.tolist() == [[1, 0.75, 0.25], [0.75, 1, 0.5], [0.25, 0.5, 1]]


@cheap
@given(st.integers(1, 5), st.integers(1, 30), st.integers(0, 1000))
def test_pairwise_agreement_is_symmetric_with_a_unit_diagonal(scales, images, seed):
    got = pairwise_agreement(np.random.default_rng(seed).integers(0, 4, (scales, images)))
    assert got.shape == (scales, scales)
    assert (got == got.T).all()
    assert (got.diagonal() == 1).all()
    assert ((got >= 0) & (got <= 1)).all()


def test_every_result_is_plain_numbers():
    pairs = [(710 + i * i, 700) for i in range(7)]
    results = [
        asdict(estimate(np.array([0.5, 0.6]).tolist())),
        asdict(compare_counts(pairs, by_image=by_image_of(pairs))),
        {"wilson": wilson(np.int64(5), np.int64(7)), "holm": holm([np.float64(0.01), None])},
        {"area": log_scale_area(np.array([64, 96]).tolist(), [np.float64(0.5), np.float64(0.6)])},
        {"area": log_scale_area([64], [np.float64(0.5)])},
    ]
    flat = [
        x for result in results for value in result.values() for x in (value if isinstance(value, list) else [value])
    ]
    flat = [x for value in flat for x in (value if isinstance(value, tuple) else [value])]
    assert {type(x) for x in flat} <= {float, int, str, type(None)}
    assert json.loads(json.dumps(results, allow_nan=False))
