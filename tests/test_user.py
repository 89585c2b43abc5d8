"""As a new user meets it: wrong input is one line, narrow screens cut no number, no traceback at Ctrl-C."""

import json
import logging
import os
import re
import subprocess
import sys
from contextlib import contextmanager, redirect_stdout, suppress
from pathlib import Path

import pytest
import yaml
from PIL import Image
from test_app import SMALL

import sppcls
from sppcls import commands, process, terminal
from sppcls.errors import ConfigError

TRAIN = Path(__file__).parent.parent / "train.py"


def test_the_version_is_told(capsys):
    with pytest.raises(SystemExit) as end:
        commands.main(["--version"])
    assert end.value.code == 0
    assert capsys.readouterr().out.startswith("sppcls ")


def test_a_run_says_its_classes_and_images_first(train, capsys):
    assert train(*SMALL, "plan_only=true") == 0
    first, second, *_ = capsys.readouterr().out.splitlines()
    assert first.startswith("12 classes: arrow, crescent, ")
    assert first.endswith(", ring and 2 more")
    assert second == "images: 24 training, 24 validation"


@pytest.mark.parametrize("columns", [20, 60, 140])
def test_a_narrow_screen_cuts_no_number(monkeypatch, capsys, columns):
    names = ["test scale", "top-1", "95 % interval", "top-5", "loss", "ECE", "images/s", "train top-1", "gap"]
    rows = [["48 *", "52.1%", "42.2% to 61.9%", "100.0%", "1.428", "0.123", "73", "55.3%", "+3.2"]] * 2
    monkeypatch.setattr(terminal, "width", lambda: columns)
    terminal.show(terminal.table("a title", names, rows))
    out = capsys.readouterr().out
    assert "…" not in out
    words = re.findall(r"[\w.%+]+", out)
    assert [words.count(word) for word in re.findall(r"[\w.%+]+", " ".join(rows[0]))] == [2] * 11
    assert "a title" in out


@contextmanager
def reader_gone():
    """Make standard output a pipe whose reader has gone."""
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "w") as file, redirect_stdout(file):
        yield


def test_closed_output_ends_what_prints_and_what_logs(tmp_path):
    from sppcls.run_folder import logging_to

    for speak in (terminal.show, logging.getLogger("sppcls").info):
        with reader_gone(), logging_to(tmp_path), pytest.raises(terminal.OutputClosedError):
            speak("an epoch")
    assert "an epoch" in (tmp_path / "train.log").read_text()


def test_closed_output_interrupts_a_run(train, tmp_path, capsys):
    with reader_gone():
        assert train(*SMALL, "run_dir=r") == 141
    assert json.loads((tmp_path / "r" / "status.json").read_text())["state"] == "interrupted"
    assert capsys.readouterr().err == "interrupted; nothing was saved yet\n"


def test_a_notebooks_backend_is_not_for_our_processes(train, monkeypatch, capsys):
    for start in (lambda: train("--version"), lambda: commands.main(["--version"])):
        monkeypatch.setenv("MPLBACKEND", "module://matplotlib_inline.backend_inline")
        with suppress(SystemExit):
            start()
        assert os.environ["MPLBACKEND"] == "svg"
    capsys.readouterr()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="writes to a full device")
def test_output_to_a_full_disk_is_one_line_of_error(tmp_path):
    command = [sys.executable, str(TRAIN), *SMALL, "plan_only=true"]
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(command, cwd=tmp_path, stdout=full, stderr=subprocess.PIPE, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (1, "error: No space left on device\n")


@pytest.mark.slow
def test_a_notebooks_backend_and_a_reader_that_goes_leave_no_traceback(tmp_path):
    environment = os.environ | {"MPLBACKEND": "module://matplotlib_inline.backend_inline"}
    command = [sys.executable, str(TRAIN), *SMALL, "plan_only=true"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    process = subprocess.Popen(command, env=environment, cwd=tmp_path, **pipes)
    process.stdout.close()
    error = process.stderr.read()
    process.stderr.close()
    assert (process.wait(timeout=120), error) == (141, b"")


def test_train_py_imports_nothing_that_ctrl_c_could_meet_before_it_is_handled():
    assert "import" not in TRAIN.read_text().replace("from sppcls.commands import train", "")


def test_output_that_was_never_open_goes_nowhere(monkeypatch):
    monkeypatch.setattr(sys, "stdout", None)
    process.own_process()
    with sys.stdout:
        terminal.show("nothing")
        assert sys.stdout.name == os.devnull


def test_groups_from_python_are_named(tmp_path, monkeypatch):
    import sppcls
    from sppcls.errors import ConfigError

    monkeypatch.chdir(tmp_path)
    for given, said in (("data", "data.name"), ("model", "model.backbone")):
        with pytest.raises(ConfigError, match=f"{given}='table': {given} is a group of settings; write {said}='table'"):
            sppcls.train({given: "table", f"{given}.root": "x"})
    (tmp_path / "t.csv").write_text("path,label\n")
    with pytest.raises(sppcls.errors.SppclsError, match=r"t\.csv: no rows"):
        sppcls.train({"data.root": "t.csv"})


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("data.root=emoji 🏯.csv", "needs its own quotes: 'key=\"value\"'"),
        ("seed=0,1", "seed=0,1: add -m to run one job per value, or write seed=[0,1] for a list"),
        (
            "optim.lr=fast",
            "optim.lr='fast': input should be a valid number, unable to parse string as a number, or 'auto'",
        ),
        ("schedule.scales=abc", "schedule.scales='abc': expected a list\n"),
    ],
)
def test_what_is_not_understood_is_said_in_words_of_ours(train, capsys, override, said):
    assert train(override) == 2
    assert said in capsys.readouterr().err


def test_a_resume_of_a_run_that_saved_nothing_says_how_to_begin_again(train, capsys):
    assert train("data=folder", "data.root=nowhere", "run_dir=run") == 3
    capsys.readouterr()
    assert train("resume=run") == 2
    assert "has no checkpoint yet; rerun the command that started it, with run_dir=run" in capsys.readouterr().err


def test_the_data_are_told_before_torch_is_imported(tmp_path):
    for name in ("a", "b"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for number in range(2):
            Image.new("RGB", (40, 50)).save(tmp_path / "photos" / name / f"{number}.png")
    code = (
        "import sys; from sppcls.training import run, ranks; from sppcls.spec import parse\n"
        "def train(*_): raise SystemExit(9 if 'pytorch_lightning' in sys.modules else 0)\n"
        "ranks.train = train\n"
        "run.run(parse({'data': {'name': 'folder', 'root': 'photos'}, 'run_dir': 'run'}))\n"
    )
    ended = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    assert re.match(r"2 classes: .*\nimages: ", ended.stdout)


def test_a_wrong_setting_from_python_makes_no_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match="unknown key"):
        sppcls.train({"data.rot": "photos"})
    assert not any(tmp_path.iterdir())


def test_a_run_from_python_is_in_the_folder_that_its_settings_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    settings = dict(one.split("=", 1) for one in SMALL)
    settings = {key: yaml.safe_load(value) for key, value in settings.items()}
    assert sppcls.train(settings | {"run_dir": "mine"}) == Path("mine")
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_a_resume_behind_its_own_epoch_is_refused(train, capsys):
    assert train(*SMALL, "trainer.max_epochs=3", "run_dir=run") == 0
    assert train("resume=run", "trainer.max_epochs=1") == 2
    assert (
        "trainer.max_epochs=1: run/checkpoints/last.ckpt is of epoch 3; set at least that many"
        in capsys.readouterr().err
    )


def test_closed_standard_error_ends_nothing():
    code = "from sppcls.terminal import say; say('one'); say('two'); print('end')"
    read, write = os.pipe()
    os.close(read)
    ended = subprocess.run([sys.executable, "-c", code], stderr=write, stdout=subprocess.PIPE, text=True)
    os.close(write)
    assert (ended.returncode, ended.stdout) == (0, "end\n")
