"""Steps whose number of images follows the pixels, and steps that see their images at several scales."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_mix import images, parts
from test_plan import image_sizes, photographs, worlds

from sppcls.data.planner import Planner
from sppcls.data.schedule import Schedule
from sppcls.data.shapes import ShapesSource
from sppcls.errors import ConfigError
from sppcls.models.classifier import SppClassifier
from sppcls.spec import parse
from sppcls.training.consistency import disagreement, seen_at
from sppcls.training.datamodule import MultiScaleDataModule
from sppcls.training.module import LitSppClassifier
from sppcls.training.trainer import pl

DRAWN = Schedule("drawn", (32, 48, 96))
SCHEDULES = [DRAWN, Schedule("alternate", (32, 96)), Schedule("all", (32, 64))]
HOW = [{}, {"mix": 0}, {"batches": "random"}, {"fit": "warp"}, {"fit": "warp", "batches": "aspect"}]


def planner(sizes, schedule=DRAWN, pixels=16 * 96 * 96, **how):
    return Planner(sizes, schedule, 32, seed=3, **{"mix": 0.45, "multiple": 8, "batch_pixels": pixels, **how})


@given(image_sizes, worlds, st.sampled_from(SCHEDULES), st.sampled_from(HOW), st.integers(0, 3))
@settings(max_examples=60, deadline=None)
def test_every_image_once_at_one_scale_and_ranks_agree(sizes, world, schedule, how, epoch):
    of = planner(sizes, schedule, **how)
    plan = of.plan(epoch, world)
    shares = [list(plan.of_rank(rank)) for rank in range(world)]
    assert {len(share) for share in shares} == {plan.steps} == {of.steps([epoch], world)}
    handed, weights = [], np.zeros(len(sizes))
    for number, step in enumerate(zip(*shares, strict=True)):
        of_step = [part for of_rank in step for part in parts(of_rank)]
        [scale] = {part.scale for part in of_step}
        assert all(1 <= len(images(of_rank)) <= of.images_at(scale) for of_rank in step)
        for part in of_step:
            handed += [(i, number) for i in part.indices]
            np.add.at(weights, list(part.indices), part.weight / len(plan))
    assert {i for i, _ in handed} == set(range(len(sizes)))
    assert len(handed) == len(sizes) + plan.repeats
    assert sorted(handed) == sorted(zip(plan.sequence.tolist(), plan.step_of.tolist(), strict=True))
    assert weights.sum() == pytest.approx(1)


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_step_has_about_the_pixels_it_may_at_every_scale(schedule, how):
    of = planner(photographs(3000), schedule, **how)
    most, (height, width), _ = of.largest_step()
    spent = {}
    for epoch in range(3):
        for step in list(of.plan(epoch))[:-1]:
            every = list(parts(step))
            pixels = sum(
                len(part.indices) * one[0].shape[2] * one[0].shape[3]
                for part in every
                for one in seen_at([torch.zeros(1, 3, *part.size)], schedule, 8)
            )
            spent.setdefault(every[0].scale, []).append(pixels)
            own = sum(len(part.indices) * part.size[0] * part.size[1] for part in every)
            assert own <= most * height * width
    assert set(spent) == set(schedule.loaded)
    for of_scale in spent.values():
        assert np.mean(of_scale) == pytest.approx(of.step_pixels, rel=0.2)


def test_the_pixels_of_an_epoch_count_every_scale():
    sizes, both, one = photographs(300), Schedule("all", (32, 64)), Schedule("single", (64,))
    for how in HOW:
        together, alone = (planner(sizes, of, None, **how).plan(0) for of in (both, one))
        expected = 0
        for step in together:
            for part in parts(step):
                for [seen] in seen_at([torch.zeros(len(part.indices), 3, *part.size)], both, 8):
                    expected += seen.shape[0] * seen.shape[2] * seen.shape[3]
        assert together.pixels == expected > alone.pixels
        assert [images(step) for step in together] == [images(step) for step in alone]


@given(st.integers(0, 5), st.integers(1, 60), st.lists(st.integers(1, 7), min_size=3, max_size=3))
def test_turns_are_the_first_steps_that_have_all_batches(epoch, batches, together):
    turns = DRAWN.turns(epoch, batches, dict(zip(DRAWN.choices, together, strict=True)))
    assert sum(turns.batches) >= batches > sum(turns.batches[:-1])
    assert turns.scales == DRAWN.scales_of(epoch, len(turns.scales))
    for first in range(0, len(turns.scales) - 2, 3):
        assert sorted(turns.scales[first : first + 3]) == [32, 48, 96]  # each has its turn


def test_the_middle_of_drawn_scales_stands_for_them():
    assert DRAWN.choices == (32, 48, 96)
    assert (DRAWN.middle, Schedule("alternate", (32, 48, 96)).middle) == (48, 96)
    spec = parse({"schedule": {"scales": [97, 50, 64]}})
    assert (spec.schedule.kind, spec.val_scale) == ("drawn", 64)
    assert parse({}).test_scales == (32, 48, 64, 96, 128)
    listed_twice = Schedule("drawn", (32, 64, 64))
    assert sorted(listed_twice.scales_of(0, 6)) == [32, 32, 64, 64, 64, 64]


def test_the_pixels_of_a_step_are_those_of_the_batch_size_at_the_middle_scale():
    sizes = photographs(500)
    assert planner(sizes, pixels="auto").images_at(48) == 32
    assert planner(sizes, Schedule("alternate", (32, 96)), pixels="auto").images_at(96) == 32
    one_aspect = planner(sizes, pixels="auto", mix=0)
    assert {one_aspect.images_at(scale) for scale in (32, 48, 96)} == {32}
    assert all(len(parts(step)) == 1 for step in one_aspect.plan(0))
    with pytest.raises(ConfigError, match="one tensor a step"):
        parse({"trainer": {"compile": True}, "data": {"mix": 0, "batch_pixels": 10**6}})


def test_the_work_of_epochs_is_that_of_their_pixels():
    sizes = np.array([[100, 100]] * 640)
    for schedule in SCHEDULES:
        of = planner(sizes, schedule)
        assert of.work(range(4)) / 4 * 640 == pytest.approx(sum(of.plan(e).pixels for e in range(4)) / 4, rel=0.02)


def test_pixels_that_hold_no_two_images_are_refused():
    sizes = np.array([[100, 100], [100, 200], [200, 100], [90, 90]])
    with pytest.raises(ConfigError, match="less than two images at scale 96; allowed:") as refused:
        planner(sizes, pixels=9000)
    least = int(str(refused.value).split("allowed: ")[1].split()[0])
    assert planner(sizes, pixels=least).images_at(96) == 2
    with pytest.raises(ConfigError):
        planner(sizes, pixels=least - 1)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_lightning_takes_every_step_of_epochs_of_different_length(schedule, tmp_path):
    source = ShapesSource("train", 60, 0)
    data = MultiScaleDataModule(
        source, ShapesSource("val", 20, 0), schedule=schedule, batch_pixels=9 * 64 * 96, mix=0.45, multiple=8
    )
    network = SppClassifier("tiny", data.classes, scales=schedule.choices, align="stretch")
    taken = []

    class Counted(LitSppClassifier):
        def training_step(self, batch, batch_idx):
            taken.append((self.trainer.current_epoch, self.trainer.is_last_batch))
            return super().training_step(batch, batch_idx)

    trainer = pl.Trainer(
        max_epochs=3, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=tmp_path,
    )  # fmt: skip
    module = Counted(network)
    trainer.fit(module, datamodule=data)
    steps = [data.plan(epoch).steps for epoch in range(3)]
    assert [epoch for epoch, _ in taken] == [epoch for epoch, count in enumerate(steps) for _ in range(count)]
    assert [last for _, last in taken].count(True) == 3
    assert trainer.global_step == sum(steps)
    assert trainer.optimizers[0].param_groups[0]["lr"] == pytest.approx(0, abs=1e-9)  # the decay ends with the run


def test_disagreement_is_the_mean_divergence_from_the_mean_logits():
    logits = [torch.randn(4, 5, generator=torch.manual_seed(k)).requires_grad_() for k in range(3)]
    mean = torch.stack(logits).mean(0).detach().softmax(1)
    expected = [
        sum(p * (math.log(p) - math.log(q)) for p, q in zip(mean[i].tolist(), one[i].softmax(0).tolist(), strict=True))
        for one in logits
        for i in range(4)
    ]
    found = disagreement(logits)
    np.testing.assert_allclose(found.tolist(), np.reshape(expected, (3, 4)).mean(0), rtol=1e-4)
    found.sum().backward()
    gradient = [(one.softmax(1) - mean).detach() / 3 for one in logits]  # none goes through the mean
    for one, wanted in zip(logits, gradient, strict=True):
        torch.testing.assert_close(one.grad, wanted)


def test_consistency_needs_the_scales_of_a_step():
    with pytest.raises(ConfigError, match="schedule=all"):
        parse({"optim": {"consistency": 1.0}})
    assert parse({"optim": {"consistency": 1.0}, "schedule": {"kind": "all", "scales": [32, 64]}}).val_scale == 64


def test_all_is_the_mean_loss_over_its_scales_and_moves_with_consistency():
    data = MultiScaleDataModule(
        ShapesSource("train", 12, 0), schedule=Schedule("all", (32, 64)), batch_size=12, multiple=8
    )
    network = SppClassifier("tiny", data.classes, align="stretch").eval()
    batch = next(iter(data.train_dataloader()))
    chosen = [batch["images"]], [batch["targets"]]

    def loss(schedule, **optim):
        module = LitSppClassifier(network, **optim)
        data.schedule = schedule
        module.trainer = pl.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
        module.trainer.datamodule = data
        return module.loss(*chosen)

    both, plain = loss(Schedule("all", (32, 64))), loss(Schedule("single", (64,)))
    [small] = seen_at([network.normalize(batch["images"])], Schedule("all", (32, 64)), 8)[1]
    own = torch.nn.functional.cross_entropy(network(small), batch["targets"], reduction="none", label_smoothing=0.1)
    torch.testing.assert_close(both[0], plain[0])
    torch.testing.assert_close(both[1], (plain[1] + own) / 2)
    apart = disagreement([plain[0], network(small)])
    torch.testing.assert_close(loss(Schedule("all", (32, 64)), consistency=3.0)[1], both[1] + 3 * apart)


@pytest.mark.parametrize("batch_size", [2, 3, 4, 8])
def test_small_batches_have_two_images_at_the_largest_scale_by_default(batch_size):
    sizes = np.random.default_rng(0).integers(40, 300, (60, 2))
    schedule = Schedule("drawn", (32, 48, 64, 96, 128))
    planner = Planner(sizes, schedule, batch_size, mix=0.45, multiple=8, batch_pixels="auto")
    assert planner.images_at(128) == 2
    assert planner.plan(0).images == 60
