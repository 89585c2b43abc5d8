"""Training under Lightning: the network sees the plan, epoch by epoch, also after a resume."""

import csv
import itertools
import json
import math
import time
from types import SimpleNamespace

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from hypothesis import given
from hypothesis import strategies as st
from pytorch_lightning.callbacks import WeightAveraging
from torch.optim.swa_utils import AveragedModel

from sppcls import LitSppClassifier, MultiScaleDataModule, SppClassifier, load_model, model_files
from sppcls.build import build_planner, build_schedule
from sppcls.commands import main
from sppcls.data.schedule import Schedule
from sppcls.data.shapes import ShapesSource
from sppcls.data.source import ArraySource
from sppcls.deploy.parity import model_card
from sppcls.errors import ConfigError, SppclsError
from sppcls.model_files import load
from sppcls.models.backbones import build_trunk
from sppcls.models.parts import Parts
from sppcls.report.run_lines import plan_table, untrained_lines
from sppcls.run_folder import read_config
from sppcls.spec import parse
from sppcls.training import overfitting
from sppcls.training.callbacks import Curves, SaveLastAndBest
from sppcls.training.largest import LargestShapeFirst
from sppcls.training.optim import parameter_groups
from sppcls.training.preflight import resume_point, threads_of_each
from sppcls.training.run import run
from sppcls.training.trainer import DurableCheckpointIO, build_trainer, plain_trainer, quiet_lightning
from sppcls.training_settings import OptimSpec

SCALES = (24, 32)


class Recorder(pl.Callback):
    """Keeps what the trunk really saw, as (epoch, H, W, images)."""

    def __init__(self):
        self.seen = []

    def on_train_start(self, trainer, module):
        def note(_, args):
            if module.training:
                tensors = args[0].tensors if isinstance(args[0], Parts) else args
                self.seen += [(trainer.current_epoch, *tensor.shape[2:], len(tensor)) for tensor in tensors]

        module.network.trunk.register_forward_pre_hook(note)


def network(classes=None, sets=(), **options):
    torch.manual_seed(0)
    return SppClassifier(
        build_trunk("tiny", width=0.125, norm_scales=sets), classes or ShapesSource.classes, levels=(2, 1), **options
    )


def datamodule(workers=0, **options):
    source = ShapesSource("train", 60)
    how = {"schedule": Schedule("alternate", SCALES)} | options
    return MultiScaleDataModule(source, ShapesSource("val", 24), batch_size=8, num_workers=workers, **how)


def trainer(tmp_path, epochs, callbacks=(), every_steps=None, **options):
    quiet_lightning()
    values = {
        "accelerator": "cpu",
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "use_distributed_sampler": False,
        "num_sanity_val_steps": 0,
        "default_root_dir": tmp_path,
        "plugins": [DurableCheckpointIO()],
    }
    return pl.Trainer(
        max_epochs=epochs, callbacks=[SaveLastAndBest(tmp_path, every_steps), *callbacks], **(values | options)
    )


def planned(data, epochs):
    return [(e, *b.size, len(b.indices)) for e in epochs for b in data.plan(e)]


@pytest.mark.parametrize("workers", [0, 2])
def test_the_network_sees_the_plan_also_after_a_resume(tmp_path, workers):
    seen, data = Recorder(), datamodule(workers)
    trainer(tmp_path, 2, [seen]).fit(LitSppClassifier(network()), data)
    assert seen.seen == planned(data, (0, 1))
    resumed, again = Recorder(), datamodule(workers)
    trainer(tmp_path, 4, [resumed]).fit(LitSppClassifier(network()), again, ckpt_path=tmp_path / "last.ckpt")
    assert resumed.seen == planned(again, (2, 3))


class Stop(pl.Callback):
    """Ends training in the middle of an epoch, like a kill."""

    def __init__(self, step):
        self.step = step

    def on_train_batch_end(self, trainer, *_):
        if trainer.global_step == self.step:
            raise RuntimeError("killed")


def averaging(tmp_path, ema):
    """Return the callback that a run with ``optim.ema`` has, in a list, or none."""
    callbacks = build_trainer(spec(tmp_path, optim={"ema": ema}), tmp_path).callbacks
    return [callback for callback in callbacks if isinstance(callback, WeightAveraging)]


SCHEDULES = {
    "alternate": {"schedule": Schedule("alternate", SCALES)},
    "pixels": {"schedule": Schedule("alternate", SCALES), "batch_pixels": 6000, "mix": 0.4},
    "drawn": {"schedule": Schedule("drawn", (16, *SCALES)), "batch_pixels": 6000},
    "all": {"schedule": Schedule("all", SCALES)},
    "regions": {"schedule": Schedule("alternate", SCALES), "mix": 0.4},
}


@pytest.mark.parametrize(
    ("workers", "ema", "sets", "name"),
    [
        (0, 0.0, (), "alternate"),
        (2, 0.0, (), "alternate"),
        (0, 0.999, (), "alternate"),
        (0, 0.0, SCALES, "alternate"),
        (2, 0.0, SCALES, "pixels"),
        (0, 0.9, (16, *SCALES), "drawn"),
        (0, 0.0, SCALES, "all"),
        (0, 0.0, (), "regions"),
    ],
)
def test_a_run_killed_inside_an_epoch_goes_on_to_the_same_weights(tmp_path, workers, ema, sets, name):
    options = {"lr": 1e-2, "clip_norm": 1.0, "consistency": float(name == "all"), "regions": float(name == "regions")}
    whole = LitSppClassifier(network(sets=sets), **options)
    unbroken = Recorder()
    trainer(tmp_path / "whole", 3, [unbroken, *averaging(tmp_path, ema)]).fit(
        whole, datamodule(workers, **SCHEDULES[name])
    )
    steps = [datamodule(**SCHEDULES[name]).plan(epoch).steps for epoch in range(3)]
    broken = LitSppClassifier(network(sets=sets), **options)
    # Killed before the save of its last step: that step is done again.
    stopping = trainer(tmp_path / "broken", 3, [*averaging(tmp_path, ema), Stop(steps[0] + 4)], every_steps=1)
    with pytest.raises(RuntimeError, match="killed"):
        stopping.fit(broken, datamodule(workers, **SCHEDULES[name]))
    rest = Recorder()
    finished = LitSppClassifier(network(sets=sets), **options)
    going_on = trainer(tmp_path / "broken", 3, [rest, *averaging(tmp_path, ema)])
    going_on.fit(finished, datamodule(workers, **SCHEDULES[name]), ckpt_path=tmp_path / "broken" / "last.ckpt")
    assert going_on.global_step == sum(steps)
    assert rest.seen == unbroken.seen[-len(rest.seen) :]
    if name == "alternate":  # of a mixed step the trunk sees several tensors
        assert len(rest.seen) == sum(steps) - steps[0] - 3
    for key, tensor in whole.network.state_dict().items():
        assert torch.equal(tensor, finished.network.state_dict()[key]), key


@pytest.mark.parametrize("decay", [0.5, 0.9, 0.999, 0.9999])
def test_averaged_weights_forget_the_first_ones(tmp_path, decay):
    (callback,) = averaging(tmp_path, decay)
    model = torch.nn.Linear(1, 1, bias=False).double()
    torch.nn.init.ones_(model.weight)
    average = AveragedModel(model, use_buffers=True, **callback._kwargs)
    average.update_parameters(model)
    torch.nn.init.zeros_(model.weight)
    left = 1.0
    for step in range(1, 931):
        average.update_parameters(model)
        left *= min(decay, (1 + step) / (10 + step))
        assert average.module.weight.item() == pytest.approx(left, rel=1e-4)
    assert left < 1e-12


def spec(tmp_path, **more):
    values = {
        "data": {"train_size": 48, "val_size": 24, "batch_size": 12, "num_workers": 0, "cache": "ram"},
        "model": {"width": 0.125, "levels": [2, 1]},
        "schedule": {"kind": "alternate", "scales": list(SCALES)},
        "trainer": {"max_epochs": 2, "accelerator": "cpu"},
        "metrics": {"gap_images": 24, "test_scales": [16, 24, 32]},
        "run_dir": str(tmp_path / "run"),
    }
    for group, chosen in more.items():
        values[group] = values[group] | chosen if isinstance(chosen, dict) and group in values else chosen
    return parse(values)


def test_a_scale_of_validation_that_is_no_test_scale_is_in_the_table_and_on_the_page(tmp_path):
    affine = {"norm_per_scale": True, "norm_affine": "shared"}
    metrics = {"test_scales": [16], "recalibrate": 12}
    assert run(spec(tmp_path, model=affine, metrics=metrics, trainer={"max_epochs": 1})) == 0
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert [row["scale"] for row in summary["scales"]] == [16, 32]
    assert np.shape(summary["agreement"]) == (2, 2)
    assert summary["scale_spread"] == 0  # of the scales that were asked for
    assert "agreement" in (tmp_path / "run" / "report.html").read_text().lower()


def test_a_run_leaves_a_whole_folder(tmp_path, capsys):
    wanted = spec(tmp_path)
    assert run(wanted) == 0
    folder = tmp_path / "run"
    names = {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}
    assert names == {
        "config.yaml", "status.json", "summary.json", "metrics.csv", "train.log", "report.html",
        "gap.csv", "answers.npz", "mistakes.json", "images.npz", "summary.csv", "summary.md", ".lock",
        "checkpoints/last.ckpt", "checkpoints/best.ckpt", "checkpoints/previous.ckpt", "checkpoints/SHA256SUMS",
    }  # fmt: skip
    summary = json.loads((folder / "summary.json").read_text())
    promised = "acc1 generalization_gap scales scale_spread scale_consistency epochs seconds parameters seed"
    assert set(promised.split()) <= set(summary)
    assert [row["scale"] for row in summary["scales"]] == [16, 24, 32]
    assert {"scale", "acc1", "loss", "ece"} <= set(summary["scales"][0])
    assert summary["acc1"] == summary["scales"][2]["acc1"]
    assert json.loads((folder / "status.json").read_text())["state"] == "finished"
    rows = (folder / "metrics.csv").read_text().splitlines()
    assert [row.split(",")[2] for row in rows] == ["scale", "24", "32"]
    assert read_config(folder) == wanted
    out = capsys.readouterr().out
    assert "alternate schedule" in out
    assert f"run folder: {folder}" in out


def test_a_folder_with_other_things_in_it_is_left_alone(tmp_path, capsys):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "photo.jpg").write_text("mine")
    assert run(spec(tmp_path)) == 2
    assert "other files" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["photo.jpg"]


def test_a_run_that_saved_nothing_may_be_started_again(tmp_path):
    assert run(spec(tmp_path, model={"backbone": "resnet81"})) == 2
    assert run(spec(tmp_path)) == 0


def damaged(file, how):
    file.write_bytes(file.read_bytes()[:2000] if how is None else how)


@pytest.mark.parametrize("how", [b"junk", b"", None])
def test_a_damaged_checkpoint_gives_way_to_the_one_before(tmp_path, capsys, how):
    assert run(spec(tmp_path)) == 0
    last = tmp_path / "run" / "checkpoints" / "last.ckpt"
    wanted = torch.load(last, weights_only=True)["state_dict"]
    damaged(last, how)
    capsys.readouterr()
    assert run(spec(tmp_path, resume=str(tmp_path / "run"))) == 0
    assert "last.ckpt is damaged; resumes from" in capsys.readouterr().out
    again = torch.load(last, weights_only=True)["state_dict"]  # of the epoch that was lost, trained again
    assert all(torch.equal(tensor, again[name]) for name, tensor in wanted.items())


@pytest.mark.parametrize("how", [b"junk", b"", None])
def test_without_a_whole_checkpoint_a_resume_ends_and_changes_nothing(tmp_path, capsys, how):
    assert run(spec(tmp_path)) == 0
    for name in ("last.ckpt", "previous.ckpt"):
        damaged(tmp_path / "run" / "checkpoints" / name, how)
    before = {p: p.read_bytes() for p in (tmp_path / "run").rglob("*") if p.is_file()}
    capsys.readouterr()
    assert run(spec(tmp_path, trainer={"max_epochs": 3}, resume=str(tmp_path / "run"))) == 1
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "last.ckpt is damaged" in line
    assert {p: p.read_bytes() for p in (tmp_path / "run").rglob("*") if p.is_file()} == before


def test_a_resume_reads_its_checkpoint_once(tmp_path, monkeypatch):
    assert run(spec(tmp_path)) == 0
    read, seen = model_files.load_plain, []
    monkeypatch.setattr(model_files, "load_plain", lambda file: seen.append(file.name) or read(file))
    assert run(spec(tmp_path, trainer={"max_epochs": 3}, resume=str(tmp_path / "run"))) == 0
    assert seen == ["last.ckpt"]


def test_the_logged_scale_is_the_schedules(tmp_path):
    assert run(spec(tmp_path, data={"train_size": 24, "batch_size": 24}, trainer={"max_epochs": 4})) == 0
    rows = (tmp_path / "run" / "metrics.csv").read_text().splitlines()[1:]
    assert [row.split(",")[2] for row in rows] == ["24", "32", "24", "32"]


def test_load_model_answers_as_the_trained_network(tmp_path):
    assert run(spec(tmp_path)) == 0
    for path in (tmp_path / "run", tmp_path / "run" / "checkpoints" / "best.ckpt"):
        model = load_model(path)
        assert not model.training
        assert (model.classes, model.levels, model.scales) == (ShapesSource.classes, (2, 1), SCALES)
        assert torch.isfinite(model(torch.zeros(1, 3, 40, 56))).all()


def test_a_run_is_not_written_over_but_goes_on(tmp_path, capsys):
    assert run(spec(tmp_path)) == 0
    before = (tmp_path / "run" / "summary.json").read_text()
    assert run(spec(tmp_path)) == 2
    assert "already holds a run" in capsys.readouterr().err
    assert (tmp_path / "run" / "summary.json").read_text() == before
    assert run(spec(tmp_path, trainer={"max_epochs": 3}, resume=str(tmp_path / "run"))) == 0
    rows = (tmp_path / "run" / "metrics.csv").read_text().splitlines()
    assert [row.split(",")[0] for row in rows] == ["epoch", "0", "1", "2"]


@pytest.mark.parametrize(
    "more",
    [
        {"optim": {"name": "sgd", "ema": 0.9, "decay": "step", "class_weights": "balanced", "label_smoothing": 0.1}},
        {"augment": {"mixup": 0.4, "cutmix": 1.0, "brightness": 0.2, "erasing": 0.5}},
        {"model": {"pool": "gap", "head": "stack", "hidden": [16]}, "schedule": {"kind": "progressive"}},
        {
            "model": {"pool": "fixed"},
            "data": {"fit": "warp"},
            "schedule": {"kind": "single", "scales": [24]},
            "metrics": {"test_scales": None},
        },
        {"model": {"freeze": "backbone"}, "schedule": {"kind": "random", "every": "batch"}, "data": {"fit": "crop"}},
        {"trainer": {"precision": "bf16-mixed", "deterministic": True}},
    ],
    ids=["optim", "augment", "gap", "fixed", "freeze", "precision"],
)
def test_settings_train(tmp_path, more):
    assert run(spec(tmp_path, **more)) == 0
    assert math.isfinite(json.loads((tmp_path / "run" / "summary.json").read_text())["scales"][0]["loss"])


@pytest.mark.parametrize(
    ("more", "status", "said"),
    [
        ({"schedule": {"kind": "single", "scales": [8]}, "model": {"backbone": "zf5"}}, 2, "smallest scale is"),
        ({"model": {"backbone": "resnet81"}}, 2, "did you mean"),
        ({"data": {"name": "folder", "root": "/nowhere/at/all"}}, 3, "/nowhere/at/all"),
        ({"trainer": {"accelerator": "abacus"}}, 2, "abacus"),
        ({"logger": {"name": "wandb"}}, 2, "uv run --extra wandb ..., or pip install 'sppcls[wandb]'"),
    ],
    ids=["scale", "backbone", "root", "accelerator", "extra"],
)
def test_wrong_input_is_one_line_and_a_status(tmp_path, capsys, more, status, said):
    assert run(spec(tmp_path, **more)) == status
    err = capsys.readouterr().err.strip().splitlines()
    assert len(err) == 1
    assert err[0].startswith("error: ")
    assert said in err[0]
    state = json.loads((tmp_path / "run" / "status.json").read_text())
    assert state["state"] == "failed"
    assert said in state["error"]
    assert not (tmp_path / "run" / "summary.json").exists()


def test_what_does_not_fit_in_memory_fails_before_the_first_epoch(tmp_path, monkeypatch):
    module, data = LitSppClassifier(network()), datamodule()
    buffers = {name: buffer.clone() for name, buffer in module.network.named_buffers()}
    real = module.loss

    def scarce(images, targets):
        if sum(map(len, images)) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(images, targets)

    monkeypatch.setattr(module, "loss", scarce)
    seen = Recorder()
    with pytest.raises(
        ConfigError, match=r"a batch of 8 images at \d+x\d+ does not fit in memory: try data.batch_size=2"
    ):
        trainer(tmp_path, 1, [LargestShapeFirst(), seen]).fit(module, data)
    assert all(torch.equal(buffer, buffers[name]) for name, buffer in module.network.named_buffers())


def test_no_decay_on_norms_and_biases_and_a_rate_of_its_own_for_the_trunk():
    net = network()
    groups = parameter_groups(net, OptimSpec(lr=1.0, backbone_lr=0.1, weight_decay=0.5))
    assert sum(len(g["params"]) for g in groups) == len(list(net.parameters()))
    for group in groups:
        assert all((p.ndim > 1) == (group["weight_decay"] > 0) for p in group["params"])
    trunk = {id(p) for p in net.trunk.parameters()}
    assert all((group["lr"] == 0.1) == (id(p) in trunk) for group in groups for p in group["params"])
    net.freeze_trunk()
    assert {id(p) for g in parameter_groups(net, OptimSpec()) for p in g["params"]}.isdisjoint(trunk)


def test_a_checkpoint_that_is_not_ours_is_refused(tmp_path):
    class Evil:
        def __reduce__(self):
            return (print, ("pwned",))

    torch.save({"state_dict": {}, "x": Evil()}, tmp_path / "evil.ckpt")
    (tmp_path / "text.ckpt").write_text("no checkpoint")
    torch.save({"state_dict": {}}, tmp_path / "foreign.ckpt")
    for name, said in (("evil", "refused"), ("text", "damaged|refused"), ("foreign", "not a model of this")):
        with pytest.raises(SppclsError, match=said):
            load_model(tmp_path / f"{name}.ckpt")
    with pytest.raises(ConfigError, match="no model at"):
        load_model(tmp_path / "absent")
    with pytest.raises(ConfigError, match=r"no checkpoints/last\.ckpt"):
        load_model(tmp_path)


def table(path):
    with path.open() as file:
        return list(csv.DictReader(file))


def gap_rows(folder):
    return [{key: float(value) for key, value in row.items()} for row in table(folder / "gap.csv")]


def test_the_gaps_curves_change_nothing_and_end_at_what_is_measured_afterwards(tmp_path):
    weights = []
    for every in (0, 1):
        more = {"metrics": {"test_scales": [24, 32], "gap_images": 30, "gap_every": every}, "data": {"cache": "none"}}
        assert run(spec(tmp_path / str(every), **more)) == 0
        state = torch.load(tmp_path / str(every) / "run" / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
        weights.append(state)
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert not (tmp_path / "0" / "run" / "gap.csv").exists()
    folder = tmp_path / "1" / "run"
    rows = gap_rows(folder)
    assert [(row["epoch"], row["scale"]) for row in rows] == [(0, 24), (0, 32), (1, 24), (1, 32)]
    assert all(row["gap"] == pytest.approx(row["train_acc1"] - row["val_acc1"], abs=1e-6) for row in rows)
    summary = json.loads((folder / "summary.json").read_text())
    for row, measured, test in zip(rows[2:], summary["gaps"], summary["scales"], strict=True):
        assert row["scale"] == measured["scale"] == test["scale"]
        assert row["train_acc1"] == pytest.approx(measured["train_acc1"], abs=1e-6)
        assert row["val_acc1"] == pytest.approx(test["acc1"], abs=1e-6)
    assert summary["generalization_gap"] == summary["gaps"][-1]["generalization_gap"]
    epochs = [float(row["megapixels"]) for row in table(folder / "metrics.csv")]
    assert summary["train_megapixels"] == pytest.approx(sum(epochs), abs=0.002)


@given(st.floats(1, 1e9), st.floats(1, 1e5), st.integers(1, 40), st.integers(1, 700))
def test_the_gaps_curves_have_fewer_images_before_they_have_fewer_points(trained, image, validations, most):
    images, points = overfitting.affordable(trained, image, validations, most)
    budget = 0.1 * trained / image
    choices = [(min(int(budget / count), most), count) for count in range(validations, 0, -1)]
    enough = [choice for choice in choices if choice[0] >= min(most, 50)]
    assert (images, points) == (enough[0] if enough else (max(choices[-1][0], 1), 1))
    assert images * points <= budget or (images, points) == (1, 1)


def trained_pixels(spec):
    """Return what the images of a run's epochs are as squares of their scales, each epoch asked for its steps."""
    images, steps = spec.data.train_size, -(-spec.data.train_size // spec.data.batch_size)
    drawn = [build_schedule(spec).scales_of(epoch, steps) for epoch in range(spec.trainer.max_epochs)]
    return sum(images * sum(scale**2 for scale in scales) / len(scales) for scales in drawn)


def test_the_gaps_curves_see_a_tenth_of_the_pixels_by_default(tmp_path, monkeypatch):
    real, seen = overfitting.evaluate_scales, []

    def counted(network, look, scales):
        seen.append(len(look.source.targets) * scales[0] ** 2)
        return real(network, look, scales)

    monkeypatch.setattr(overfitting, "evaluate_scales", counted)
    asked = spec(tmp_path, data={"train_size": 120, "batch_size": 40}, metrics={"gap_images": 600})
    assert run(asked) == 0
    assert 0.05 < sum(seen) / trained_pixels(asked) <= 0.1
    assert {row["epoch"] for row in gap_rows(tmp_path / "run")} == {1}
    assert "after 1 of 2 validations" in (tmp_path / "run" / "train.log").read_text()


@pytest.mark.parametrize("schedule", [{}, {"kind": "random", "every": "batch"}, {"kind": "single", "scales": [32]}])
@pytest.mark.parametrize(("check", "gap_scales"), [(1, None), (2, [48]), (1, [24, 96])])
@pytest.mark.parametrize("world", [1, 2])
def test_the_gaps_curves_follow_from_counts_alone(tmp_path, schedule, check, gap_scales, world):
    asked = spec(
        tmp_path,
        data={"train_size": 2000, "batch_size": 40},
        schedule=schedule,
        trainer={"max_epochs": 9},
        metrics={"gap_images": 600, "gap_scales": gap_scales},
    )
    (curves,) = (c for c in build_trainer(asked, tmp_path).callbacks if isinstance(c, overfitting.GapCurves))
    data = MultiScaleDataModule(ShapesSource("train", 2000), ShapesSource("val", 12), schedule=build_schedule(asked))
    of_rank = {"check_val_every_n_epoch": check, "max_epochs": 9, "num_training_batches": 50, "world_size": world}
    curves.on_train_start(SimpleNamespace(datamodule=data, is_global_zero=False, **of_rank), None)
    image = sum(scale**2 * (1 if scale == data.val_scale else 2) for scale in asked.gap_scales)
    assert 0.08 < image * curves.images * len(curves._epochs) * world / trained_pixels(asked) <= 0.1
    last = 9 // check * check
    assert last in curves._epochs <= set(range(check, last + 1, check))
    apart = [b - a for a, b in itertools.pairwise([0, *sorted(curves._epochs)])]
    assert max(apart) - min(apart) <= check


@pytest.mark.parametrize(("every", "check", "measured"), [(2, 1, [1, 3]), (3, 2, [3]), (1, 2, [1, 3])])
def test_the_gap_is_measured_at_validations_as_often_as_asked(tmp_path, every, check, measured):
    more = {"metrics": {"test_scales": [24], "gap_images": 12, "gap_every": every}}
    assert run(spec(tmp_path, trainer={"max_epochs": 4, "check_val_every": check, "accelerator": "cpu"}, **more)) == 0
    assert sorted({row["epoch"] for row in gap_rows(tmp_path / "run")}) == measured


def test_a_resume_with_another_number_of_threads_says_so(tmp_path, monkeypatch):
    assert run(spec(tmp_path)) == 0
    again, longer = (spec(tmp_path, resume=str(tmp_path / "run"), trainer={"max_epochs": epochs}) for epochs in (2, 3))
    assert resume_point(again).line.endswith("settings and images unchanged")
    monkeypatch.setattr(torch, "get_num_threads", lambda: 7)
    assert "; changed: threads 1 -> 7" in resume_point(again).line
    assert "; changed: trainer.max_epochs 2 -> 3, threads 1 -> 7" in resume_point(longer).line


def test_ranks_share_the_cores_unless_the_environment_says_otherwise(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr("os.cpu_count", lambda: 12)
    assert [threads_of_each(ranks) for ranks in (1, 4, 24)] == [torch.get_num_threads(), 3, 1]
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert threads_of_each(4) == torch.get_num_threads()


def test_label_smoothing_stands_beside_the_calibration_error(tmp_path, capsys):
    assert run(spec(tmp_path, optim={"label_smoothing": 0.05}, trainer={"max_epochs": 1})) == 0
    folder = tmp_path / "run"
    said = {"run": capsys.readouterr().out}
    with pytest.raises(SystemExit):
        main(["evaluate", str(folder), "--scales", "24"])
    said["evaluate"] = capsys.readouterr().out
    said |= {name: (folder / name).read_text() for name in ("report.html", "summary.md")}
    said["card"] = model_card(load(folder), folder, {})
    for where, text in said.items():
        assert "ECE (label smoothing 0.05)" in text, where


class Draws:
    """Counts the generators that draw a number an image, as each shuffling of an epoch does."""

    def __init__(self, monkeypatch, images):
        self.shuffles, self.images, make = 0, images, np.random.default_rng
        monkeypatch.setattr(np.random, "default_rng", lambda *seed: Counting(self, make(*seed)))


class Counting:
    def __init__(self, draws, generator):
        self.draws, self.generator = draws, generator

    def random(self, *size):
        self.draws.shuffles += size == (self.draws.images,)
        return self.generator.random(*size)

    def __getattr__(self, name):
        return getattr(self.generator, name)


class AtFirstBatch(pl.Callback):
    def __init__(self, draws):
        self.draws, self.before = draws, None

    def on_train_batch_start(self, *_):
        self.before = self.draws.shuffles if self.before is None else self.before


def test_an_epoch_is_shuffled_once_and_two_before_the_first_batch(tmp_path, monkeypatch):
    draws = Draws(monkeypatch, 25)
    images = ArraySource(np.zeros((25, 8, 8, 3), np.uint8), [0] * 25, ShapesSource.classes, "grey")
    data = MultiScaleDataModule(images, images, schedule=(16, 24), batch_size=16)
    plan_table(parse({"trainer": {"max_epochs": 30}}), data.planner)
    first = AtFirstBatch(draws)
    callbacks = [LargestShapeFirst(), Curves(tmp_path / "metrics.csv"), first]
    plain_trainer(30, "cpu", *callbacks).fit(LitSppClassifier(network()), datamodule=data)
    megapixels = sum(data.plan(epoch).pixels for epoch in range(30))
    assert megapixels > 0
    assert first.before <= 2
    assert draws.shuffles <= 31


@pytest.mark.parametrize(
    ("schedule", "epochs", "left"),
    [
        ({"kind": "alternate", "scales": [64, 48, 96]}, 1, "48, 96"),
        ({"kind": "alternate", "scales": [64, 48, 96]}, 3, None),
        ({"scales": [64, 48, 96]}, 4, None),
        ({"kind": "progressive", "scales": [48, 64, 96]}, 2, "96"),
        ({"kind": "random", "scales": [48, 96]}, 1, None),
    ],
)
def test_a_run_too_short_for_its_scales_says_so(schedule, epochs, left):
    spec = parse({"schedule": schedule, "trainer": {"max_epochs": epochs}})
    lines = untrained_lines(spec, build_planner(spec, np.full((40, 2), 50)))
    assert (not lines) if left is None else f"schedule.scales {left};" in lines[0]


@pytest.mark.parametrize("scales", [(32, 24), (24, 32)])
def test_the_headline_is_at_the_largest_scale_whatever_the_last_epoch_trains(tmp_path, scales):
    wanted = spec(tmp_path, schedule={"kind": "alternate", "scales": scales}, metrics={"test_scales": [24, 32]})
    assert run(wanted) == 0
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    by_scale = {row["scale"]: row["acc1"] for row in summary["scales"]}
    gaps = {row["scale"]: row["generalization_gap"] for row in summary["gaps"]}
    assert (summary["val_scale"], summary["acc1"], summary["generalization_gap"]) == (32, by_scale[32], gaps[32])
    with (tmp_path / "run" / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {row["val_scale"] for row in rows} == {"32"}
    assert float(rows[-1]["val_acc1"]) == pytest.approx(summary["acc1"], abs=1e-5)
    assert "val at 32" in (tmp_path / "run" / "train.log").read_text()


def test_the_seconds_of_a_resumed_run_count_all_its_parts(tmp_path):
    first, second = (Curves(tmp_path / "metrics.csv", time.monotonic() - seconds) for seconds in (100, 5))
    second.load_state_dict(first.state_dict())
    assert second.run_seconds == pytest.approx(105, abs=1)


def test_a_run_stops_where_validation_has_not_become_better_for_long_enough(tmp_path):
    never = {"optim": {"lr": 1e-12, "warmup_epochs": 0}, "trainer": {"max_epochs": 9, "patience": 2}}
    assert run(spec(tmp_path, **never)) == 0
    with (tmp_path / "run" / "metrics.csv").open() as file:
        found = [float(row["val_acc1"]) for row in csv.DictReader(file)]
    assert len(found) == found.index(max(found)) + 1 + 2 < 9


def test_levels_and_scales_far_from_what_is_trained_are_warned_of(tmp_path):
    assert run(spec(tmp_path, model={"levels": [64, 1]}, metrics={"test_scales": [24, 200]})) == 0
    said = (tmp_path / "run" / "train.log").read_text()
    assert "64 bins per side, but the map has" in said
    assert "scale 200 is more than 4 times the largest trained" in said


def test_another_package_adds_an_optimiser_and_a_callback(tmp_path, monkeypatch):
    seen = []

    class Seeing(pl.Callback):
        def on_train_end(self, trainer, *_):
            seen.append(type(trainer.optimizers[0]).__name__)

    points = {
        "sppcls.optimizers": ("radam", lambda groups, values: torch.optim.RAdam(groups, lr=values.lr)),
        "sppcls.callbacks": ("seeing", lambda values: Seeing() if values.seed == 0 else None),
    }

    def entry_points(group):
        name, made = points.get(group, ("", None))
        return [SimpleNamespace(name=name, load=lambda: made)] if name else []

    monkeypatch.setattr("sppcls.plugins.entry_points", entry_points)
    assert run(spec(tmp_path, optim={"name": "radam"}, trainer={"callbacks": ["seeing"]})) == 0
    assert seen == ["RAdam"]


def test_a_network_gets_images_of_the_multiple_that_it_was_built_for():
    images = ShapesSource("train", 12)
    for align, multiple in (("stretch", 1), ("none", 8)):
        data = MultiScaleDataModule(images, images, schedule=(16, 24), batch_size=4, multiple=multiple)
        module = LitSppClassifier(SppClassifier("tiny", images.classes, align=align))
        with pytest.raises(ConfigError, match=f"multiple is {multiple}; give it the network's, {9 - multiple}"):
            plain_trainer(1, "cpu").fit(module, datamodule=data)
