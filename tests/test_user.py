"""As a new user meets it: wrong input is one line, narrow screens cut no number, no traceback at Ctrl-C."""

import json
import logging
import os
import pickle
import re
import subprocess
import sys
from contextlib import contextmanager, redirect_stdout, suppress
from pathlib import Path

import pytest
from PIL import Image
from test_app import SMALL

from sppcls import cli, process, terminal

TRAIN = Path(__file__).parent.parent / "train.py"


@pytest.fixture(scope="module")
def place(tmp_path_factory, save_model):
    """Return a folder with a checkpoint, images in class folders and beside them, and files that are something else."""
    folder = tmp_path_factory.mktemp("place")
    save_model(folder / "a.ckpt")
    for name in ("photos/cat/1.png", "photos/cat/2.png", "photos/dog/1.png", "photos/dog/2.png", "loose/1.png"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (48, 40), "red").save(folder / name)
    for part in ("train", "vall"):
        (folder / "parts" / part / "cat").mkdir(parents=True)
        (folder / "parts" / part / "cat" / "1.png").write_bytes((folder / "loose" / "1.png").read_bytes())
    (folder / "empty").mkdir()
    (folder / "text.jpg").write_text("text")
    (folder / "empty.ckpt").touch()
    (folder / "pickle.ckpt").write_bytes(pickle.dumps({"a": 1}))
    (folder / "words.ckpt").write_text("weights\n")
    (folder / "turned.json").write_text(json.dumps([[30, 30, 10, 10]]))
    (folder / "three.json").write_text(json.dumps([[0, 0, 10]]))
    return folder


WRONG = [
    ("", 2, "required: VERB"),
    ("evalaute a.ckpt", 2, "VERB 'evalaute' is unknown; did you mean 'evaluate'? sppcls --help"),
    ("train a.ckpt", 2, "VERB 'train' is unknown; sppcls-train trains"),
    ("evaluate", 2, "required: MODEL"),
    ("evaluate nowhere", 2, "no model at nowhere; name a run folder"),
    ("evaluate empty.ckpt", 1, "empty.ckpt is not a checkpoint"),
    ("evaluate text.jpg", 1, "text.jpg is not a checkpoint"),
    ("evaluate empty", 2, "it is no run or export"),
    ("evaluate a.ckpt", 2, "use --data DIR, a folder of class folders"),
    ("evaluate a.ckpt --scales 64,", 2, "as 64,96,128"),
    ("evaluate a.ckpt --fit corp", 2, "--fit 'corp' is unknown; did you mean 'crop'?"),
    ("evaluate a.ckpt --split tset", 2, "--split 'tset' is unknown; did you mean 'test'?"),
    ("evaluate a.ckpt --device gpu0", 2, "--device gpu0"),
    ("evaluate a.ckpt --data nowhere", 3, "--data nowhere: no such folder"),
    ("evaluate a.ckpt --data loose", 3, "loose: no image in class folders"),
    (
        "evaluate a.ckpt --data parts",
        3,
        "vall holds images beside train/, and no part has that name; did you mean 'val'?",
    ),
    ("evaluate a.ckpt --data photos --out text.jpg", 2, "--out text.jpg"),
    ("evaluate a.ckpt --data photos --object-scale", 2, "data=shapes only"),
    ("predict a.ckpt", 2, "required: IMAGE"),
    ("predict pickle.ckpt loose", 1, "pickle.ckpt is not a checkpoint"),
    ("predict words.ckpt loose", 1, "words.ckpt is not a checkpoint"),
    ("predict a.ckpt none.jpg", 3, "none.jpg: No such file or directory; check its name"),
    ("predict a.ckpt empty", 3, "no image in empty"),
    ("predict a.ckpt loose --top 0", 2, "--top: got '0'"),
    ("predict a.ckpt loose --json --csv", 2, "not allowed with"),
    ("predict a.ckpt loose --scales 48", 2, "add --boxes FILE or --grid N"),
    ("predict a.ckpt loose/1.png --boxes turned.json", 3, "box 0 is 30 30 10 10"),
    ("predict a.ckpt loose/1.png --boxes three.json", 3, "not four numbers"),
    ("predict a.ckpt loose/1.png --boxes nowhere.json", 3, "nowhere.json: No such file"),
    ("predict a.ckpt loose/1.png --grid 2 --draw a.xyz", 2, "that ends in .png, .jpg or .webp"),
    ("export a.ckpt", 2, "required: --format"),
    ("export a.ckpt --format onxx", 2, "did you mean 'onnx'?"),
    ("export a.ckpt --format onnx --out text.jpg", 2, "--out text.jpg"),
    ("report nowhere", 2, "no folder nowhere"),
    ("report empty", 2, "empty holds no run"),
    ("data nowhere", 3, "nowhere is no folder"),
    ("data empty", 3, "no image in a class folder"),
    ("data parts", 3, "did you mean 'val'?"),
    ("data photos --scales 0", 2, "a scale is 1 to 8192 pixels"),
    ("data photos --out empty", 2, "no place for a page"),
    ("bench trian", 2, "name 'trian' is unknown; did you mean 'train'?"),
    ("bench loader --data nowhere", 3, "nowhere: No such file or directory; name a folder that exists"),
    ("probe --data nowhere", 3, "--data nowhere: no such folder"),
    ("probe --data photos --train-per-class 9", 3, "needs at least 10"),
    ("probe --data photos --levels 0", 2, "allowed: gap, or grid sizes"),
    ("probe --data photos --backbone resnet81 --train-per-class 1", 2, "did you mean 'resnet18'?"),
]


@pytest.mark.parametrize(("arguments", "status", "said"), WRONG)
def test_wrong_input_of_a_verb_is_one_line(place, monkeypatch, capsys, arguments, status, said):
    monkeypatch.chdir(place)
    with pytest.raises(SystemExit) as end:
        cli.main(arguments.split())
    out, err = capsys.readouterr()
    assert (end.value.code, out, err.count("\n")) == (status, "", 1), err
    assert err.startswith("error: ")
    assert said in err


def test_a_missing_image_is_not_called_broken(place, monkeypatch, capsys):
    monkeypatch.chdir(place)
    with pytest.raises(SystemExit) as end:
        cli.main(["predict", "a.ckpt", "nothing.jpg"])
    assert end.value.code == 3
    assert "nothing.jpg: No such file or directory; check its name" in capsys.readouterr().err


def test_the_version_is_told(capsys):
    with pytest.raises(SystemExit) as end:
        cli.main(["--version"])
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
    from sppcls.training.folder import logging_to

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
    for start in (lambda: train("--version"), lambda: cli.main(["--version"])):
        monkeypatch.setenv("MPLBACKEND", "module://matplotlib_inline.backend_inline")
        with suppress(SystemExit):
            start()
        assert os.environ["MPLBACKEND"] == "svg"
    capsys.readouterr()


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
    assert "import" not in TRAIN.read_text().replace("from sppcls.cli import train", "")


def test_output_that_was_never_open_goes_nowhere(monkeypatch):
    monkeypatch.setattr(sys, "stdout", None)
    process.own_process()
    with sys.stdout:
        terminal.show("nothing")
