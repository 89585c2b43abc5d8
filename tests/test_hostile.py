"""A corpus of hostile files: none runs anything, each is one line, and memory and time are those of a small file."""

import copyreg
import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from hostile_corpus import Corpus
from hostile_files import archives, descriptions, exports, pickles, safetensors
from hostile_images import folders, headers, names, numbers
from hostile_pickles import CODE, OPCODES, archive
from hostile_runs import CONFIGS, MADE, REPORTED, SMALL, overrides, runs
from hydra.utils import instantiate

from sppcls import commands
from sppcls.errors import ConfigError
from sppcls.run_folder import RunFolder, is_held

TRAIN = str(Path(__file__).parent.parent / "train.py")


@pytest.fixture
def known_code():
    copyreg.add_extension("os", "mkdir", CODE)
    yield
    copyreg.remove_extension("os", "mkdir", CODE)


@pytest.mark.usefixtures("known_code")
@pytest.mark.parametrize("name", OPCODES)
def test_the_pickles_run_where_nothing_hinders_them(tmp_path, name):
    pickle.loads(OPCODES[name](tmp_path / "raw"))
    archive(tmp_path / "a.ckpt", OPCODES[name](tmp_path / "torch"))
    torch.load(tmp_path / "a.ckpt", weights_only=False)
    assert (tmp_path / "raw").is_dir()
    assert (tmp_path / "torch").is_dir()


def test_the_tags_objects_and_targets_run_where_nothing_hinders_them(tmp_path):
    CONFIGS["tag apply"][0](tmp_path / "a.yaml", tmp_path / "tag")
    yaml.unsafe_load((tmp_path / "a.yaml").read_text())
    REPORTED["answers.npz"](tmp_path / "a.npz", tmp_path / "object")
    assert np.load(tmp_path / "a.npz", allow_pickle=True)["scales"].size == 1
    instantiate(MADE | {"path": str(tmp_path / "target")})
    assert all((tmp_path / name).is_dir() for name in ("tag", "object", "target"))


def test_what_a_file_is_called_commands_no_terminal(capsys):
    for words in (["evaluate", "a\x1b[2J\nb"], ["predict", "a", "b", "--\x1b[2J\n"]):
        with pytest.raises(SystemExit) as end:
            commands.main(words)
        (line,) = capsys.readouterr().err.splitlines()
        assert end.value.code == 2
        assert line.startswith("error: ")
        assert line.isprintable()


@pytest.mark.parametrize("make", [os.mkfifo, Path.mkdir, lambda path: path.symlink_to("nowhere")])
def test_a_lock_that_is_no_file_holds_nothing_and_is_not_written_to(tmp_path, make):
    make(tmp_path / ".lock")
    assert not is_held(tmp_path)
    with pytest.raises(ConfigError, match=r"[.]lock is not a regular file; remove it$"):
        RunFolder(tmp_path)
    assert not (tmp_path / "nowhere").exists()


def told(corpus, rows):
    slowest = max(rows, key=lambda name: rows[name]["seconds"])
    largest = max(rows, key=lambda name: rows[name]["rise"])
    print(
        f"\n{len(rows)} hostile files: {len(list(corpus.canaries.iterdir()))} canaries; "
        f"{sum(row['status'] == 0 for row in rows.values())} harmless, the others refused in one line; "
        f"largest rise of memory {rows[largest]['rise']} MB ({largest}); "
        f"slowest {rows[slowest]['seconds']:.1f} s ({slowest}), all {sum(r['seconds'] for r in rows.values()):.0f} s"
    )


def test_files_of_one_model_run_nothing(tmp_path, save_model):
    """The fast part of the corpus: what needs no trained run and no export."""
    corpus = Corpus(tmp_path, save_model(tmp_path / "a.ckpt"))
    pickles(corpus)
    safetensors(corpus)
    numbers(corpus)
    names(corpus)
    rows = corpus.opened()
    assert len(rows) >= 30
    wrong = corpus.faults(rows)
    assert not wrong, "\n".join(wrong)


@pytest.mark.slow
def test_the_whole_corpus_runs_nothing(tmp_path, save_model, exported):
    subprocess.run([sys.executable, TRAIN, *SMALL, f"run_dir={tmp_path / 'run'}"], check=True, cwd=tmp_path)
    corpus = Corpus(tmp_path, save_model(tmp_path / "a.ckpt"), tmp_path / "run", exported)
    for fill in (
        pickles,
        archives,
        safetensors,
        descriptions,
        exports,
        runs,
        overrides,
        headers,
        numbers,
        names,
        folders,
    ):
        fill(corpus)
    rows = corpus.opened()
    told(corpus, rows)
    assert len(rows) >= 30
    wrong = corpus.faults(rows)
    assert not wrong, "\n".join(wrong)
