"""Hydra's launchers: jobs in other processes, which have a command line and a folder of their own and can die."""

import csv
import json
import os
import signal
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from sppcls import app
from sppcls.run_folder import RunFolder, state_of
from sppcls.spec import Spec
from sppcls.training.sweep import run_job
from tests.processes import Program, run_to_end
from tests.test_sweep import SMALL, stamps

LAUNCHERS = {
    "submitit": ["hydra/launcher=submitit_local"],
    "ray": ["hydra/launcher=ray", "+hydra.launcher.ray.init.num_cpus=2"],
}


def test_a_job_is_the_same_in_a_process_with_other_arguments_and_another_folder(tmp_path, monkeypatch):
    (tmp_path / "worker").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["train.py", "-m", "seed=0,1"])
    launched = app._launched()
    monkeypatch.chdir(tmp_path / "worker")
    monkeypatch.setattr(sys, "argv", ["worker.py", "--node=7"])
    given = OmegaConf.from_dotlist([*SMALL, "trainer.max_epochs=1", "sweep_dir=s"])
    assert launched(OmegaConf.merge(Spec().model_dump(mode="json"), given)) == 0
    (status,) = (json.loads(path.read_text()) for path in tmp_path.glob("s/*/status.json"))
    assert (status["state"], status["command"]) == ("finished", "train.py -m seed=0,1")
    assert not any((tmp_path / "worker").iterdir())


def test_what_is_said_to_the_launcher_is_kept_from_the_first_composition(train, capsys):
    command = ["-m", "seed=0,1", "sweep.dry_run=true", *LAUNCHERS["ray"], "++hydra.launcher.ray.remote.max_retries=5"]
    assert train(*command) == 0
    assert "jobs: 2" in capsys.readouterr().out


def test_a_lost_job_does_not_lose_the_others(train, tmp_path, monkeypatch, capsys):
    def dies(spec):
        if spec.seed == 0:
            raise RuntimeError("the worker died\nunexpectedly")
        return run_job(spec)

    command = ["-m", *SMALL, "trainer.max_epochs=1", "seed=0,1", "sweep_dir=s"]
    monkeypatch.setattr(app, "run_job", dies)
    assert train(*command) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert error == "error: the worker died unexpectedly; rerun the same command to resume"
    assert [state_of(path) for path in (tmp_path / "s").glob("seed*")] == ["finished"]
    assert len((tmp_path / "s" / "summary.csv").read_text().splitlines()) == 2
    monkeypatch.setattr(app, "run_job", run_job)
    assert train(*command) == 0


def test_what_another_process_runs_is_left_to_it_and_waited_for(train, tmp_path, monkeypatch):
    command = ["-m", *SMALL, "trainer.max_epochs=1", "seed=0,1", "sweep_dir=s"]
    assert train(*command) == 0
    whole, job = (tmp_path / "s" / "summary.csv").read_text(), next((tmp_path / "s").glob("seed-1*"))
    summary = (job / "summary.json").read_text()
    (job / "summary.json").unlink()
    held = RunFolder(job, resume=True)
    held.write_status("running")

    def finish(_):
        assert state_of(job) == "running"
        (job / "summary.json").write_text(summary)
        held.write_status("finished")
        held.close()

    monkeypatch.setattr("sppcls.training.sweep.time.sleep", finish)
    assert train(*command) == 0
    assert (tmp_path / "s" / "summary.csv").read_text() == whole


@pytest.mark.slow
@pytest.mark.parametrize("extra", LAUNCHERS)
def test_a_launcher_gives_the_summary_of_the_plain_sweep_though_a_job_is_killed(tmp_path, extra):
    if find_spec(f"hydra_plugins.hydra_{extra}_launcher") is None:
        pytest.skip(f"needs the extra {extra}")
    train = [sys.executable, str(Path(__file__).parent.parent / "train.py"), "-m", *SMALL, "data.num_workers=0"]
    command = [*train, "trainer.max_epochs=30", "seed=0,1"]
    run_to_end([*command, "sweep_dir=plain"], tmp_path)
    launched = [*command, "sweep_dir=launched", *LAUNCHERS[extra]]
    program = Program.started(launched, tmp_path, RAY_USAGE_STATS_ENABLED="0")
    program.until(lambda: any(tmp_path.glob("launched/seed-0*/checkpoints/last.ckpt")))
    (job,) = tmp_path.glob("launched/seed-0*")
    os.kill(json.loads((job / "status.json").read_text())["pid"], signal.SIGKILL)
    ended = program.end(None)
    # Ray starts a dead worker's job again, and it goes on; submitit tells, and the command is given again.
    assert ended.status in (0, 1)
    if ended.status == 1:
        said = [line for line in ended.err.splitlines() if line.startswith("error: ")]
        assert len(said) == 1
        assert said[0].endswith("rerun the same command to resume")
        finished = {path: stamps(path) for path in tmp_path.glob("launched/seed*") if state_of(path) == "finished"}
        assert len(finished) == 1
        run_to_end(launched, tmp_path, RAY_USAGE_STATS_ENABLED="0")
        assert {path: stamps(path) for path in finished} == finished
    assert (tmp_path / "launched" / "summary.csv").read_bytes() == (tmp_path / "plain" / "summary.csv").read_bytes()
    with (job / "metrics.csv").open() as file:
        assert [int(row["epoch"]) for row in csv.DictReader(file)] == list(range(30))
