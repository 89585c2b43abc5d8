"""Each variant's own recipe, chosen on validation images before its seeds are run, and measured on the test part."""

import json
from pathlib import Path

import numpy as np
import pytest

from sppcls.data.catalog import load_splits
from sppcls.errors import ConfigError, DataError
from sppcls.report.runs import Run, variants
from sppcls.spec import parse
from sppcls.training.sweep import Job, Sweep, run_job
from sppcls.training.tuning import grid, trials, tuned, with_values

GRID = {"optim.lr": [0.001, 0.01], "trainer.max_epochs": [1, 2]}


def spec(tmp_path, tune=GRID, seed=0, **more):
    values = {
        "data": {"train_size": 24, "val_size": 12, "test_size": 13, "batch_size": 12, "num_workers": 0},
        "model": {"width": 0.125, "levels": [1]},
        "schedule": {"kind": "single", "scales": [16]},
        "trainer": {"accelerator": "cpu"},
        "metrics": {"part": "test", "gap_images": 12, "test_scales": [16, 24]},
        "sweep": {"tune": tune, "variant": "plain"},
        "sweep_dir": str(tmp_path / "sweep"),
        "seed": seed,
    }
    return parse(values | more)


def scored(monkeypatch, scores):
    """Let each trial end at once, with the top-1 that ``scores`` gives for its values, or fail."""
    ran = []

    def run(trial, **_):
        folder = Path(trial.run_dir)
        folder.mkdir(parents=True, exist_ok=True)
        acc1 = scores(trial)
        ran.append((trial.optim.lr, trial.trainer.max_epochs))
        state = {"state": "failed" if acc1 is None else "finished", "pid": 1}
        (folder / "status.json").write_text(json.dumps(state))
        (folder / "summary.json").write_text(json.dumps({"acc1": acc1, "val_scale": 16}))
        return 0

    monkeypatch.setattr("sppcls.training.run.run", run)
    return ran


def test_trials_are_of_the_seed_and_split_of_the_job_and_never_see_the_test_part(tmp_path):
    tried = trials(spec(tmp_path, seed=5, data=spec(tmp_path).data.model_dump() | {"split_seed": 5}))
    assert [point for point, _ in tried] == grid(spec(tmp_path)) == [
        {"optim.lr": lr, "trainer.max_epochs": epochs} for lr in (0.001, 0.01) for epochs in (1, 2)
    ]  # fmt: skip
    for point, trial in tried:
        assert {trial.optim.lr, trial.trainer.max_epochs} == set(point.values())
        assert (trial.seed, trial.data.split_seed, trial.metrics.part, trial.sweep.tune) == (5, 5, "val", {})
    assert spec(tmp_path).digest != spec(tmp_path, tune={}).digest


def test_seeds_of_a_sweep_that_redraws_have_splits_of_their_own(tmp_path, train, monkeypatch):
    found = []
    monkeypatch.setattr("sppcls.app.run_job", lambda job: found.append(job) or 0)
    monkeypatch.setattr(Sweep, "finish", lambda _: 0)
    assert train("-m", "seed=3,4", "sweep.redraw=true", f"sweep_dir={tmp_path}/sweep") == 0
    assert [(job.seed, job.data.split_seed) for job in found] == [(3, 3), (4, 4)]
    runs = [Run(Path(), job.model_dump(mode="json")) for job in found]
    assert list(variants(runs)) == ["all runs"]


def test_the_best_of_the_trials_is_run_and_the_first_of_equals(tmp_path, monkeypatch):
    ran = scored(monkeypatch, lambda trial: {1: 0.5, 2: 0.7}[trial.trainer.max_epochs])
    found = tuned(spec(tmp_path), run_job)
    assert (found.optim.lr, found.trainer.max_epochs, found.metrics.part, found.seed) == (0.001, 2, "test", 0)
    assert len(ran) == 4
    tuned(spec(tmp_path), run_job)
    assert len(ran) == 4  # they are not run again
    tuned(spec(tmp_path, seed=1), run_job)
    assert len(ran) == 8


def test_a_trial_that_failed_is_no_choice(tmp_path, monkeypatch):
    scored(monkeypatch, lambda trial: None if trial.optim.lr == 0.001 else 0.1)
    assert tuned(spec(tmp_path), run_job).optim.lr == 0.01


def test_seeds_that_chose_differently_are_one_variant(tmp_path):
    chosen = [with_values(spec(tmp_path, seed=seed), {"optim.lr": lr}) for seed, lr in ((0, 0.001), (1, 0.01))]
    runs = [Run(Path(), one.model_dump(mode="json")) for one in chosen]
    assert list(variants(runs)) == ["plain"]


def test_where_all_trials_fail_the_job_says_so(tmp_path, monkeypatch, capsys):
    scored(monkeypatch, lambda _: None)
    assert run_job(spec(tmp_path)) == 1
    assert "sweep.tune: none of 4 trials of plain has finished; see " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("tune", "said"),
    [
        ({"optim.lrr": [1]}, "unknown key optim.lrr; did you mean 'optim.lr'?"),
        ({"seed.lr": [1]}, "unknown key seed.lr"),
        ({"optim.lr": [-1]}, "optim.lr=-1: input should be greater than 0"),
    ],
)
def test_a_wrong_grid_is_refused_before_anything_is_trained(tmp_path, tune, said):
    with pytest.raises(ConfigError, match=said):
        Sweep.planned([Job((), spec(tmp_path, tune=tune))], "sweep")


def test_a_sweep_tunes_trains_and_measures_the_test_part(tmp_path):
    jobs = [Job((f"seed={seed}",), spec(tmp_path, tune={"optim.lr": [1e-5, 1e-2]}, seed=seed)) for seed in (0, 1)]
    sweep = Sweep.planned(jobs, "sweep")
    sweep.start()
    assert [run_job(job.spec) for job in sweep.jobs.values()] == [0, 0]
    assert sweep.finish() == 0
    folders = [tmp_path / "sweep" / name for name in sweep.jobs]
    summaries = [json.loads((folder / "summary.json").read_text()) for folder in folders]
    assert [summary["part"] for summary in summaries] == ["test", "test"]
    assert np.load(folders[0] / "answers.npz")["targets"].shape == (13,)
    assert len(list((tmp_path / "sweep" / "tune").glob("*/summary.json"))) == 4
    page = (tmp_path / "sweep" / "report.html").read_text()
    assert "of the test part" in page
    assert "optim.lr" in page


def test_with_values_leaves_the_rest(tmp_path):
    before = spec(tmp_path)
    after = with_values(before, {"optim.lr": 0.5})
    assert after.optim.lr == 0.5
    assert after.model_copy(update={"optim": before.optim}) == before


def folders(root, images):
    for name, count in images.items():
        (root / name).mkdir(parents=True)
        for number in range(count):
            from PIL import Image

            Image.new("RGB", (20, 20)).save(root / name / f"{number}.png")
    return root


def names(part):
    return {"/".join(Path(name).parts[-2:]) for name in part.names}


def test_the_test_part_is_the_same_whatever_the_split_and_shares_no_image(tmp_path):
    root = folders(tmp_path / "photos", {"a": 9, "b": 12})
    found = [load_splits("folder", root, seed=seed, train_per_class=3, test_per_class=4) for seed in (0, 1)]
    assert names(found[0].test) == names(found[1].test)
    assert names(found[0].train) != names(found[1].train)
    for splits in found:
        parts = [names(part) for part in (splits.train, splits.val, splits.test)]
        assert sum(map(len, parts)) == len(set.union(*parts)) == 21
        assert np.bincount(splits.test.targets).tolist() == [4, 4]


def test_a_test_part_that_cannot_be_is_refused(tmp_path):
    root = folders(tmp_path / "photos", {"a": 4, "b": 12})
    with pytest.raises(DataError, match=r"class 'a' has 4 images: data.test_per_class=3 can be at most 2"):
        load_splits("folder", root, test_per_class=3)
    both = tmp_path / "both"
    for part in ("train", "val"):
        folders(both / part, {"a": 2, "b": 2})
    with pytest.raises(ConfigError, match=r"data.test_per_class=1: data=folder has parts already; leave it out"):
        load_splits("folder", both, test_per_class=1)


def test_no_test_part_is_said_before_training(tmp_path, train):
    root = folders(tmp_path / "photos", {"a": 4, "b": 4})
    assert train("data=folder", f"data.root={root}", "metrics.part=test", "run_dir=run") == 2
    assert not (tmp_path / "run" / "summary.json").exists()
