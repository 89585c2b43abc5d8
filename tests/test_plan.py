"""The epoch plan: what every rank, worker and epoch must agree on."""

import hashlib
import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sppcls.data import cut as cutting
from sppcls.data.cut import cut_images, cut_into_steps
from sppcls.data.geometry import fitted_size, to_multiple
from sppcls.data.plan import TrainingPlan, aspect_buckets, bucket_size, plan_epoch, plan_evaluation
from sppcls.data.schedule import Schedule

sides = st.integers(1, 3000)
image_sizes = st.lists(st.tuples(sides, sides), min_size=1, max_size=150).map(lambda s: np.array(s, np.int64))
batch_sizes = st.integers(2, 17)
worlds = st.integers(1, 5)


def photographs(count: int, seed: int = 0) -> np.ndarray:
    """Sizes as cameras and crops make them: common aspects, both ways up, and a tail."""
    rng = np.random.default_rng(seed)
    aspect = np.where(rng.random(count) < 0.6, rng.choice([1, 4 / 3, 3 / 2, 16 / 9], count), rng.uniform(0.6, 2, count))
    width = rng.integers(200, 800, count)
    return np.stack([np.rint(width / aspect), width], 1).astype(np.int64)


def padding(batches, sizes) -> float:
    pairs = [(batch.size, sizes[index].tolist()) for batch in batches for index in batch.indices]
    used = sum(np.prod(fitted_size(*image, size)) for size, image in pairs)
    return 1 - used / sum(np.prod(size) for size, _ in pairs)


@given(image_sizes, batch_sizes, worlds, st.integers(0, 5), st.sampled_from(["keep", "crop", "warp"]))
@settings(max_examples=150, deadline=None)
def test_every_image_once_and_ranks_agree(sizes, batch_size, world, epoch, fit):
    schedule = Schedule("alternate", (32, 48))
    plan = plan_epoch(sizes, schedule, epoch, seed=3, batch_size=batch_size, world=world, fit=fit)
    images = [i for batch in plan for i in batch.indices]
    assert len(images) == len(sizes) + plan.repeats
    assert set(images) == set(range(len(sizes)))
    shares = [list(plan.of_rank(rank)) for rank in range(world)]
    assert {len(share) for share in shares} == {plan.steps}
    for step in zip(*shares, strict=True):
        assert len({batch.size for batch in step}) == 1
        assert min(step[0].size) >= schedule.scales_of(epoch, 1)[0]
    if len(sizes) >= world:
        assert plan.repeats == 0 or len(sizes) < (batch_size // 2) * world
    if len(sizes) >= batch_size * world:
        assert min(len(b.indices) for b in plan) >= batch_size // 2
    assert max(len(b.indices) for b in plan) <= batch_size


@given(image_sizes, batch_sizes, worlds)
@settings(max_examples=60, deadline=None)
def test_as_many_batches_at_every_scale_and_epoch(sizes, batch_size, world):
    schedule = Schedule("random", (16, 160), step=8)
    lengths = {
        len(plan_epoch(sizes, schedule, epoch, seed=0, batch_size=batch_size, world=world)) for epoch in range(6)
    }
    assert len(lengths) == 1


def test_the_plan_is_pure_and_shuffles():
    sizes = photographs(300)
    one, again = (plan_epoch(sizes, Schedule("single", (64,)), 2, seed=5, batch_size=16) for _ in range(2))
    assert list(one) == list(again)
    for other in ({"seed": 6, "epoch": 2}, {"seed": 5, "epoch": 3}):
        different = plan_epoch(sizes, Schedule("single", (64,)), other["epoch"], seed=other["seed"], batch_size=16)
        assert {b.indices for b in different}.isdisjoint({b.indices for b in one})


@given(st.lists(st.integers(-6, 6), min_size=2, max_size=14).map(sorted), st.integers(2, 5))
@settings(max_examples=200, deadline=None)
def test_the_cuts_are_the_cheapest(buckets, batch_size):
    buckets = np.array(buckets)

    def cost(members) -> float:
        low, high = buckets[members[0]], buckets[members[-1]]
        return len(members) * 2 ** ((max(-low, 0) + max(high, 0)) / 24) + 1

    def best(start: int) -> float:
        if start == len(buckets):
            return 0.0
        ends = range(start + max(batch_size // 2, 1), min(start + batch_size, len(buckets)) + 1)
        return min((cost(range(start, end)) + best(end) for end in ends), default=np.inf)

    got = cut_into_steps(buckets, batch_size)
    expected = best(0)
    if np.isfinite(expected) and max(np.unique(buckets, return_counts=True)[1]) <= 3 * batch_size:
        assert sum(cost(part) for part in got) == pytest.approx(expected)


def test_padding_is_small_on_photographs():
    sizes = photographs(3000)
    for scale in (96, 128, 224):
        plan = plan_epoch(sizes, Schedule("single", (scale,)), 0, seed=0, batch_size=32)
        assert padding(plan, sizes) < 0.03
        assert abs(padding(plan, sizes) - plan.padding(sizes)) < 0.001
        assert padding(plan_evaluation(sizes, scale, batch_size=32), sizes) < 0.02


def test_common_aspects_need_no_padding():
    sizes = np.array([[300, 400], [400, 600], [1080, 1920], [500, 500], [600, 400]])
    for scale in (48, 64, 96, 224):
        assert padding(plan_evaluation(sizes, scale, batch_size=1), sizes) < 0.01


@given(image_sizes, st.integers(8, 256), st.integers(1, 9))
@settings(max_examples=60, deadline=None)
def test_evaluation_sees_each_image_once_in_a_size_of_its_own(sizes, scale, batch_size):
    whole = plan_evaluation(sizes, scale, batch_size=batch_size)
    assert sorted(i for b in whole for i in b.indices) == list(range(len(sizes)))
    size_of = {i: b.size for b in whole for i in b.indices}
    for index in range(min(len(sizes), 10)):
        alone = plan_evaluation(sizes[index : index + 1], scale, batch_size=1)
        assert alone[0].size == size_of[index]
        assert min(alone[0].size) == scale


def test_the_bucket_of_an_image_does_not_depend_on_the_scale():
    sizes = photographs(200)
    assert (aspect_buckets(sizes, 4.0) == aspect_buckets(sizes * 3, 4.0)).all()


def test_extreme_aspects_share_the_outermost_bucket():
    sizes = np.array([[10, 10_000], [60_000, 1], [100, 400]])
    assert aspect_buckets(sizes, 4.0).tolist() == [48, -48, 48]
    assert bucket_size(48, 48, 100) == (100, 401)  # the edge sits 0.15 % above 4:1


def test_crop_and_warp_take_square_tensors_in_full_batches():
    plan = plan_epoch(photographs(100), Schedule("single", (64,)), 0, seed=0, batch_size=10, fit="warp")
    assert {b.size for b in plan} == {(64, 64)}
    assert [len(b.indices) for b in plan] == [10] * 10


def test_repeats_are_counted_where_ranks_outnumber_images():
    plan = plan_epoch(np.full((3, 2), 50), Schedule("single", (32,)), 0, seed=0, batch_size=4, world=5)
    assert plan.repeats == 2
    assert [len(b.indices) for b in plan] == [1] * 5


def test_schedules():
    assert [Schedule("alternate", (180, 224)).scales_of(e, 2)[0] for e in range(4)] == [180, 224, 180, 224]
    steps = [Schedule("progressive", (32, 48, 64), epochs=6).scales_of(e, 1)[0] for e in range(8)]
    assert steps == [32, 32, 48, 48, 64, 64, 64, 64]
    per_epoch = Schedule("random", (180, 224), step=4, seed=1)
    drawn = [per_epoch.scales_of(e, 3) for e in range(40)]
    assert all(len(set(scales)) == 1 for scales in drawn)
    assert {scales[0] for scales in drawn} <= set(range(180, 225, 4))
    assert len({scales[0] for scales in drawn}) > 6
    per_batch = Schedule("random", (180, 224), every="batch", step=4).scales_of(0, 30)
    assert len(set(per_batch)) > 4


# --- the cut, made once ----------------------------------------------------------------------------------------------


def cost_of(buckets, cuts) -> float:
    areas = [2 ** ((max(-buckets[a], 0) + max(buckets[b - 1], 0)) / 24) for a, b in itertools.pairwise(cuts)]
    return sum((b - a) * area + 1 for (a, b), area in zip(itertools.pairwise(cuts), areas, strict=True))


def cheapest_cuts_of_all(buckets, half, full):
    """Try every position: what the cuts of a large set have to be as cheap as."""
    best, before = [0.0] + [np.inf] * len(buckets), [0] * (len(buckets) + 1)
    for end in range(half, len(buckets) + 1):
        for start in range(max(end - full, 0), end - half + 1):
            area = 2 ** ((max(-buckets[start], 0) + max(buckets[end - 1], 0)) / 24)
            cost = best[start] + (end - start) * area + 1
            if cost < best[end]:
                best[end], before[end] = cost, start
    cuts = [len(buckets)]
    while cuts[-1] > 0:
        cuts.append(before[cuts[-1]])
    return cuts[::-1]


counts_of_buckets = st.dictionaries(st.integers(-48, 48), st.integers(1, 30), min_size=1, max_size=8)


@pytest.mark.parametrize("try_all", [10**9, 0], ids=["all", "some"])
@given(counts=counts_of_buckets, batch_size=st.integers(2, 20), world=st.integers(1, 3))
@settings(max_examples=40, deadline=None)
def test_few_positions_give_cuts_as_cheap_as_all(try_all, counts, batch_size, world):
    buckets = np.repeat(sorted(counts), [counts[bucket] for bucket in sorted(counts)])
    half, full = batch_size // 2 * world, batch_size * world
    if len(buckets) < half or full < len(buckets) < 2 * half:
        return
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cutting, "_TRY_ALL", try_all)
        cuts = cutting._cheapest_cuts(buckets, half, full)
    assert all(half <= part <= full for part in np.diff(cuts))
    assert cost_of(buckets, cuts) == pytest.approx(cost_of(buckets, cheapest_cuts_of_all(buckets.tolist(), half, full)))


def test_a_large_set_is_cut_at_few_positions():
    sizes = photographs(300_000)
    buckets = np.sort(aspect_buckets(sizes, 4.0))
    tried = cutting._positions(buckets, 128 * 64, 256 * 64)
    assert len(tried) < 15_000
    assert {0, len(buckets)} <= set(tried.tolist())
    counts = cut_images(sizes, batch_size=256, world=64).counts
    assert counts.sum() == len(sizes)
    assert counts.min() >= 128 * 64
    assert counts.max() <= 256 * 64


@given(image_sizes, batch_sizes, worlds, st.sampled_from(["alternate", "random", "progressive"]), st.booleans())
@settings(max_examples=40, deadline=None)
def test_what_an_epoch_costs_needs_no_shuffling(sizes, batch_size, world, kind, every_batch):
    schedule = Schedule(kind, (32, 48), every="batch" if every_batch else "epoch", epochs=4)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cutting.Cut, "shuffle", None)
        plan = plan_epoch(sizes, schedule, 3, seed=1, batch_size=batch_size, world=world)
        facts = plan.steps, plan.images, plan.pixels, plan.shapes, plan.smallest
        assert len(plan) == plan.steps * world
    areas = [len(b.indices) * b.size[0] * b.size[1] for b in plan]
    images, shapes = [len(b.indices) for b in plan], {b.size for b in plan}
    assert facts == (len(areas) // world, sum(images), sum(areas), len(shapes), min(images))
    assert plan.largest == plan[areas.index(max(areas))]


@pytest.mark.parametrize(
    ("batch_size", "world", "fit", "epoch", "digest"),
    [
        (32, 1, "keep", 0, "3130e70429d2e6d3"),
        (15, 1, "keep", 3, "b732ed1569e4142e"),
        (8, 4, "keep", 1, "1492151050dd07bc"),
        (256, 8, "keep", 2, "eed2a5029252229b"),
        (32, 2, "warp", 4, "d5d77465059af4d3"),
    ],
)
def test_plans_are_those_of_earlier_versions(batch_size, world, fit, epoch, digest):
    schedule = Schedule("random", (64, 96), every="batch", seed=2)
    plan = plan_epoch(photographs(3000), schedule, epoch, seed=7, batch_size=batch_size, world=world, fit=fit)
    said = repr([(b.indices, b.size, b.scale, b.epoch) for b in plan])
    assert hashlib.sha256(said.encode()).hexdigest()[:16] == digest


def test_one_cut_serves_every_epoch():
    sizes, schedule = photographs(500), Schedule("alternate", (32, 48))
    cut = cut_images(sizes, batch_size=16, world=2)
    for epoch in range(4):
        whole = plan_epoch(sizes, schedule, epoch, seed=5, batch_size=16, world=2)
        assert list(TrainingPlan(cut, schedule.turns(epoch, len(cut.counts)), epoch, 5)) == list(whole)


def test_the_bench_measures_each_case_in_a_process_of_its_own(monkeypatch):
    from sppcls.bench import plan as bench

    monkeypatch.setattr(bench, "CASES", ((2000, 16, 2), (3000, 8, 4)))
    monkeypatch.setattr(bench, "FEW", 1000)
    report = bench.plan()
    assert [row[:3] for row in report.rows] == [("2,000", "16", "2"), ("3,000", "8", "4")]
    assert all(0 < value < 1000 for row in report.rows for value in row[3:])
    assert sorted(i for batch in bench.grouped(bench.photographs(700)) for i in batch) == list(range(700))
    assert report.summary["ratio_to_grouping"] > 0


# --- multiples of the stride ------------------------------------------------------------------------------------------


@given(image_sizes, st.sampled_from([4, 8, 12, 32]), st.integers(8, 300), st.sampled_from(["keep", "warp"]))
@settings(max_examples=100, deadline=None)
def test_every_tensor_and_image_has_sides_that_are_multiples(sizes, multiple, scale, fit):
    schedule = Schedule("single", (scale,))
    training = plan_epoch(sizes, schedule, 0, seed=0, batch_size=4, fit=fit, multiple=multiple)
    measuring = plan_evaluation(sizes, scale, batch_size=4, fit=fit, multiple=multiple)
    for batch in [*training, *measuring]:
        assert not any(side % multiple for side in batch.size)
        for index in batch.indices:
            if fit == "keep":
                assert not any(side % multiple for side in fitted_size(*sizes[index].tolist(), batch.size, multiple))


@given(image_sizes, st.sampled_from([4, 8, 32]), st.integers(8, 300))
@settings(max_examples=100, deadline=None)
def test_an_aspect_changes_by_at_most_half_a_multiple(sizes, multiple, scale):
    for batch in plan_evaluation(sizes, scale, batch_size=4, multiple=multiple):
        assert min(batch.size) == to_multiple(scale, multiple)  # a neighbouring scale is the same picture
        for index in batch.indices:
            image = sizes[index].tolist()
            factor = min(side / length for side, length in zip(batch.size, image, strict=True))
            for side, length in zip(fitted_size(*image, batch.size, multiple), image, strict=True):
                # ... or is one multiple, if the picture is thinner than that.
                assert abs(side - length * factor) <= multiple / 2 + 1e-6 or side == multiple > length * factor


def test_the_plan_says_how_much_aspects_change():
    sizes = np.array([[100, 133], [100, 151], [100, 100], [300, 200]])
    plan = plan_epoch(sizes, Schedule("single", (32,)), 0, seed=0, batch_size=2, multiple=8)
    factors = []
    for batch in plan:
        for index in batch.indices:
            (h, w), (height, width) = sizes[index].tolist(), fitted_size(*sizes[index].tolist(), batch.size, 8)
            factors.append(abs(np.log(width / height * h / w)))
    assert plan.stretch(sizes) == pytest.approx(np.exp(np.mean(factors)))
    assert plan.stretch(sizes) > 1.01
    assert plan_epoch(sizes, Schedule("single", (32,)), 0, seed=0, batch_size=2).stretch(sizes) == 1


def test_a_multiple_leaves_fewer_shapes():
    sizes = photographs(2000)
    shapes = [
        plan_epoch(sizes, Schedule("single", (96,)), 0, seed=0, batch_size=32, multiple=multiple).shapes
        for multiple in (1, 8, 32)
    ]
    assert shapes[0] > shapes[1] > 2 * shapes[2]
