"""Sweeps: a folder a job, failures that stay alone, the same command that finishes what is missing."""

import csv
import json
import signal
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import yaml

from sppcls import app
from sppcls.errors import ConfigError
from sppcls.report.runs import read_runs, variants
from sppcls.run_folder import RunFolder, state_of
from sppcls.spec import Spec, parse
from sppcls.training.callbacks import SaveLastAndBest
from sppcls.training.sweep import Job, Sweep
from tests.processes import Program, run_to_end

SMALL = [
    "data.train_size=24",
    "data.val_size=24",
    "data.batch_size=12",
    "model.width=0.125",
    "schedule.scales=[24,16]",
    "trainer.max_epochs=2",
    "trainer.accelerator=cpu",
    "metrics.test_scales=[16,24]",
    "metrics.gap_images=12",
]


def stamps(folder: Path) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def test_a_sweep_in_two_parts_is_the_sweep_in_one(train, tmp_path, monkeypatch, capsys):
    command = ["-m", *SMALL, "seed=0,1", "model.levels=[2,1],[1]"]
    assert train(*command, "sweep_dir=whole") == 0
    whole = (tmp_path / "whole" / "summary.csv").read_text()
    assert len(whole.splitlines()) == 5
    assert not [path for path in tmp_path.rglob("*") if "=" in path.name]

    # Interrupted after the first epoch of the third job.
    real, count = SaveLastAndBest.on_train_epoch_end, []

    def interrupt(self, *given):
        real(self, *given)
        count.append(given)
        if len(count) == 5:
            signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(SaveLastAndBest, "on_train_epoch_end", interrupt)
    assert train(*command, "sweep_dir=parts") == 143
    monkeypatch.setattr(SaveLastAndBest, "on_train_epoch_end", real)
    jobs = [tmp_path / "parts" / name for name in json.loads((tmp_path / "parts" / "sweep.json").read_text())["jobs"]]
    assert [state_of(job) for job in jobs] == ["finished", "finished", "interrupted", "missing"]
    before = {job: stamps(job) for job in jobs[:2]}
    capsys.readouterr()
    assert train(*command, "sweep_dir=parts", "sweep.dry_run=true") == 0
    assert "2 of 4 done" in capsys.readouterr().out
    assert train(*command, "sweep_dir=parts") == 0
    assert "2 already done" in capsys.readouterr().out
    assert {job: stamps(job) for job in jobs[:2]} == before
    assert (tmp_path / "parts" / "summary.csv").read_text() == whole


def test_a_sweep_says_a_line_a_job_and_keeps_the_rest_in_the_jobs_log(train, tmp_path, capsys):
    assert train("-m", *SMALL, "seed=0,1", "sweep_dir=t") == 0
    out = capsys.readouterr().out
    lines = [line for line in out.splitlines() if " s (" in line]
    assert [line.split(" (")[1] for line in lines][-1] == "2 of 2 done)"
    assert all(": finished, top-1 " in line for line in lines)
    assert len(lines) == 2
    assert "smallest step" not in out
    logs = [path.read_text() for path in tmp_path.glob("t/*/train.log")]
    assert all("smallest step" in log and "epoch   2/2" in log and "Validation" in log for log in logs)


def test_a_failing_job_stops_no_other_and_does_not_hide(train, tmp_path, capsys):
    command = ["-m", *SMALL, "seed=1", "model.backbone=resnet81,tiny", "sweep_dir=t"]
    assert train(*command) == 1
    states = {path.parent.name: json.loads(path.read_text()) for path in tmp_path.glob("t/*/status.json")}
    assert sorted(status["state"] for status in states.values()) == ["failed", "finished"]
    out = capsys.readouterr().out
    assert "failed: model.backbone='resnet81' is unknown; did you mean 'resnet18'?" in out
    assert "resnet81" in (tmp_path / "t" / "report.html").read_text()
    finished = next(path.parent for path in tmp_path.glob("t/*/status.json") if state_of(path.parent) == "finished")
    before = stamps(finished)
    assert train(*command) == 1  # tried again, and the finished one is left alone
    assert stamps(finished) == before


def test_the_same_command_means_the_same_folder_and_order_does_not_matter(train, tmp_path, capsys):
    for given in (["seed=0,1", "model.levels=[1],[2]"], ["model.levels=[2],[1]", "seed=1,0,1"]):
        assert train("-m", *SMALL, *given, "sweep.dry_run=true") == 0
    first, second = (
        line for line in capsys.readouterr().out.splitlines() if "sweep in sweeps/sweep-" in line and "jobs: 4" in line
    )
    assert first.split() == second.split()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["-m", "seed="], "seed"),
        (["-m", "seed=range(0,0)"], "the sweep has no job"),
        (["-m", "seed=0,1", "sweep.baseline=nothing"], "baseline 'nothing': the runs differ only in their seed"),
        (["-m", "model.levels=[1],[2]", "sweep.baseline='model.levels=[1]','model.levels=[2]'"], "two baselines"),
        (["-m", "model.levels=[1],[0]"], "model.levels: got 0, input should be greater"),
        (["-m", "seed=0,1", "resume=somewhere"], "rerun a sweep's command to resume it"),
        (["sweep.dry_run=true"], "lists the jobs of a sweep; add -m"),
        (
            ["experiment=ablate_fit", "sweep.variant=spp-kep"],
            "sweep.variant=spp-kep is unknown; did you mean 'spp-keep'?",
        ),
        (
            ["experiment=ablate_fit", "sweep.baseline=keep"],
            "baseline 'keep' is not a variant here; did you mean 'spp-keep'?",
        ),
    ],
)
def test_wrong_sweeps_are_one_line_before_anything_is_trained(train, tmp_path, capsys, arguments, said):
    small = [value for value in SMALL if "experiment" not in arguments[0] or "scales" not in value]
    assert train(arguments[0], *small, *arguments[1:]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1, lines
    assert said in lines[0]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["ablate_levels", "ablate_scales", "ablate_fit"])
def test_the_studies_differ_in_what_they_say_and_are_measured_alike(train, monkeypatch, name):
    planned = []
    monkeypatch.setattr(Sweep, "dry_run", lambda sweep: planned.append(sweep) or 0)
    assert train(f"experiment={name}", "sweep.dry_run=true") == 0
    jobs = [job.spec for job in planned[0].jobs.values()]
    config = yaml.safe_load((app.conf_folder() / "experiment" / f"{name}.yaml").read_text())
    assert {job.sweep.variant for job in jobs} == set(config["sweep"]["variants"])
    assert config["sweep"]["baseline"] in config["sweep"]["variants"]
    seeds = {job.seed for job in jobs}
    assert len(seeds) >= 3
    assert len(jobs) == len(seeds) * len(config["sweep"]["variants"])
    assert {job.test_scales for job in jobs if job.model.pool != "fixed"} == {(32, 48, 64, 96, 128)}


def test_a_digest_is_of_what_decides_the_result():
    base = Spec()
    same = [{"run_dir": "x"}, {"sweep_dir": "y"}, {"data": {"num_workers": 0}}, {"sweep": {"variant": "a"}}]
    other = [{"seed": 1}, {"data": {"train_size": 99}}, {"model": {"levels": [1]}}, {"metrics": {"gap_images": 1}}]
    assert {parse(values).digest for values in same} == {base.digest}
    assert len({base.digest, *(parse(values).digest for values in other)}) == 5


def test_a_job_is_known_by_its_hash_whatever_its_folder_is_called(tmp_path):
    jobs = [Job.of([f"seed={seed}"], parse({"sweep_dir": str(tmp_path / "s"), "seed": seed})) for seed in (3, 4)]
    Sweep.planned(jobs, "sweep").start()
    manifest = tmp_path / "s" / "sweep.json"
    name = next(iter(json.loads(manifest.read_text())["jobs"]))
    assert name == f"seed-3-{jobs[0].spec.digest}"
    manifest.write_text(manifest.read_text().replace(name, "elsewhere"))
    again = Job.of(["optim.lr=0.004", "seed=3"], jobs[0].spec)
    assert list(Sweep.planned([jobs[1], again], "sweep").jobs)[1] == "elsewhere"


def test_a_folder_has_one_run_at_a_time(tmp_path):
    first = RunFolder(tmp_path / "r")
    with pytest.raises(ConfigError, match="in use by another process"):
        RunFolder(tmp_path / "r", anew=True)
    first.close()
    RunFolder(tmp_path / "r", anew=True).close()


def test_a_started_again_failure_leaves_nothing_behind(tmp_path):
    folder = RunFolder(tmp_path / "r")
    (folder.path / "checkpoints" / "last.ckpt").write_bytes(b"x")
    (folder.path / "metrics.csv").write_text("epoch\n")
    folder.close()
    RunFolder(tmp_path / "r", anew=True).close()
    assert sorted(path.name for path in (tmp_path / "r").rglob("*")) == [".lock", "checkpoints"]


@pytest.mark.slow
def test_a_killed_sweep_goes_on_to_the_same_summary(tmp_path):
    """SIGKILL of the process group, twice, at moments of no choice of ours."""
    train = [sys.executable, str(Path(__file__).parent.parent / "train.py"), "-m", *SMALL, "trainer.max_epochs=12"]
    command = [*train, "seed=0,1,2", "model.levels=[2,1],[1]"]
    run_to_end([*command, "sweep_dir=whole"], tmp_path)
    folder = tmp_path / "killed"
    for done in (1, 3):
        program = Program.started([*command, "sweep_dir=killed"], tmp_path)
        program.until(lambda: sum(state_of(path) == "finished" for path in folder.glob("seed*")) >= done)  # noqa: B023
        time.sleep(0.4)
        program.signal(signal.SIGKILL, group=True)
        program.end(-signal.SIGKILL)
    finished = {path: stamps(path) for path in folder.glob("seed*") if state_of(path) == "finished"}
    assert 3 <= len(finished) < 6
    run_to_end([*command, "sweep_dir=killed"], tmp_path)
    assert {path: stamps(path) for path in finished} == finished
    assert (folder / "summary.csv").read_text() == (tmp_path / "whole" / "summary.csv").read_text()
    with (folder / "summary.csv").open() as file:
        assert [row["state"] for row in csv.DictReader(file)] == ["finished"] * 6
    assert len(variants(read_runs(folder))) == 2


def test_a_damaged_checkpoint_or_summary_is_made_again(train, tmp_path, capsys):
    command = ["-m", *SMALL, "seed=0,1", "sweep_dir=s"]
    assert train(*command) == 0
    whole = (tmp_path / "s" / "summary.csv").read_text()
    first, second = sorted(path for path in (tmp_path / "s").iterdir() if path.is_dir())
    (first / "summary.json").write_text("")
    (second / "summary.json").unlink()
    (second / "status.json").write_text('{"state": "running"}')
    for name in ("last.ckpt", "previous.ckpt"):
        (second / "checkpoints" / name).write_bytes((second / "checkpoints" / name).read_bytes()[:500])
    capsys.readouterr()
    assert [state_of(first), state_of(second)] == ["interrupted", "interrupted"]
    assert train(*command) == 0
    assert "starting over" in capsys.readouterr().out
    assert (tmp_path / "s" / "summary.csv").read_text() == whole


def test_spread_is_over_the_scales_asked_for_and_top1_is_where_it_is_validated(train, tmp_path):
    small = [value for value in SMALL if not value.startswith(("schedule", "metrics.test"))]
    schedule = ["schedule=random", "schedule.scales=[16,40]", "schedule.step=8", "metrics.test_scales=[16,40]"]
    schedule += ["metrics.val_scale=32"]
    assert train("-m", *schedule, *small, "seed=0,1,2,3", "sweep_dir=s") == 0
    summaries = [json.loads(path.read_text()) for path in (tmp_path / "s").glob("seed*/summary.json")]
    for summary in summaries:
        by_scale = {row["scale"]: row["acc1"] for row in summary["scales"]}
        assert by_scale.keys() == {16, 32, 40}
        assert summary["acc1"] == by_scale[32]
        assert summary["scale_spread"] == abs(by_scale[16] - by_scale[40])
        assert np.shape(summary["agreement"]) == (3, 3)  # of every row
    found = json.loads((tmp_path / "s" / "summary.json").read_text())
    assert found["scale"] == 32
    assert found["variants"]["all runs"]["measures"]["acc1"]["n"] == 4
    assert found["variants"]["all runs"]["scales"].keys() == {"16", "32", "40"}
