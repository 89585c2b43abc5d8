"""After a training: batch-norm statistics of each test scale, and a run tuned further at one scale."""

import json

import pytest
import torch

from sppcls import load_model
from sppcls.commands import main
from sppcls.measure.evaluate import Options, evaluate
from sppcls.measure.views import calibrated
from sppcls.model_files import checkpoint_path, load
from sppcls.models.norm import ScaleNorm2d
from sppcls.run_folder import read_config, read_summary
from sppcls.training.overfitting import measuring
from sppcls.training.preflight import resume_point

SMALL = [
    "data.train_size=60", "data.val_size=24", "data.batch_size=16", "trainer.max_epochs=1", "model.width=0.25",
    "schedule.scales=[32,24]", "metrics.test_scales=[24,32,48]", "metrics.gap_images=0", "trainer.accelerator=cpu",
]  # fmt: skip


@pytest.fixture
def calibrated_run(train, tmp_path):
    assert train(*SMALL, "run_dir=run", "metrics.recalibrate=40") == 0
    return tmp_path / "run"


def statistics(network):
    return {name: value for name, value in network.state_dict().items() if "running" in name}


def test_the_statistics_are_those_of_each_test_scale_and_what_is_measured_has_them(calibrated_run):
    from sppcls.build import build_splits

    found, spec = load(calibrated_run), read_config(calibrated_run)
    assert found.file.name == "calibrated.ckpt"
    assert found.epoch == 1
    norms = [layer for layer in found.network.modules() if isinstance(layer, ScaleNorm2d)]
    assert {layer.scales for layer in norms} == {(24, 32, 48)}
    last = load(calibrated_run, "last").network
    look = measuring(spec, build_splits(spec.data).train, torch.device("cpu"))
    expected = calibrated(last, (24, 32, 48), look, 40, spec.data.mix, spec.data.batches)
    for name, value in statistics(expected).items():
        torch.testing.assert_close(found.network.state_dict()[name], value)
    rows = {row["scale"]: row["acc1"] for row in read_summary(calibrated_run)["scales"]}
    again = evaluate(str(calibrated_run), Options(device="cpu")).found["scales"]
    assert {row["scale"]: row["acc1"] for row in again} == rows
    images = torch.rand(3, 3, 48, 56)
    assert not torch.equal(found.network(images), last.eval()(images))


def test_a_run_is_resumed_from_the_last_checkpoint_and_calibrated_anew(calibrated_run, train):
    before = statistics(load_model(calibrated_run))
    spec = read_config(calibrated_run).model_copy(
        update={"resume": str(calibrated_run), "run_dir": str(calibrated_run)}
    )
    more = spec.model_copy(update={"trainer": spec.trainer.model_copy(update={"max_epochs": 2})})
    assert resume_point(more).file.name == "last.ckpt"
    assert train(f"resume={calibrated_run}", "trainer.max_epochs=2") == 0
    found = load(calibrated_run)
    assert (found.file.name, found.epoch) == ("calibrated.ckpt", 2)
    assert any(not torch.equal(value, before[name]) for name, value in statistics(found.network).items())
    assert checkpoint_path(calibrated_run, "best").name == "best.ckpt"


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (["model.norm=group"], "no batch norm"),
        (["model.pool=fixed", "data.fit=warp", "schedule=single", "schedule.scales=[32]"], "metrics.recalibrate"),
        ([f"metrics.test_scales={list(range(24, 90))}".replace(" ", "")], "got 66 scales"),
    ],
)
def test_statistics_that_cannot_be_are_refused_before_training(train, capsys, wrong, said):
    assert train(*SMALL, "run_dir=run", "metrics.recalibrate=40", *wrong) == 2
    shown = capsys.readouterr()
    assert said in shown.err
    assert "epoch   1" not in shown.out


def tuned(*arguments):
    with pytest.raises(SystemExit) as end:
        main(["tune", *map(str, arguments)])
    return end.value.code


@pytest.mark.parametrize("which", ["last", "calibrated"])
def test_tuning_trains_the_head_and_the_norms_at_a_new_scale(calibrated_run, tmp_path, which):
    before = load(calibrated_run, which).network
    assert tuned(calibrated_run, "--scale", 48, "--checkpoint", which, "--out", tmp_path / "tuned") == 0
    after = load(tmp_path / "tuned")
    assert (after.network.scales, after.epoch) == ((48,), 2)
    assert {row["scale"] for row in json.loads((tmp_path / "tuned/summary.json").read_text())["scales"]} == {24, 32, 48}
    was, now = before.state_dict(), after.network.state_dict()
    same = {name for name, value in was.items() if torch.equal(value, now[name])}
    filters = {name for name, value in was.items() if name.startswith("trunk") and value.ndim == 4}
    assert filters
    assert filters <= same
    norms = {name for name in was if "running_mean" in name or (name.startswith("head") and was[name].ndim == 2)}
    assert not norms & same


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--scale", "4"], "allowed: an integer of at least 8"),
        (["--scale", "24", "--lr", "fast"], "allowed: a number above 0"),
        (["--scale", "24", "--epochs", "0"], "allowed: an integer of at least 1"),
        ([], "--scale"),
    ],
)
def test_a_wrong_tune_is_one_line(capsys, arguments, said):
    assert tuned("run", *arguments) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert said in line


def test_a_start_of_other_classes_or_settings_is_refused(calibrated_run, train, capsys):
    capsys.readouterr()
    assert train(*SMALL, "run_dir=other", f"model.start={calibrated_run}", "model.width=0.5") == 2
    assert "is of other model settings" in capsys.readouterr().err
    assert train(*SMALL, "run_dir=gone", "model.start=nowhere") == 2
    assert "no model at nowhere" in capsys.readouterr().err
