"""Folders, names and files of strangers: nothing is removed elsewhere, nothing commands a terminal or a spreadsheet."""

import csv
import io
import json
import logging
import os
import re
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import save_file

from sppcls import commands, load_model
from sppcls.data.plan import plan_evaluation
from sppcls.deploy.predict import predict
from sppcls.deploy.runtime import open_model
from sppcls.errors import ConfigError, SppclsError
from sppcls.files import replacing, write_json
from sppcls.model_files import KEY, read_checkpoint
from sppcls.models.weights import load_weights
from sppcls.run_folder import RunFolder
from sppcls.spec import parse
from sppcls.terminal import show, table
from sppcls.training.sweep import run_job
from tests.test_report import write_run

ESCAPES = "\x1b]52;c;cm0gLXJm\x07\x1b]0;title\x07\x1b[2J\u202e"


def verb(capsys, *words):
    """Return the exit status of a verb and what it printed."""
    with pytest.raises(SystemExit) as end:
        commands.main([str(word) for word in words])
    said = capsys.readouterr()
    return end.value.code, said.out, said.err


def printable(text):
    return all(line.isprintable() for line in text.split("\n"))


# What is removed


def failed_run(folder, *more):
    """Write a run that has failed, with files of somebody's beside its own."""
    (folder / "checkpoints").mkdir(parents=True)
    for name in ("config.yaml", "metrics.csv", "checkpoints/best.ckpt", *more):
        (folder / name).write_text("x")
    (folder / "status.json").write_text('{"state": "failed"}')
    return folder


@pytest.mark.parametrize("name", ["../victim", "..", ".", "", "/victim", "a/b", "a\x1b[2J", "a\0b", "..\\victim"])
def test_a_job_whose_name_leads_out_of_the_sweep_is_refused(tmp_path, name, capsys):
    victim = failed_run(tmp_path / "victim", "thesis.tex")
    (tmp_path / "s").mkdir()
    write_run(tmp_path / "s" / "other")
    spec = parse({"sweep_dir": str(tmp_path / "s"), "data": {"train_size": 8, "val_size": 8}})
    where = name.replace("/victim", str(victim)) if name == "/victim" else name
    (tmp_path / "s" / "sweep.json").write_text(json.dumps({"jobs": {where: {"digest": spec.digest}}}))
    with pytest.raises(ConfigError, match=r"sweep\.json: .* is not a valid name for a job folder"):
        run_job(spec)
    assert (victim / "metrics.csv").exists()
    status, _, said = verb(capsys, "report", tmp_path / "s")
    assert (status, said.count("\n"), printable(said)) == (2, 1, True)


@given(st.text(max_size=12))
def test_a_name_is_one_that_makes_a_folder_inside(text):
    from sppcls.files import is_name

    assert is_name(text) == (text.isprintable() and text not in ("", ".", "..") and not set("/\\") & set(text))


@pytest.mark.parametrize("name", ["", "checkpoints", "metrics.csv", "checkpoints/last.ckpt", "tensorboard"])
@pytest.mark.parametrize("how", ["anew", "resume"])
def test_a_run_folder_with_links_is_refused_and_what_they_lead_to_is_left(tmp_path, name, how):
    victim = failed_run(tmp_path / "victim", "thesis.tex", "checkpoints/last.ckpt")
    (victim / "tensorboard").mkdir()
    run = tmp_path / "run"
    if name:
        shutil.copytree(victim, run)
        shutil.rmtree(run / name) if (run / name).is_dir() else (run / name).unlink()
    (run / name).symlink_to(victim / name)
    before = sorted(victim.rglob("*"))
    with pytest.raises(ConfigError, match=r"is a link; name|is not a regular file; remove it"):
        RunFolder(run, **{how: True})
    assert sorted(victim.rglob("*")) == before


def test_only_what_a_run_has_written_is_removed(tmp_path):
    theirs = ("thesis.tex", "checkpoints/notes", ".thesis.tex.1", ".config.yaml.old", "checkpoints/.photo.jpg.7")
    ours = (".config.yaml.12", "checkpoints/.last.ckpt.7", "checkpoints/SHA256SUMS", "gap.csv")
    run = failed_run(tmp_path / "run", *theirs, *ours)
    RunFolder(run, anew=True).close()
    left = {str(path.relative_to(run)) for path in run.rglob("*")}
    assert left == {".lock", "checkpoints", *theirs}


def test_a_link_where_a_file_is_written_beside_is_not_followed(tmp_path):
    (tmp_path / "victim").write_text("x")
    (tmp_path / f".a.csv.{os.getpid()}").symlink_to(tmp_path / "victim")
    with replacing(tmp_path / "a.csv") as file:
        file.write(b"new")
    assert ((tmp_path / "victim").read_text(), (tmp_path / "a.csv").read_text()) == ("x", "new")


def test_an_export_into_a_link_is_refused(tmp_path, save_model):
    from sppcls.deploy.export import export

    (tmp_path / "victim").mkdir()
    for name in ("parity.json", "README.md"):
        (tmp_path / "victim" / name).write_text("x")
    (tmp_path / "a-export").symlink_to(tmp_path / "victim")
    with pytest.raises(ConfigError, match="a-export is a link; name its target"):
        export(str(save_model(tmp_path / "a.ckpt")), ["safetensors"], force=True)
    assert (tmp_path / "victim" / "README.md").read_text() == "x"


# What is printed


@pytest.fixture
def strange_sweep(tmp_path):
    """Write a sweep of which every text has escapes, and a variant that is a formula."""
    folder = tmp_path / "sweep"
    write_run(folder / "a", variant=f"=1+1|<script>![x](http://tracker){ESCAPES}", baseline=None)
    write_run(folder / "b", variant=f"b{ESCAPES}", state="failed", error=f"no{ESCAPES}")
    (folder / "b" / "train.log").write_text(f"one\nthe last{ESCAPES}\n")
    write_run(folder / f"c{ESCAPES}", variant="@c", state=f"interrupted{ESCAPES}")
    return folder


def test_a_report_of_a_stranger_commands_no_terminal_and_no_spreadsheet(strange_sweep, capsys):
    status, out, said = verb(capsys, "report", strange_sweep)
    assert (status, said) == (0, "")
    assert "the last?]52;c;" in out
    assert printable(out)
    for name in ("summary.md", "summary.csv"):
        assert printable((strange_sweep / name).read_text()), name
    page = (strange_sweep / "summary.md").read_text()
    assert "<script>" not in page.replace("\\<", "")
    assert "](" not in page
    with (strange_sweep / "summary.csv").open() as file:
        names = [row["variant"] for row in csv.DictReader(file)]
    assert [name[:3] for name in names] == ["'=1", "b?]", "'@c"]


def test_a_report_of_one_run_commands_no_terminal(tmp_path, capsys):
    run = write_run(tmp_path / "run")
    summary = json.loads((run / "summary.json").read_text())
    for row in summary["scales"]:
        row[f"=cmd{ESCAPES}"] = f"+1+1{ESCAPES}"
    (run / "summary.json").write_text(json.dumps(summary))
    status, out, _ = verb(capsys, "report", run)
    assert status == 0
    assert printable(out + (run / "summary.csv").read_text() + (run / "summary.md").read_text())
    assert "'=cmd" in (run / "summary.csv").read_text()
    assert "'+1+1" in (run / "summary.csv").read_text()


@pytest.fixture
def image(tmp_path):
    path = tmp_path / "image.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (48, 40, 3), np.uint8)).save(path)
    return path


def described(model, path, **changes):
    """Write a checkpoint whose signature says otherwise."""
    values = torch.load(model)
    values[KEY]["signature"] |= changes
    torch.save(values, path)
    return path


def test_predictions_in_csv_are_printable_and_no_formulas(tmp_path, save_model, image, capsys):
    names = [f"=cmd|' /C calc'!A0{ESCAPES}", "-1.4", "@b"]
    model = described(save_model(tmp_path / "a.ckpt"), tmp_path / "b.ckpt", classes=names)
    odd = image.with_name(f"-2+3{ESCAPES}.png")
    image.rename(odd)
    os.chdir(tmp_path)
    status, out, said = verb(capsys, "predict", model, f"./{odd.name}", "--csv", "--top", "3")
    assert (status, said[:6], printable(out)) == (0, "model:", True)
    head, row = csv.reader(io.StringIO(out))
    found = {row[at] for at, name in enumerate(head) if name.startswith("label")}
    assert {label[:2] for label in found} == {"'=", "-1", "'@"}
    assert "-1.4" in found  # a number stays one


def test_what_is_shown_logged_and_tabled_is_printable(capsys, caplog):
    show(f"line{ESCAPES}", table(f"title{ESCAPES}", [f"a{ESCAPES}", f"[b]{ESCAPES}"], [[f"x{ESCAPES}", "[red]y"]]))
    out = capsys.readouterr().out
    assert printable(out)
    assert "[red]y" in out
    assert "[b]?" in out
    with caplog.at_level(logging.INFO, "sppcls"):
        logging.getLogger("sppcls").warning("of %s", ESCAPES)
    assert caplog.records[0].getMessage().isprintable()


# What a checkpoint asks for


def test_a_scale_that_takes_gigabytes_has_to_be_asked_for(tmp_path, save_model, image, capsys):
    model = described(save_model(tmp_path / "a.ckpt"), tmp_path / "b.ckpt", scales=[8192], smallest=4000)
    status, _, said = verb(capsys, "predict", model, image)
    assert (status, said.count("\n")) == (2, 1)
    assert (
        "own scale is 8192: one image at it has 67 megapixels, more than 8.4; choose a smaller one with --scale" in said
    )
    assert verb(capsys, "predict", model, image, "--scale", "64")[0] == 0  # the network's own smallest side counts
    status, _, said = verb(capsys, "export", model, "--format", "safetensors")
    assert (status, said.count("\n")) == (2, 1)


def test_test_scales_that_take_gigabytes_have_to_be_asked_for(tmp_path, save_model, image, capsys):
    model = described(save_model(tmp_path / "a.ckpt"), tmp_path / "b.ckpt", scales=[8192])
    (tmp_path / "data" / "cat").mkdir(parents=True)
    image.rename(tmp_path / "data" / "cat" / "a.png")
    status, _, said = verb(capsys, "evaluate", model, "--data", tmp_path / "data")
    assert (status, said.count("\n")) == (2, 1)
    assert "megapixels, more than 8.4; choose scales with --scales" in said


@given(
    st.lists(st.tuples(st.integers(1, 900), st.integers(1, 900)), min_size=1, max_size=40),
    st.lists(st.integers(8, 8192), min_size=1, max_size=3),
    st.integers(1, 70),
)
def test_batches_follow_pixels_and_are_the_same_images_at_every_scale(sizes, scales, batch_size):
    how = {"batch_size": batch_size, "largest": max(scales)}
    plans = [plan_evaluation(np.array(sizes), scale, **how) for scale in scales]
    members = [[batch.indices for batch in plan] for plan in plans]
    assert all(one == members[0] for one in members)
    assert sorted(i for some in members[0] for i in some) == list(range(len(sizes)))
    for batch in (batch for plan in plans for batch in plan):
        assert len(batch.indices) <= batch_size
        assert len(batch.indices) == 1 or len(batch.indices) * np.prod(batch.size) <= 2**23


def test_predictions_at_large_scales_come_in_batches_of_few_pixels(tmp_path, save_model, image):
    model, seen = open_model(save_model(tmp_path / "a.ckpt")), []

    def run(images):
        seen.append(images.shape)
        return np.zeros((len(images), 3), np.float32)

    object.__setattr__(model, "run", run)
    said = [answer for _, answer in predict(model, [image] * 9, (2048, 40), 32)]
    assert len(said) == 9
    assert max(np.prod(shape) for shape in seen) <= 3 * 2**23
    assert {shape[0] for shape in seen} == {1}


FAULTS = {
    "NaN": (lambda w: w.fill_(float("nan")), "non-finite"),
    "infinity": (lambda w: w.fill_(float("-inf")), "non-finite"),
    "one NaN": (lambda w: w.view(-1)[:1].fill_(float("nan")), "non-finite"),
    "too large": (lambda w: w.double().fill_(1e300), "non-finite"),
    "complex": (lambda w: w.to(torch.complex64), "weights must be real numbers"),
}


@pytest.mark.filterwarnings("ignore:Casting complex values")
@pytest.mark.parametrize("name", FAULTS)
def test_weights_that_are_no_numbers_are_refused(tmp_path, save_model, name):
    change, says = FAULTS[name]
    values = torch.load(save_model(tmp_path / "a.ckpt"))
    weights = values["state_dict"]
    key = next(key for key, tensor in weights.items() if tensor.ndim > 1)
    changed = change(weights[key].clone())
    weights[key] = changed if changed.shape == weights[key].shape else change(weights[key]) and weights[key]
    torch.save(values, tmp_path / "b.ckpt")
    for opened in (load_model, read_checkpoint):
        with pytest.raises(SppclsError, match=says):
            opened(tmp_path / "b.ckpt")
    with pytest.raises(ConfigError, match=says):
        load_weights(load_model(tmp_path / "a.ckpt").trunk, tmp_path / "b.ckpt")
    if name == "NaN":
        described = {KEY: json.dumps(values[KEY])}
        save_file({k.removeprefix("network."): v for k, v in weights.items()}, tmp_path / "b.safetensors", described)
        with pytest.raises(SppclsError, match=says):
            load_model(tmp_path / "b.safetensors")


def test_a_deviation_near_zero_is_refused(tmp_path, save_model):
    model = described(save_model(tmp_path / "a.ckpt"), tmp_path / "b.ckpt", std=[1e-300, 0.2, 0.2])
    with pytest.raises(SppclsError, match="std or input_size is out of range"):
        load_model(model)


def test_answers_that_are_no_numbers_are_one_line(tmp_path, save_model, image, capsys):
    """Finite weights can overflow, and an ONNX file's are not looked at."""
    values = torch.load(save_model(tmp_path / "a.ckpt"))
    for tensor in values["state_dict"].values():
        if tensor.is_floating_point():
            tensor.fill_(3e38)
    torch.save(values, tmp_path / "b.ckpt")
    status, out, said = verb(capsys, "predict", tmp_path / "b.ckpt", image, "--json")
    assert (status, out, said.count("\n")) == (1, "", 1)
    assert "outputs are not finite" in said


def test_json_has_no_numbers_that_are_none(tmp_path):
    write_json(tmp_path / "a.json", {"a": [float("nan"), (np.float64("inf"), 1.5)], "b": {"c": -float("inf")}})

    def refuse(word):
        raise AssertionError(word)

    found = json.loads((tmp_path / "a.json").read_text(), parse_constant=refuse)
    assert found == {"a": [None, [None, 1.5]], "b": {"c": None}}


def test_a_key_of_a_million_dots_is_matched_in_a_moment(tmp_path):
    """Cut at each dot and copied, it would be 500 GB; the alarm is what ends that."""
    net = torch.nn.Sequential(torch.nn.Linear(2, 2))
    state = {f"module.{name}": tensor + 1 for name, tensor in net.state_dict().items()}
    torch.save(state | {"a" + ".b" * 1_000_000: torch.zeros(1)}, tmp_path / "a.pth")

    def ring(*_):
        raise AssertionError("still at it")

    before = signal.signal(signal.SIGALRM, ring)
    signal.alarm(30)
    try:
        load_weights(net, tmp_path / "a.pth")
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
    assert torch.equal(net[0].weight, state["module.0.weight"])


# What a path may be


PATHS = (
    ("export", "MODEL", "--format", "safetensors", "--out", "PATH"),
    ("export", "PATH", "--format", "safetensors"),
    ("evaluate", "MODEL", "--out", "PATH"),
    ("evaluate", "MODEL", "--data", "PATH"),
    ("predict", "MODEL", "PATH"),
    ("predict", "MODEL", "IMAGE", "--boxes", "PATH"),
    ("predict", "MODEL", "IMAGE", "--grid", "2", "--draw", "PATH"),
    ("report", "PATH"),
    ("data", "PATH"),
    ("data", "FOLDER", "--out", "PATH"),
    ("probe", "--data", "FOLDER", "--out", "PATH"),
    ("bench", "loader", "--data", "PATH"),
)


@pytest.mark.parametrize("words", PATHS, ids=lambda words: " ".join(words[:1] + words[2:]))
@pytest.mark.parametrize("path", ["a\0b", "n" * 300, "a/" * 3000], ids=["zero", "long name", "long"])
def test_a_path_that_cannot_be_is_one_line(tmp_path, words, path, capsys):
    places = {"MODEL": str(tmp_path / "a.ckpt"), "IMAGE": str(tmp_path / "a.png"), "FOLDER": str(tmp_path)}
    status, _, said = verb(capsys, *(places.get(word, word).replace("PATH", path) for word in words))
    assert (status, said.count("\n"), printable(said)) == (2, 1, True)
    assert said.startswith("error: argument ")
    assert ("null byte" if "\0" in path else "too long") in said
    assert len(said) < 400


@pytest.mark.parametrize("key", ["run_dir", "resume", "sweep_dir", "data.root", "model.weights"])
@pytest.mark.parametrize("path", ["a\0b", "n" * 300], ids=["zero", "long"])
def test_a_key_whose_path_cannot_be_is_one_line(train, key, path, capsys):
    before = {"sweep_dir": ["-m", "seed=0,1"], "data.root": ["data=folder"]}.get(key, [])
    assert train(*before, f"{key}='{path}'") == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert key in said
    assert ("null byte" if "\0" in path else "too long") in said


@pytest.mark.parametrize("call", [load_model, open_model, lambda path: load_weights(torch.nn.Linear(1, 1), path)])
@pytest.mark.parametrize("path", ["a\0b", "n" * 300], ids=["zero", "long"])
def test_a_path_that_cannot_be_is_a_config_error_in_python_too(call, path):
    with pytest.raises(ConfigError, match=r"null byte|too long"):
        call(path)


def test_a_file_where_a_folder_is_meant_is_one_line(tmp_path, train, save_model, image, capsys):
    model = save_model(tmp_path / "a.ckpt")
    for words in (
        ("evaluate", model, "--data", image),
        ("evaluate", model, "--data", tmp_path, "--out", image),
        ("export", model, "--format", "safetensors", "--out", image),
        ("report", image),
        ("data", image),
        ("data", tmp_path, "--out", image / "a.html"),
        ("probe", "--data", tmp_path, "--out", image),
        ("predict", model, image, "--grid", "2", "--draw", image / "a.png"),
    ):
        status, _, said = verb(capsys, *words)
        assert status in (2, 3), words
        assert said.count("\n") == 1, words
        assert "Error" not in said, words
    for words in (
        [f"run_dir={image}"],
        [f"resume={image}"],
        ["-m", f"sweep_dir={image}", "seed=0,1"],
        ["data=folder", f"data.root={image}"],
    ):
        assert train(*words, "data.num_workers=0") in (2, 3), words
        assert capsys.readouterr().err.count("\n") == 1, words


def test_nothing_else_prints():
    """What a terminal shows goes by way of `sppcls.terminal`, and JSON by way of `to_json`."""
    package = Path(commands.__file__).parents[1]
    for file in package.rglob("*.py"):
        text = file.read_text()
        if file.name != "terminal.py":
            assert not re.search(r"(?<![\w.])print\(", text), file
            assert "rich.console" not in text, file
            assert 'getLogger("sppcls")' not in text, file
        if file.name not in ("atomic.py", "spec.py", "ranks.py", "files.py"):
            assert "json.dump" not in text, file
