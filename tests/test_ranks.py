"""Several processes for one run: the same images, the same figures, one folder; also where one of them dies."""

import csv
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sppcls import MultiScaleDataModule, load_model
from sppcls.data.plan import plan_epoch
from sppcls.data.planner import Planner
from sppcls.data.schedule import Schedule
from sppcls.data.shapes import ShapesSource
from sppcls.measure.scales import Evaluation, evaluate_scales
from sppcls.process import Signals
from sppcls.run_folder import is_held
from sppcls.spec import parse
from sppcls.training.datamodule import replan
from sppcls.training.preflight import local_ranks
from sppcls.training.ranks import _ended
from tests.killing import digest
from tests.processes import Program, end_all, patience, run_to_end

TRAIN = Path(__file__).parent.parent / "train.py"
SMALL = (
    "schedule.kind=alternate",
    "data.train_size=44", "data.val_size=27", "data.batch_size=8", "data.num_workers=0", "data.cache=none",
    "model.width=0.125", "model.levels=[2,1]", "schedule.scales=[24,32]", "trainer.max_epochs=2",
    "trainer.accelerator=cpu", "metrics.gap_images=12", "metrics.gap_every=1",
    "metrics.test_scales=[24,32]",
)  # fmt: skip
WORLD = st.integers(1, 3)
SIZES = st.lists(st.tuples(st.integers(20, 60), st.integers(20, 60)), min_size=4, max_size=150)


def command(*more, launcher=(sys.executable,)):
    return [*launcher, str(TRAIN), *SMALL, *more]


def rows(run):
    with (run / "metrics.csv").open() as file:
        return list(csv.DictReader(file))


def state(run):
    return json.loads((run / "status.json").read_text())


def assert_measured_as_by_one(run):
    """Assert that the last validation gave what one process finds of the same weights, in every digit."""
    found = evaluate_scales(load_model(run), Evaluation(ShapesSource("val", 27), batch_size=8), [32])
    row, (answers, last) = found.rows[0], (found.answers, rows(run)[-1])
    wanted = {"loss": row.loss, "acc1": row.acc1, "acc5": row.acc5, "ece": row.ece}
    wanted["class_acc"] = answers.class_accuracy(0)
    assert {name: last[f"val_{name}"] for name in wanted} == {
        name: f"{float(torch.tensor(value)):.6g}" for name, value in wanted.items()
    }


def test_two_ranks_train_one_run_and_measure_it_as_one_does(tmp_path):
    found = run_to_end(command("trainer.devices=2", "trainer.strategy=ddp"), tmp_path)
    assert found.err == ""
    assert found.silent < patience()
    assert found.out.count("alternate schedule") == 1
    assert len(list(tmp_path.iterdir())) == 1
    (run,) = (tmp_path / "runs").iterdir()
    assert state(run)["state"] == "finished"
    assert [(row["epoch"], row["scale"], row["images"]) for row in rows(run)] == [("0", "24", "44"), ("1", "32", "44")]
    assert_measured_as_by_one(run)
    checkpoint = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    assert len(checkpoint["ranks"]) == 2
    planner = Planner(ShapesSource("train", 44).sizes, Schedule("alternate", (24, 32)), 8, mix=0.45)
    assert checkpoint["global_step"] == 2 * planner.plan(0, world=2).steps


@pytest.mark.parametrize("schedule", [Schedule("drawn", (24, 32)), Schedule("all", (24, 32))])
def test_two_ranks_take_the_steps_of_every_epoch_as_long_as_it_is(tmp_path, schedule):
    small = [f"schedule.kind={schedule.kind}" if "kind" in one else one for one in command("trainer.devices=2")]
    found = run_to_end([*small, "run_dir=run"], tmp_path)
    assert (found.status, found.err) == (0, "")
    assert_measured_as_by_one(tmp_path / "run")
    checkpoint = torch.load(tmp_path / "run/checkpoints/last.ckpt", weights_only=True)
    how = {"mix": 0.45, "batch_pixels": "auto", "multiple": 8}
    assert checkpoint["global_step"] == Planner(ShapesSource("train", 44).sizes, schedule, 8, **how).steps(range(2), 2)


@pytest.mark.slow
def test_a_rank_that_fails_after_its_work_is_done_ends_no_run(tmp_path):
    (tmp_path / "sitecustomize.py").write_text(
        "import atexit, os\nif os.environ.get('RANK') == '1':\n    atexit.register(os.abort)\n"
    )
    found = run_to_end(command("run_dir=run", "trainer.devices=2"), tmp_path, PYTHONPATH=str(tmp_path))
    assert "rank 1 was killed (SIGABRT) after finishing its work; the run is complete" in found.out
    assert state(tmp_path / "run")["state"] == "finished"


RANK = b"from sppcls.training.ranks import main; main()"


def pid_of_rank(rank, run):
    """Return the process that is a rank of the run in a folder."""
    for entry in Path("/proc").iterdir():
        try:
            said = (entry / "cmdline").read_bytes().split(b"\0") + (entry / "environ").read_bytes().split(b"\0")
            if {RANK, os.fsencode(run), f"RANK={rank}".encode()} <= set(said):
                return int(entry.name)
        except OSError:
            continue
    raise AssertionError(f"there is no rank {rank}")


LONG = ("trainer.max_epochs=500", "trainer.devices=2", "trainer.checkpoint_every_steps=2")


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="looks for processes in /proc")
def test_a_rank_that_is_killed_ends_the_run_which_one_process_takes_up(tmp_path):
    run = tmp_path / "run"
    running = Program.started(command(f"run_dir={run}", *LONG), tmp_path)
    running.until(lambda: (run / "metrics.csv").exists() and len(rows(run)) > 1)
    os.kill(pid_of_rank(1, run), signal.SIGKILL)
    assert re.fullmatch(r"error: rank 1 was killed \(SIGKILL\)[^\n]*\n", running.end(1).err)
    assert state(run)["state"] == "failed"
    with pytest.raises(AssertionError, match="no rank 0"):
        pid_of_rank(0, run)
    checkpoint = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    epochs = checkpoint["epoch"] + 2
    more = ["trainer.devices=1", "trainer.strategy=auto", f"trainer.max_epochs={epochs}"]
    out = run_to_end([sys.executable, str(TRAIN), f"resume={run}", *more], tmp_path).out
    assert "1 ranks after 2" in out
    assert "trainer.devices 2 -> 1" in out
    assert [row["epoch"] for row in rows(run)] == [str(epoch) for epoch in range(epochs)]


def test_a_rank_that_ends_while_another_waits_for_it_is_noticed(tmp_path):
    waits, fails = ([sys.executable, "-c", code] for code in ("import time; time.sleep(60)", "raise SystemExit(1)"))
    ranks = [subprocess.Popen(waits), subprocess.Popen(fails)]
    try:
        assert _ended(ranks, Signals(), tmp_path) == [None, 1]
    finally:
        ranks[0].kill()
        ranks[0].wait()


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.slow
def test_a_rank_that_a_signal_meets_before_the_others_know_it_ends_them(tmp_path, rank):
    (tmp_path / "sitecustomize.py").write_text(
        f"import os, signal\nif os.environ.get('RANK') == '{rank}':\n    os.kill(os.getpid(), signal.SIGTERM)\n"
    )
    ended = run_to_end(command("run_dir=run", "trainer.devices=2"), tmp_path, 1, PYTHONPATH=str(tmp_path))
    assert ended.err.startswith(f"error: rank {rank} was killed (SIGTERM)")


@pytest.mark.slow
def test_ctrl_c_while_ranks_import_prints_one_line(tmp_path):
    """The leader gets it as its ranks load their first module after the interpreter's own."""
    (tmp_path / "sitecustomize.py").write_text(
        "import os, signal, time\n"
        "if os.environ.get('RANK') == '0':\n    os.kill(os.getppid(), signal.SIGINT)\n"
        "if 'RANK' in os.environ:\n    time.sleep(60)\n"
    )
    command_line = command("run_dir=run", "trainer.devices=2")
    ended = run_to_end(command_line, tmp_path, 130, PYTHONPATH=str(tmp_path))
    assert ended.err == "interrupted; nothing was saved yet\n"


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.slow
def test_a_signal_reaches_all_ranks_and_they_save(tmp_path, number, status):
    run = tmp_path / "run"
    running = Program.started(command(f"run_dir={run}", *LONG[:2]), tmp_path)
    running.until((run / "metrics.csv").exists)
    time.sleep(0.3)
    running.signal(number)
    assert running.end(status).err == f"interrupted; add resume={run} to resume\n"
    assert state(run)["state"] == "interrupted"
    done = len(rows(run))
    assert torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["epoch"] in (done, done - 1)


@pytest.mark.slow
def test_ranks_whose_leader_is_killed_save_and_end_and_go_on_to_the_same_weights(tmp_path):
    options = ("trainer.devices=2", "augment.mixup=0.4", "optim.ema=0.9", "trainer.max_epochs=12")
    run_to_end(command("run_dir=whole", *options), tmp_path)
    running = Program.started(command("run_dir=broken", *options), tmp_path)
    run, whole = tmp_path / "broken", tmp_path / "whole"
    running.until((run / "metrics.csv").exists)
    running.signal(signal.SIGKILL)
    running.process.wait()
    while is_held(run):  # by a rank, until it has ended
        time.sleep(0.02)
    running.end(-signal.SIGKILL)
    assert state(run)["state"] == "running"
    run_to_end([sys.executable, str(TRAIN), "resume=broken"], tmp_path)
    assert state(run)["state"] == "finished"
    assert digest(run) == digest(whole)


@pytest.mark.slow
def test_two_nodes_by_torchrun(tmp_path):
    run = tmp_path / "run"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        where = ("--master_addr=127.0.0.1", f"--master_port={free.getsockname()[1]}")
    torchrun = (sys.executable, "-m", "torch.distributed.run", *where, "--nnodes=2", "--nproc_per_node=1")
    nodes = [
        Program.started(command(f"run_dir={run}", launcher=(*torchrun, f"--node_rank={node}")), tmp_path)
        for node in (0, 1)
    ]
    outs = [found.out for found in end_all(nodes)]
    assert [out.count("top-1") for out in outs] == [2, 0]
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
    assert_measured_as_by_one(run)


@pytest.mark.slow
def test_a_sweep_of_two_ranks_a_job(tmp_path):
    more = ("seed=0,1", "trainer.devices=2", "sweep_dir=s")
    run_to_end([sys.executable, str(TRAIN), "-m", *SMALL, *more], tmp_path)
    runs = [path for path in (tmp_path / "s").iterdir() if path.is_dir()]
    assert len(runs) == 2
    assert {state(run)["state"] for run in runs} == {"finished"}
    assert [path.name for path in tmp_path.iterdir()] == ["s"]


@given(SIZES, WORLD, st.integers(2, 9), st.integers(0, 5), st.sampled_from(("keep", "crop")))
@settings(deadline=None)
def test_ranks_share_every_image_once_but_for_the_stated_repeats(sizes, world, batch_size, epoch, fit):
    sizes = np.array(sizes)
    schedule = Schedule("alternate", (24, 32))
    plan = plan_epoch(sizes, schedule, epoch, seed=1, batch_size=batch_size, world=world, fit=fit)
    ranks = [list(plan.of_rank(rank)) for rank in range(world)]
    assert len({len(rank) for rank in ranks}) == 1
    assert all(len({batch.size for batch in step}) == 1 for step in zip(*ranks, strict=True))
    handed = [index for rank in ranks for batch in rank for index in batch.indices]
    assert set(handed) == set(range(len(sizes)))
    assert len(handed) - len(sizes) == plan.repeats


@pytest.mark.parametrize("over", [False, True], ids=["in an epoch", "at its end"])
def test_a_checkpoint_of_another_number_of_ranks_resumes_at_the_end_of_an_epoch(over):
    data = MultiScaleDataModule(ShapesSource("train", 200), schedule=(24, 32), batch_size=8)
    steps = data.plan(1).steps
    two = data.planner.plan(1, 2).steps
    loader = {"epoch": 1, "position": two if over else 5, "world": 2}
    progress = {"current": dict.fromkeys(("ready", "started", "processed", "completed"), 5), "is_last_batch": over}
    loop = {"state_dict": {"combined_loader": [loader]}, "epoch_loop.batch_progress": progress}
    ranks = [{"metrics": {"train_loss": 1}} for _ in range(2)]
    checkpoint = {"loops": {"fit_loop": loop}, "lr_schedulers": [{"last_epoch": two + 5}], "ranks": ranks}
    assert replan(checkpoint, data) == f"1 ranks after 2: epoch {2 + over} starts with its first batch"
    assert (loader["epoch"], loader["position"]) == (1 + over, 0)
    assert set(progress["current"].values()) == {steps if over else 0}
    assert checkpoint["lr_schedulers"][0]["last_epoch"] == (1 + over) * steps
    assert not any(rank["metrics"] for rank in ranks)


def test_torchrun_is_for_one_run(train, monkeypatch, capsys):
    for name, value in {"GROUP_RANK": "0", "WORLD_SIZE": "2", "RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("sppcls.app.leave", lambda status, **_: sys.exit(status))  # a rank ends its whole process
    assert train("-m", "seed=0,1") == 2
    assert "a sweep starts its own processes" in capsys.readouterr().err


def test_nodes_need_somebody_who_starts_them(train, capsys):
    assert train(*SMALL, "trainer.num_nodes=2", "run_dir=r") == 2
    assert "with torchrun or srun" in capsys.readouterr().err


@pytest.mark.parametrize(("devices", "count"), [(1, 1), (2, 2), ("2", 2), ("0,1", 2), ("0,", 1), ("auto", 1), ("x", 1)])
def test_a_process_a_device(devices, count):
    assert local_ranks(parse({"trainer": {"devices": devices, "accelerator": "cpu"}})) == count
