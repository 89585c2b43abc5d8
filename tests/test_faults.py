"""What a machine does to a run: kills, signals, full and read-only disks, folders that go, memory that ends.

The counts are small here; `pytest -m slow -s tests/test_faults.py` kills 100 runs and 500 saves and says what was left.
"""

import contextlib
import errno
import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch

from sppcls import app, checkpoints
from sppcls.checkpoints import is_whole, last_whole, save_whole
from sppcls.data.shapes import ShapesSource
from sppcls.errors import ConfigError, DataError, SppclsError
from sppcls.model_files import read_checkpoint
from sppcls.process import Interrupted, Signals
from sppcls.run_folder import RunFolder
from sppcls.training import callbacks
from sppcls.training.callbacks import Curves
from sppcls.training.run import run
from tests.processes import run_to_end
from tests.test_training import spec

KILLING = Path(__file__).parent / "killing.py"


@pytest.fixture(autouse=True)
def _signals_as_at_the_start_of_a_program():
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def killed(what, count, folder):
    """Return what `killing.py` says; in a process of its own, which forks."""
    command = [sys.executable, str(KILLING), what, str(count), str(folder), "1"]
    done = run_to_end(command, KILLING.parent, seconds=120 + 20 * count, PYTHONPATH=str(KILLING.parent.parent))
    said = json.loads(done.out.splitlines()[-1])
    print(what, said)
    return said


@pytest.mark.parametrize("count", [3, pytest.param(100, marks=pytest.mark.slow)])
def test_runs_killed_at_random_moments_end_in_the_weights_of_the_unbroken_one(tmp_path, count):
    said = killed("runs", count, tmp_path)
    assert sum(said["kills"].values()) >= count
    assert said["runs"] >= 1
    assert said["other_weights"] == 0
    assert said["workers_agree"]
    if count > 50:
        assert min(said["kills"].get(stage, 0) for stage in ("train", "switch", "save", "end")) > 0


@pytest.mark.parametrize("count", [20, pytest.param(500, marks=pytest.mark.slow)])
def test_saves_killed_at_random_moments_leave_a_whole_checkpoint_and_lose_none_that_was_done(tmp_path, count):
    said = killed("saves", count, tmp_path / "saves")
    assert said["saves"] > count / 10
    assert (said["kills"], said["unloadable"], said["lost"]) == (count, 0, 0)


def save(folder, value):
    save_whole(folder / "last.ckpt", lambda file: torch.save({"state_dict": {"a": torch.full((9,), value)}}, file))


def value(path):
    return torch.load(path, weights_only=True)["state_dict"]["a"][0].item()


def test_the_checkpoint_before_the_last_is_kept_and_their_digests_are_sha256sums(tmp_path):
    for step in range(3):
        save(tmp_path, float(step))
    assert (value(tmp_path / "last.ckpt"), value(tmp_path / "previous.ckpt")) == (2.0, 1.0)
    done = subprocess.run(["sha256sum", "-c", "SHA256SUMS"], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert sorted(done.stdout.splitlines()) == ["last.ckpt: OK", "previous.ckpt: OK"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["SHA256SUMS", "last.ckpt", "previous.ckpt"]


@pytest.mark.parametrize("at", [0, 1, 2, 3, 4, 5])
def test_a_save_that_ends_at_any_of_its_steps_leaves_what_is_whole(tmp_path, monkeypatch, at):
    """Every rename of a save in turn is where it ends; nothing is taken away afterwards, as after a kill."""
    save(tmp_path, 1.0)
    save(tmp_path, 2.0)
    renames = []

    class Ended(BaseException):
        pass

    real = Path.replace

    def rename(self, target):
        if len(renames) == at:
            raise Ended
        renames.append(Path(target).name)
        return real(self, target)

    monkeypatch.setattr(Path, "replace", rename)
    monkeypatch.setattr(Path, "unlink", lambda *_, **__: None)
    with contextlib.suppress(Ended):
        save(tmp_path, 3.0)
    monkeypatch.undo()
    found = last_whole(tmp_path)
    assert found.name == "last.ckpt"
    assert value(found) == (3.0 if "last.ckpt" in renames else 2.0)
    save(tmp_path, 4.0)
    assert (value(tmp_path / "last.ckpt"), is_whole(tmp_path / "previous.ckpt")) == (4.0, True)


def test_damage_of_one_bit_is_noticed(tmp_path, caplog):
    save(tmp_path, 1.0)
    save(tmp_path, 2.0)
    content = bytearray((tmp_path / "last.ckpt").read_bytes())
    content[len(content) // 2] ^= 1
    (tmp_path / "last.ckpt").write_bytes(content)
    assert last_whole(tmp_path) == tmp_path / "previous.ckpt"
    assert "last.ckpt is damaged" in caplog.text
    (tmp_path / "previous.ckpt").write_bytes(content)
    with pytest.raises(SppclsError, match="there is no intact earlier one"):
        last_whole(tmp_path)


def test_where_links_are_unknown_the_last_is_copied(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(checkpoints.os, "link", refuse)
    save(tmp_path, 1.0)
    save(tmp_path, 2.0)
    assert (value(tmp_path / "last.ckpt"), value(tmp_path / "previous.ckpt")) == (2.0, 1.0)


def after(epochs, act):
    """Return Curves.on_train_epoch_end that does ``act`` once after so many epochs."""
    real = Curves.on_train_epoch_end

    def hook(self, trainer, module):
        real(self, trainer, module)
        if trainer.current_epoch + 1 == epochs:
            act()

    return hook


def in_batch(step, act):
    """Return Curves.on_train_batch_end that does ``act`` in one step."""
    real = Curves.on_train_batch_end

    def hook(self, trainer, *rest):
        real(self, trainer, *rest)
        if trainer.global_step == step:
            act()

    return hook


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGUSR1, 138)])
def test_a_signal_saves_at_the_next_batch_and_the_run_goes_on_from_there(tmp_path, monkeypatch, capsys, number, status):
    assert run(spec(tmp_path / "whole")) == 0
    wanted = spec(tmp_path)
    before = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]
    monkeypatch.setattr(Curves, "on_train_batch_end", in_batch(4, lambda: os.kill(os.getpid(), number)))
    assert run(wanted) == status
    assert capsys.readouterr().err == f"interrupted; add resume={wanted.run_dir} to resume\n"
    assert json.loads((tmp_path / "run" / "status.json").read_text())["state"] == "interrupted"
    assert read_checkpoint(tmp_path / "run")["global_step"] == 4
    assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)] == before
    monkeypatch.undo()
    assert run(spec(tmp_path, resume=wanted.run_dir)) == 0
    assert "epoch 1 after 4 batches; settings and images unchanged" in capsys.readouterr().out
    ends = [torch.load(at / "run/checkpoints/last.ckpt", weights_only=True) for at in (tmp_path, tmp_path / "whole")]
    assert all(torch.equal(ends[0]["state_dict"][name], tensor) for name, tensor in ends[1]["state_dict"].items())
    tables = [[row.split(",")[:13] for row in (at / "run/metrics.csv").read_text().splitlines()]
              for at in (tmp_path, tmp_path / "whole")]  # fmt: skip
    assert tables[0] == tables[1]


def test_a_signal_to_all_processes_of_a_run_is_the_runs_alone(tmp_path, monkeypatch):
    def kill():
        for pid in (*(child.pid for child in multiprocessing.active_children()), os.getpid()):
            os.kill(pid, signal.SIGTERM)
        time.sleep(0.2)

    wanted = spec(tmp_path, data={"num_workers": 2, "cache": "none"})
    monkeypatch.setattr(Curves, "on_train_batch_end", in_batch(4, kill))
    assert run(wanted) == 143
    assert read_checkpoint(tmp_path / "run")["global_step"] == 4


def test_a_second_signal_ends_at_once():
    with Signals() as signals:
        signals.defer()
        signal.raise_signal(signal.SIGTERM)
        assert signals.received == signal.SIGTERM
        with pytest.raises(Interrupted) as ended:
            signal.raise_signal(signal.SIGINT)
    assert ended.value.status == 130


def test_a_signal_that_comes_in_a_destructor_is_not_lost():
    class Gone:
        def __del__(self):
            signal.raise_signal(signal.SIGTERM)

    def work():
        with Signals():
            Gone()
            time.sleep(30)

    with pytest.raises(Interrupted):
        work()


def test_of_signals_within_signals_the_inner_defer():
    with Signals() as outer:
        with Signals() as inner:
            inner.defer()
            signal.raise_signal(signal.SIGTERM)
            assert (inner.received, outer.received) == (signal.SIGTERM, None)
        with pytest.raises(Interrupted):
            signal.raise_signal(signal.SIGINT)


def test_an_interruption_of_which_a_library_makes_an_error_is_one(train, monkeypatch, capsys):
    def compose():
        try:
            signal.raise_signal(signal.SIGINT)
        finally:
            raise ConfigError("'NoneType' object has no attribute")

    monkeypatch.setattr(app, "_composed", compose)
    assert train() == 130
    assert capsys.readouterr().err == "interrupted; rerun the same command to resume\n"


def test_a_signal_that_is_ignored_or_handled_is_left_alone():
    seen = []
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN), signal.signal(signal.SIGUSR2, lambda *_: seen.append(1))
    try:
        with Signals():
            os.kill(os.getpid(), signal.SIGHUP)
            os.kill(os.getpid(), signal.SIGUSR2)
            time.sleep(0.01)
    finally:
        signal.signal(signal.SIGHUP, before[0])
        signal.signal(signal.SIGUSR2, before[1])
    assert seen == [1]


def test_signals_are_of_the_main_thread():
    def enter():
        with Signals() as signals:
            signals.defer()

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def failed(tmp_path, capsys, wanted, status=1):
    """Run, and return the one line that was told; the state is the same, where there is still a folder."""
    assert run(wanted) == status
    (line,) = capsys.readouterr().err.splitlines()
    file = tmp_path / "run" / "status.json"
    if file.exists():
        told = json.loads(file.read_text())
        assert (told["state"], told["error"]) == ("failed", line.removeprefix("error: "))
    return line


def test_a_disk_that_fills_up_while_saving_costs_the_last_save_only(tmp_path, monkeypatch, capsys):
    real, wanted = torch.save, spec(tmp_path, trainer={"max_epochs": 3})

    def full(state, file):
        if state["epoch"] == 1:
            file.write(b"the first part")
            raise OSError(errno.ENOSPC, "No space left on device")
        real(state, file)

    monkeypatch.setattr(torch, "save", full)
    line = failed(tmp_path, capsys, wanted)
    assert line.startswith("error: ")
    assert line.endswith(".ckpt cannot be written: No space left on device; the previous checkpoint is intact")
    monkeypatch.undo()
    assert read_checkpoint(tmp_path / "run")["epoch"] == 0
    assert not list((tmp_path / "run" / "checkpoints").glob(".*"))
    assert run(wanted.model_copy(update={"resume": wanted.run_dir})) == 0


@pytest.mark.skipif(not Path("/proc").is_dir() or os.geteuid() != 0, reason="mounts a disk of its own, as root")
def test_a_full_disk(tmp_path, capsys):
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=400k", "none", str(disk)], capture_output=True)
    if mounted.returncode:
        pytest.skip("no disk can be mounted here")
    try:
        assert run(spec(disk, model={"width": 1.0})) == 1
        (line,) = capsys.readouterr().err.splitlines()
        assert "No space left on device" in line
        assert not list((disk / "run" / "checkpoints").glob("*.ckpt"))
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_a_run_folder_that_is_removed_ends_the_run(tmp_path, monkeypatch, capsys):
    gone = tmp_path / "run"
    monkeypatch.setattr(Curves, "on_train_epoch_end", after(1, lambda: shutil.rmtree(gone)))
    line = failed(tmp_path, capsys, spec(tmp_path))
    assert "the run folder was removed during training" in line
    assert not gone.exists()


def test_a_folder_that_cannot_be_written(tmp_path, monkeypatch, capsys):
    def refuse(*_, **__):
        raise PermissionError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(Path, "mkdir", refuse)
    assert run(spec(tmp_path)) == 2
    wanted = f"error: run_dir={tmp_path / 'run'} cannot be written: Read-only file system\n"
    assert capsys.readouterr().err == wanted


def test_two_runs_do_not_share_a_folder(tmp_path, capsys):
    held = RunFolder(tmp_path / "run")
    assert run(spec(tmp_path)) == 2
    assert "is in use by another process" in capsys.readouterr().err
    held.close()
    assert run(spec(tmp_path)) == 0


def test_a_child_that_lives_on_does_not_hold_the_folder(tmp_path):
    held = RunFolder(tmp_path / "run")
    child = os.fork()
    if not child:
        time.sleep(20)
        os._exit(0)
    held.close()
    RunFolder(tmp_path / "run", resume=True).close()
    os.kill(child, signal.SIGKILL)
    assert os.waitpid(child, 0)[1] == signal.SIGKILL  # it lived until now


def test_a_worker_that_is_killed_ends_the_run_which_goes_on(tmp_path, monkeypatch, capsys):
    def kill():
        os.kill(multiprocessing.active_children()[0].pid, signal.SIGKILL)
        time.sleep(0.2)

    wanted = spec(tmp_path, data={"num_workers": 1, "cache": "none"}, trainer={"checkpoint_every_steps": 1})
    monkeypatch.setattr(Curves, "on_train_batch_end", in_batch(4, kill))
    line = failed(tmp_path, capsys, wanted)
    assert "DataLoader worker" in line
    assert "lower data.num_workers" in line
    monkeypatch.undo()
    assert run(wanted.model_copy(update={"resume": wanted.run_dir})) == 0


def test_memory_that_ends_in_the_middle_is_one_line(tmp_path, monkeypatch, capsys):
    def scarce():
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    monkeypatch.setattr(Curves, "on_train_epoch_end", after(1, scarce))
    line = failed(tmp_path, capsys, spec(tmp_path))
    assert line.startswith("error: out of memory")
    assert "lower data.batch_size or the largest of schedule.scales" in line


def test_a_clock_that_is_set_back_changes_nothing(tmp_path, monkeypatch):
    real = time.time
    monkeypatch.setattr(Curves, "on_train_epoch_end", after(1, lambda: setattr(time, "time", lambda: real() - 9e6)))
    monkeypatch.setattr(time, "time", real)
    assert run(spec(tmp_path, trainer={"checkpoint_every_minutes": 0.001})) == 0
    assert 0 < json.loads((tmp_path / "run" / "summary.json").read_text())["seconds"] < 300


def test_saving_by_the_clock_costs_a_bounded_share(tmp_path, monkeypatch):
    saver = callbacks.SaveLastAndBest(tmp_path, every_minutes=1)
    now = [0.0]
    monkeypatch.setattr(callbacks.time, "monotonic", lambda: now[0])
    saver._saved_at, saver._took = 0.0, 0.5
    now[0] = 59.0
    assert not saver._is_time(1)
    now[0] = 60.0
    assert saver._is_time(1)
    saver._took = 10.0
    now[0] = 319.0
    assert not saver._is_time(1)
    now[0] = 320.0
    assert saver._is_time(1)


def test_no_word_is_lost_where_fit_fails_before_it_trains(tmp_path, monkeypatch, capsys):
    def fails(*_, **__):
        raise RuntimeError("two\nlines")

    monkeypatch.setattr("sppcls.training.preflight.build_splits", fails)
    assert failed(tmp_path, capsys, spec(tmp_path)) == "error: RuntimeError: two"
    assert "two\nlines" in (tmp_path / "run" / "train.log").read_text()


def test_without_digests_the_archives_own_sums_are_looked_at(tmp_path):
    save(tmp_path, 1.0)
    save(tmp_path, 2.0)
    content = bytearray((tmp_path / "last.ckpt").read_bytes())
    content[content.index(torch.full((9,), 2.0).numpy().tobytes()) + 3] ^= 1
    (tmp_path / "last.ckpt").write_bytes(content)
    (tmp_path / "SHA256SUMS").unlink()
    os.mkfifo(tmp_path / "SHA256SUMS")
    assert last_whole(tmp_path) == tmp_path / "previous.ckpt"


def test_a_config_that_was_edited_is_refused(tmp_path, capsys):
    assert run(spec(tmp_path)) == 0
    capsys.readouterr()
    assert run(spec(tmp_path, seed=7, resume=str(tmp_path / "run"))) == 2
    assert "error: seed cannot change on resume (it is 0 in last.ckpt, 7 now)" in capsys.readouterr().err


def test_a_run_that_was_killed_as_it_began_may_be_started_again(tmp_path):
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    for name in (".lock", "train.log", ".config.yaml.4711", ".metrics.csv.4711"):
        (tmp_path / "run" / name).touch()
    assert run(spec(tmp_path)) == 2  # a table is of a run that went further
    (tmp_path / "run" / ".metrics.csv.4711").unlink()
    assert run(spec(tmp_path)) == 0
    assert [path.name for path in (tmp_path / "run").glob(".*")] == [".lock"]


def test_files_that_were_skipped_before_an_interruption_are_listed_after_it(tmp_path, monkeypatch):
    monkeypatch.setattr(ShapesSource, "read", unreadable(ShapesSource.read))
    options = {"data": {"on_error": "skip", "cache": "none"}, "metrics": {"gap_images": 0, "gap_every": 0}}
    assert run(spec(tmp_path / "whole", **options)) == 0
    monkeypatch.setattr(Curves, "on_train_end", lambda *_: os.kill(os.getpid(), signal.SIGTERM))
    assert run(spec(tmp_path, **options)) == 143
    monkeypatch.undo()
    assert run(spec(tmp_path, resume=str(tmp_path / "run"), **options)) == 0
    found = [(at / "run" / "skipped.txt").read_text() for at in (tmp_path / "whole", tmp_path)]
    assert found[0] == found[1]
    assert len(found[0].splitlines()) == 3


def unreadable(real):
    def read(self, index, short=None):
        if self.names[index].startswith("shapes/train") and index % 20 == 3:
            raise DataError(f"{self.names[index]}: broken")
        return real(self, index, short)

    return read
