"""Mixed steps: parts of batches dealt anew, and one network on tensors of several shapes."""

import copy
import itertools

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from test_plan import batch_sizes, image_sizes, photographs, worlds
from torch import nn

from sppcls.data.batch import readable
from sppcls.data.cut import aspect_buckets, bucket_size
from sppcls.data.images import BatchDataset
from sppcls.data.mix import parts_of
from sppcls.data.planner import Planner
from sppcls.data.schedule import Schedule
from sppcls.data.shapes import ShapesSource
from sppcls.data.steps import Step
from sppcls.errors import ConfigError
from sppcls.measure.mixing import EPOCHS, mixing
from sppcls.measure.scales import Evaluation
from sppcls.measure.views import recalibrate_bn
from sppcls.models.backbones import build_trunk
from sppcls.models.classifier import SppClassifier
from sppcls.models.parts import Parts, joint
from sppcls.report.run_lines import mixing_lines
from sppcls.spec import parse
from sppcls.training.datamodule import MultiScaleDataModule
from sppcls.training.module import LitSppClassifier

SCHEDULES = [Schedule("alternate", (32, 48)), Schedule("random", (32, 48), every="batch")]


def planner(sizes, mix=0.45, batch_size=32, schedule=SCHEDULES[0], **how):
    return Planner(sizes, schedule, batch_size, seed=3, mix=mix, **how)


def parts(step):
    return step.parts if isinstance(step, Step) else (step,)


def images(step):
    return [i for part in parts(step) for i in part.indices]


dials = st.sampled_from([0.1, 0.4, 0.45, 0.7, 1.0])


@example(np.array([(1, 1)] * 7 + [(1, 2), (2, 1)]), 3, 1, 0.1, 0, Schedule("alternate", (32, 48)))
@given(image_sizes, batch_sizes, worlds, dials, st.integers(0, 3), st.sampled_from(SCHEDULES))
@settings(max_examples=100, deadline=None)
def test_every_image_once_and_ranks_agree(sizes, batch_size, world, mix, epoch, schedule):
    of = planner(sizes, mix, batch_size, schedule)
    plan = of.plan(epoch, world)
    shares = [list(plan.of_rank(rank)) for rank in range(world)]
    assert {len(share) for share in shares} == {plan.steps}
    drawn = schedule.scales_of(epoch, plan.steps)
    handed = []
    for number, step in enumerate(zip(*shares, strict=True)):
        assert {part.scale for of_rank in step for part in parts(of_rank)} == {drawn[number]}
        assert all(1 <= len(images(of_rank)) <= batch_size for of_rank in step)
        assert all(len({part.size for part in parts(of_rank)}) <= of.parts for of_rank in step)
        handed += [(i, number) for of_rank in step for i in images(of_rank)]
    assert {i for i, _ in handed} == set(range(len(sizes)))
    assert len(handed) == len(sizes) + plan.repeats
    assert sorted(handed) == sorted(zip(plan.sequence.tolist(), plan.step_of.tolist(), strict=True))
    assert list(plan.of_rank(0, 1)) == shares[0][1:]


@given(image_sizes, batch_sizes, worlds, dials)
@settings(max_examples=60, deadline=None)
def test_the_smallest_step_is_that_of_a_rank(sizes, batch_size, world, mix):
    plan = planner(sizes, mix, batch_size).plan(0, world)
    assert plan.smallest == min(len(images(step)) for step in plan)


@pytest.mark.parametrize("count", [40, 100, 101, 150])
@pytest.mark.parametrize(
    "how", [{}, {"batches": "random"}, {"mix": 0}, {"fit": "warp"}, {"fit": "warp", "batches": "aspect"}]
)
def test_no_step_is_larger_than_the_largest(count, how):
    of = planner(photographs(count), schedule=Schedule("single", (48,)), **how)
    most, (height, width), _ = of.largest_step()
    for epoch in range(5):
        for step in of.plan(epoch):
            assert sum(len(part.indices) * part.size[0] * part.size[1] for part in parts(step)) <= most * height * width


def test_a_planner_knows_what_it_may_be_given():
    for how in ({"mix": 2}, {"mix": -1}, {"mix": float("nan")}, {"batches": "aspects"}):
        with pytest.raises(ValueError, match="expected"):
            planner(photographs(20), **how)


@given(image_sizes, batch_sizes, worlds, dials)
@settings(max_examples=60, deadline=None)
def test_the_weights_of_an_epoch_are_one_mean_over_images(sizes, batch_size, world, mix):
    plan = planner(sizes, mix, batch_size).plan(0, world)
    of_image = np.zeros(len(sizes))
    for part in (part for step in plan for part in parts(step)):
        np.add.at(of_image, list(part.indices), part.weight / len(plan))
    np.testing.assert_allclose(of_image, 1 / len(sizes))


@given(image_sizes, batch_sizes, dials)
@settings(max_examples=60, deadline=None)
def test_an_image_fits_its_tensor_and_the_cost_is_that_of_the_tensors(sizes, batch_size, mix):
    plan = planner(sizes, mix, batch_size).plan(0)
    pixels = 0
    for part in (part for step in plan for part in parts(step)):
        for bucket in aspect_buckets(sizes[list(part.indices)], 4.0).tolist():
            own = bucket_size(bucket, bucket, part.scale)
            assert own[0] <= part.size[0]
            assert own[1] <= part.size[1]
        pixels += len(part.indices) * part.size[0] * part.size[1]
    assert pixels == plan.pixels


@given(image_sizes, batch_sizes, worlds)
@settings(max_examples=40, deadline=None)
def test_fits_compared_on_the_same_batches_have_the_same_images_in_each(sizes, batch_size, world):
    def membership(**how):
        return [sorted(images(step)) for step in planner(sizes, batch_size=batch_size, **how).plan(1, world)]

    assert membership(fit="keep") == membership(fit="warp", batches="aspect")
    assert membership(fit="warp") == membership(fit="keep", batches="random")
    square = planner(sizes, batch_size=batch_size, fit="warp", batches="aspect").plan(1, world)
    assert {part.size for step in square for part in parts(step)} == {(48, 48)}
    assert square.repeats or all(len(step.parts) == 1 for step in square)


@given(image_sizes, batch_sizes)
@settings(max_examples=40, deadline=None)
def test_random_batches_that_keep_the_aspect_have_each_image_in_its_own_tensor(sizes, batch_size):
    plan = planner(sizes, batch_size=batch_size, batches="random").plan(0)
    pixels = 0
    for part in (part for step in plan for part in step.parts):
        buckets = set(aspect_buckets(sizes[list(part.indices)], 4.0).tolist())
        assert {bucket_size(bucket, bucket, part.scale) for bucket in buckets} == {part.size}
        pixels += len(part.indices) * part.size[0] * part.size[1]
    assert pixels == plan.pixels
    assert set(map(tuple, plan.tensors.tolist())) == {(*p.size, p.scale) for step in plan for p in step.parts}


def meetings(plans, count):
    """Return the chance that two images that share a step share one in another epoch, and who never parts."""
    epochs = []
    for plan in plans:
        of = np.empty(count, int)
        for number, step in enumerate(plan):
            of[images(step)] = number
        epochs.append(of)
    shared = [np.equal.outer(of, of) & ~np.eye(count, dtype=bool) for of in epochs]
    again = np.mean([(a & b).sum() / a.sum() for a, b in itertools.combinations(shared, 2)])
    return again, np.logical_and.reduce(shared).any(axis=1)


def test_mixed_steps_meet_anew_and_no_two_images_stay_together():
    sizes = photographs(600)
    uniform = 31 / 599
    again, constant = meetings([planner(sizes).plan(epoch) for epoch in range(12)], 600)
    assert again <= 3 * uniform
    assert not constant.any()
    pure, _ = meetings([planner(sizes, 0).plan(epoch) for epoch in range(12)], 600)
    assert pure > 5 * uniform  # as it was


@pytest.mark.parametrize(("mix", "tensors"), [(0, 1), (0.01, 2), (0.45, 5), (0.5, 6), (1, 32)])
def test_the_dial_counts_tensors(mix, tensors):
    assert parts_of(mix, 32) == tensors
    plan = planner(photographs(600), mix).plan(0)
    most = max(len(parts(step)) for step in plan)
    assert most <= tensors
    assert most >= min(tensors, 5)


@pytest.mark.parametrize("name", ["tiny", "resnet18", "mobilenet_v3_small", "efficientnet_b0", "densenet121"])
def test_parts_of_one_shape_are_as_one_batch(name):
    torch.manual_seed(0)
    one = build_trunk(name).train()
    parts, images = copy.deepcopy(one), torch.randn(6, 3, 64, 80)
    torch.manual_seed(1)  # of stochastic depth
    want = one(images)
    torch.manual_seed(1)
    got = torch.cat(joint(parts, [images[:1], images[1:3], images[3:]]))
    torch.testing.assert_close(got, want, rtol=1e-3, atol=1e-4)
    for found, expected in zip(parts.buffers(), one.buffers(), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)


def test_batch_norm_is_over_all_tensors():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=True)).double().train()
    tensors = [torch.randn(n, 3, h, w, dtype=torch.double) for n, h, w in ((2, 9, 12), (3, 12, 9), (1, 7, 7))]
    found = joint(net, tensors)
    maps = [net[0](x) for x in tensors]
    pixels = torch.cat([m.permute(1, 0, 2, 3).flatten(1) for m in maps], 1)
    mean, var = (v.view(1, 4, 1, 1) for v in (pixels.mean(1), pixels.var(1, unbiased=False)))
    for got, of in zip(found, maps, strict=True):
        torch.testing.assert_close(got, ((of - mean) / (var + net[1].eps).sqrt()).relu())


def test_gradients_of_several_tensors():
    net = nn.Sequential(nn.Conv2d(3, 2, 3), nn.BatchNorm2d(2, momentum=0), nn.Tanh()).double().train()
    a, b = (torch.randn(n, 3, h, w, dtype=torch.double, requires_grad=True) for n, h, w in ((2, 4, 5), (1, 5, 3)))
    assert torch.autograd.gradcheck(lambda *tensors: tuple(joint(net, tensors)), (a, b))


@pytest.mark.parametrize("pool", ["spp", "gap"])
def test_the_classifier_takes_several_tensors(pool):
    model = SppClassifier("tiny", ["a", "b"], pool=pool)
    tensors = [torch.randn(2, 3, 32, 48), torch.randn(3, 3, 48, 32)]
    assert model(tensors).shape == (5, 2)
    model.eval()
    torch.testing.assert_close(model(tensors), torch.cat([model(tensor) for tensor in tensors]))


class _Sized(nn.Module):
    """Ends at the size that it began with."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x):
        return nn.functional.interpolate(self.layer(x), size=x.shape[-2:])


class _Own(nn.BatchNorm2d):
    def forward(self, x):
        how = self.weight, self.bias, self.running_mean, self.running_var, True, 0.1, self.eps, False
        return torch.batch_norm(x, *how)


class _Centred(nn.BatchNorm2d):
    def forward(self, x):
        return super().forward(x) - x.mean(0, keepdim=True)


class _InPlace(nn.BatchNorm2d):
    def forward(self, x):
        same = x * 1
        other = nn.functional.relu(same, inplace=True)
        return (1 - super().forward(other)) / 2 - same + (x * 2).relu_()


@pytest.mark.parametrize("net", [_Sized(nn.BatchNorm2d(3)), _Own(3), _Centred(3)])
def test_what_holds_for_one_tensor_only_is_refused(net):
    with pytest.raises(ConfigError, match=r"use data\.mix=0"):
        joint(net.train(), [torch.randn(2, 3, 8, 12), torch.randn(3, 3, 16, 8)])


def test_in_place_is_in_place():
    net, x = _InPlace(3).double().train(), torch.randn(5, 3, 6, 6, dtype=torch.double)
    torch.testing.assert_close(torch.cat(joint(net, [x[:2], x[2:]])), net(x))


def test_numbers_by_image_are_dealt_however_they_are_multiplied():
    x, each = torch.randn(5, 3, 4, 4), torch.randn(5, 1, 1, 1)
    for times in (lambda p: p * each, lambda p: each * p, lambda p: torch.mul(p, each), lambda p: p.mul(each)):
        got = times(Parts([x[:1], x[1:2], x[2:]]))
        torch.testing.assert_close(torch.cat(got.tensors), x * each)
    layer_scale = torch.randn(3, 1, 1)
    torch.testing.assert_close(torch.cat((Parts([x[:1], x[1:]]) * layer_scale).tensors), x * layer_scale)


def test_a_network_of_one_shape_is_named():
    with pytest.raises(
        ConfigError, match=r"this network cannot take the several tensors of a mixed step .*; use data.mix=0"
    ):
        joint(build_trunk("shufflenet_v2_x0_5").train(), [torch.randn(2, 3, 64, 80), torch.randn(2, 3, 80, 64)])


def obvious_mixing(plans, targets):
    """Return classes a step and the chance to meet again, counted pair by pair."""
    classes = []
    for step in plans[0]:
        counts = np.unique([targets[i] for i in images(step)], return_counts=True)[1]
        shares = counts / counts.sum()
        classes.append(np.exp(-(shares * np.log(shares)).sum()))
    chances = []
    for one, other in itertools.pairwise(plans):
        after = {i: number for number, step in enumerate(other) for i in images(step)}
        pairs = [pair for step in one for pair in itertools.combinations(images(step), 2)]
        chances.append(np.mean([after[a] == after[b] for a, b in pairs]) if pairs else 0)
    return np.mean(classes), np.mean(chances)


@given(image_sizes, st.integers(2, 12), st.sampled_from([0, 0.3, 1]), st.sampled_from(["auto", "random"]), st.data())
@settings(max_examples=40, deadline=None)
def test_what_the_steps_are_like_is_counted(sizes, batch_size, mix, batches, data):
    targets = data.draw(st.lists(st.integers(0, 4), min_size=len(sizes), max_size=len(sizes)))
    of = planner(sizes, mix, batch_size, batches=batches)
    found = mixing(of, targets)
    classes, again = obvious_mixing([of.plan(epoch) for epoch in range(EPOCHS)], targets)
    assert found.classes == pytest.approx(classes)
    assert found.again == pytest.approx(again)


def test_classes_that_aspect_tells_apart_make_poor_steps_unless_they_are_mixed():
    sizes = np.repeat([[60, 100], [60, 90], [60, 80], [60, 60], [80, 60], [90, 60], [100, 60], [120, 60]], 64, axis=0)
    targets = np.repeat(np.arange(8), 64)
    pure, mixed = (mixing(planner(sizes, mix), targets) for mix in (0, 0.5))
    assert pure.classes == pytest.approx(1)
    assert pure.poor
    assert mixed.classes > 4
    assert not mixed.poor
    assert mixing(planner(sizes, batches="random"), targets).classes == pytest.approx(mixed.classes_random, rel=0.1)
    assert "warning: steps hold few classes" in mixing_lines(pure)[-1]
    assert len(mixing_lines(mixed)) == 2


@pytest.mark.parametrize("world", [1, 2])
def test_the_loss_of_a_mixed_step_is_the_weighted_sum_over_its_images(world):
    source = ShapesSource("train", 40)
    data = MultiScaleDataModule(source, schedule=(24, 32), batch_size=8, mix=0.5)
    plan = data.planner.plan(0, world)
    dataset = BatchDataset(source)
    module = LitSppClassifier(SppClassifier("tiny", source.classes).eval())
    for step in plan:
        batch = dataset[step]
        assert [tuple(part["images"].shape[2:]) for part in batch["parts"]] == [part.size for part in step.parts]
        _, losses = module.loss(*zip(*map(readable, batch["parts"]), strict=True))
        one_by_one = [module.loss([x[None]], [y[None]])[1] for x, y in each_image(batch)]
        torch.testing.assert_close(losses, torch.cat(one_by_one), rtol=1e-4, atol=1e-5)


def each_image(batch):
    return [pair for part in batch["parts"] for pair in zip(part["images"], part["targets"], strict=True)]


def test_statistics_of_a_recalibrated_network_are_those_of_mixed_steps():
    source = ShapesSource("train", 64)
    network = SppClassifier("tiny", source.classes)
    look = Evaluation(source, "keep", 16, 0, 4.0, torch.device("cpu"))
    found = recalibrate_bn(network, 32, look, images=64, mix=0.5)
    want = copy.deepcopy(network).train()
    norms = [module for module in want.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None
    want.head.eval()
    plan = Planner(source.sizes, Schedule("single", (32,)), 16, mix=0.5).plan(0)
    for step in itertools.islice(plan, 4):
        want([network.normalize(part["images"]) for part in look.dataset(network)[step]["parts"]])
    got = [module for module in found.modules() if isinstance(module, nn.BatchNorm2d)]
    for one, other in zip(got, norms, strict=True):
        torch.testing.assert_close(one.running_mean, other.running_mean)
        torch.testing.assert_close(one.running_var, other.running_var)


def test_compile_takes_one_tensor_a_step():
    with pytest.raises(ConfigError, match=r"trainer.compile=true takes one tensor a step; add data.mix=0"):
        parse({"trainer": {"compile": True}})
    assert parse({"trainer": {"compile": True}, "data": {"mix": 0}}).trainer.compile
    assert parse({"trainer": {"compile": True}, "data": {"fit": "warp"}}).trainer.compile
