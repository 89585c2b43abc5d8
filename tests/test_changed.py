"""Data that changed between two parts of a run, ranks that see other files, and folders that two programs want."""

import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from sppcls import LitSppClassifier, MultiScaleDataModule, SppClassifier
from sppcls.data.source import Identity, class_difference
from sppcls.errors import ConfigError, DataError
from sppcls.models.backbones import build_trunk
from sppcls.run_folder import RunFolder, fresh_folder
from sppcls.spec import parse
from sppcls.training.run import run
from sppcls.training.trainer import plain_trainer, quiet_lightning

TRAIN = Path(__file__).parent.parent / "train.py"


def photographs(root):
    for part, name, count in (("train", "ant", 7), ("train", "bee", 7), ("val", "ant", 2), ("val", "bee", 2)):
        (root / part / name).mkdir(parents=True)
        for i in range(count):
            noise = np.random.default_rng([len(part + name), i]).integers(
                0, 256, (24 + i * (part == "train"), 30, 3), np.uint8
            )
            Image.fromarray(noise).save(root / part / name / f"{i:02}.png")
    return root


def spec(root, folder, *, epochs=1, steps=None, **more):
    values = {
        "data": {"name": "folder", "root": str(root), "batch_size": 4, "num_workers": 0, "on_error": "skip"},
        "model": {"width": 0.125, "levels": [1]},
        "schedule": {"scales": [16, 24]},
        "trainer": {"max_epochs": epochs, "accelerator": "cpu", "checkpoint_every_steps": steps},
        "metrics": {"gap_images": 0, "test_scales": [16]},
        "run_dir": str(folder),
    }
    return parse(values | more)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Return a data set and a run on it that was interrupted inside its second epoch and after its first."""
    home = tmp_path_factory.mktemp("changed")
    root = photographs(home / "photos")
    for name, steps in (("between", None), ("inside", 2)):
        wanted = spec(
            root, home / name, trainer={"max_epochs": 1, "accelerator": "cpu", "checkpoint_every_steps": steps}
        )
        assert run(wanted) == 0
    # A checkpoint of the middle of the epoch: the one before the last.
    middle = home / "inside" / "checkpoints"
    (middle / "previous.ckpt").replace(middle / "last.ckpt")
    (middle / "SHA256SUMS").unlink()
    return home


def moved(root):
    (root / "train" / "ant" / "03.png").rename(root / "train" / "bee" / "moved.png")


def resized(root):
    Image.new("RGB", (50, 40)).save(root / "train" / "bee" / "02.png")


CHANGES = {
    "removed": (lambda root: (root / "train" / "ant" / "01.png").unlink(), r"1 removed"),
    "added": (
        lambda root: shutil.copy(root / "train" / "ant" / "01.png", root / "train" / "ant" / "99.png"),
        r"1 added",
    ),
    "moved": (moved, r"1 removed, 1 added"),
    "resized": (resized, r"1 with another class or size"),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("where", ["between", "inside"])
def test_other_images_are_refused_and_said_and_resumed_when_asked(trained, tmp_path, capsys, where, change):
    root, folder = tmp_path / "photos", tmp_path / "run"
    shutil.copytree(trained / "photos", root)
    shutil.copytree(trained / where, folder)
    make, said = CHANGES[change]
    make(root)
    before = (folder / "status.json").read_bytes()
    steps = None if where == "between" else 2
    again = spec(root, folder, epochs=2, steps=steps, resume=str(folder))
    assert run(again) == 3
    line = capsys.readouterr().err
    assert line.startswith("error: the images are not those of ")
    assert line.endswith("resume_data=changed resumes all the same\n")
    assert re.search(said, line)
    assert (folder / "status.json").read_bytes() == before
    assert run(again.model_copy(update={"resume_data": "changed"})) == 0
    out = capsys.readouterr().out
    assert re.search(rf"changed: .*images \([^)]*{said}", out)
    epoch = 2 if where == "between" else 1
    assert f"the images have changed: epoch {epoch} starts with its first batch" in out
    rows = (folder / "metrics.csv").read_text().splitlines()
    assert [row.split(",")[0] for row in rows] == ["epoch", "0", "1"]
    images = sum(len(files) for _, _, files in os.walk(root))
    val = json.loads((folder / "summary.json").read_text())["val_images"]
    assert rows[2].split(",")[12] == str(images - val)
    # What was resumed is what the next resume compares with.
    assert run(again) == 0


def test_the_same_images_in_another_place_are_the_same(trained, tmp_path, capsys):
    shutil.copytree(trained / "photos", tmp_path / "elsewhere" / "photos")
    shutil.copytree(trained / "between", tmp_path / "run")
    again = spec(tmp_path / "elsewhere" / "photos", tmp_path / "run", resume=str(tmp_path / "run"))
    assert run(again) == 0
    assert "images (" not in capsys.readouterr().out.splitlines()[0]


def test_a_resume_needs_no_more_than_the_folder_that_has_moved(trained, train, tmp_path, capsys):
    shutil.copytree(trained / "photos", tmp_path / "moved")
    shutil.copytree(trained / "between", tmp_path / "run")
    assert train("resume=run", "data.root=moved") == 0
    assert "changed: data.root" in capsys.readouterr().out


def test_classes_that_turn_are_refused_whatever_is_asked(trained, tmp_path, capsys):
    shutil.copytree(trained / "photos", tmp_path / "photos")
    shutil.copytree(trained / "between", tmp_path / "run")
    for part in ("train", "val"):
        (tmp_path / "photos" / part / "ant").rename(tmp_path / "photos" / part / "wasp")
    again = spec(tmp_path / "photos", tmp_path / "run", resume=str(tmp_path / "run"), resume_data="changed")
    assert run(again) == 3
    assert "removed 'ant'; added 'wasp'" in capsys.readouterr().err


def test_a_checkpoint_that_names_no_images_resumes_and_says_so(trained, tmp_path, capsys):
    folder = tmp_path / "run"
    shutil.copytree(trained / "between", folder)
    file = folder / "checkpoints" / "last.ckpt"
    checkpoint = torch.load(file, weights_only=True)
    del checkpoint["data"]
    torch.save(checkpoint, file)
    (folder / "checkpoints" / "SHA256SUMS").unlink()
    assert run(spec(trained / "photos", folder, resume=str(folder))) == 0
    assert "the checkpoint does not record its images" in capsys.readouterr().out


class Named:
    """Images that have names, classes and sizes and no pixels."""

    def __init__(self, images, classes=("a", "b", "c")):
        self.names = [name for name, *_ in images]
        self.targets = np.array([target for _, target, _ in images])
        self.sizes = np.array([[size, 10] for *_, size in images]).reshape(-1, 2)
        self.classes = classes


IMAGES = st.dictionaries(st.integers(0, 30), st.tuples(st.integers(0, 2), st.integers(1, 3)), min_size=1)


@given(IMAGES, IMAGES)
def test_differences_are_counted_image_by_image(now, before):
    def source(images, root):
        return Named([(f"{root}/{name:02}.jpg", *rest) for name, rest in sorted(images.items())])

    ours, theirs = Identity.of(source(now, "/x"), None), Identity.of(source(before, "/y/z"))
    assert (ours.digest == theirs.digest) == (now == before)
    counts = {
        "removed": len(before.keys() - now.keys()),
        "added": len(now.keys() - before.keys()),
        "with another class or size": sum(now[name] != before[name] for name in now.keys() & before.keys()),
    }
    expected = ", ".join(f"{count} {what}" for what, count in counts.items() if count)
    if now != before:
        assert ours.difference(theirs) == expected


def test_classes_differ_by_name_and_by_order():
    assert class_difference(("a", "b"), ("a", "b")) == ""
    assert class_difference(("b", "a"), ("a", "b")) == "in another order"
    assert class_difference(("a", "c"), ("a", "b")) == "removed 'b'; added 'c'"


RANK = """
import sys
from tests.test_changed import spec
from sppcls.training.fit import fit
from pathlib import Path
import sppcls.training.run as running
sys.exit(running.run(spec(sys.argv[1], sys.argv[2], trainer={
    "max_epochs": 1, "accelerator": "cpu", "devices": 1, "num_nodes": 2, "strategy": "ddp"})))
"""


def ranks_on(*roots, folder):
    """Run a rank on each root, as torchrun starts them on two nodes; returns exit statuses and errors."""
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29533", "WORLD_SIZE": str(len(roots)), "LOCAL_WORLD_SIZE": "1"}
    place |= {"PYTHONPATH": str(TRAIN.parent), "OMP_NUM_THREADS": "1", "LOCAL_RANK": "0"}
    program = "import sys; from sppcls.process import leave\n" + RANK.replace("sys.exit(", "leave(")
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", program, str(root), str(folder)],
            env=os.environ | place | {"RANK": str(rank), "GROUP_RANK": str(rank)},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank, root in enumerate(roots)
    ]
    try:
        errors = [process.communicate(timeout=300)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.communicate()
    return [process.returncode for process in processes], errors


def test_ranks_that_see_other_files_are_refused(trained, tmp_path):
    other = shutil.copytree(trained / "photos", tmp_path / "photos")
    for i in range(3):
        (other / "train" / "ant" / f"0{i}.png").unlink()
    statuses, errors = ranks_on(trained / "photos", other, folder=tmp_path / "run")
    assert statuses == [3, 3]
    assert all("rank 1 sees other files than rank 0" in error for error in errors)
    assert all(len(error.splitlines()) == 1 for error in errors)


@pytest.mark.slow
def test_a_validation_part_of_fewer_batches_than_ranks_and_batches_of_broken_images(trained, tmp_path):
    root = shutil.copytree(trained / "photos", tmp_path / "photos")
    for file in (root / "train" / "ant").iterdir():  # whole headers, no pixels
        file.write_bytes(file.read_bytes()[:60])
    one = MultiScaleDataModule(str(root), schedule=(16, 24), batch_size=64, on_error="skip")
    assert len(one.val_dataloader()) == 1
    statuses, errors = ranks_on(root, root, folder=tmp_path / "run")
    assert (statuses, errors) == ([0, 0], ["", ""])
    skipped = (tmp_path / "run" / "skipped.txt").read_text().splitlines()
    assert len(skipped) == 7


class Broken(Named):
    """Grey images, of which none can be read whose index is in ``broken``."""

    broken: tuple[int, ...] = ()

    def read(self, index, min_short=None):
        if index in self.broken:
            raise DataError(f"{self.names[index]}: truncated")
        height, width = self.sizes[index]
        return torch.full((3, int(height), int(width)), 10 * index, dtype=torch.uint8)


def test_batches_without_a_readable_image_have_no_part_in_the_weights():
    quiet_lightning()
    source = Broken([(f"i/{i}", i % 2, 10) for i in range(8)], ("a", "b"))
    network = SppClassifier(build_trunk("tiny", width=0.125), ("a", "b"), levels=(1,))
    before = {name: value.clone() for name, value in network.state_dict().items()}
    for broken, same in (((), False), (range(8), True)):
        source.broken = broken
        network.load_state_dict(before)
        data = MultiScaleDataModule(source, source, schedule=(16,), batch_size=4, on_error="skip")
        module = LitSppClassifier(network, lr=1e-2, warmup_epochs=0)
        with contextlib.suppress(DataError):  # an epoch without any image is one
            plain_trainer(1, "cpu").fit(module, datamodule=data)
        assert all(torch.equal(before[name], value) for name, value in network.state_dict().items()) == same
        assert len(data.skipped) == len(broken)


@pytest.mark.parametrize(
    ("part", "said"), [("train", "the training images of epoch 1"), ("val", "4 validation images")]
)
def test_a_part_of_which_nothing_can_be_read_is_an_error(trained, tmp_path, capsys, part, said):
    root = shutil.copytree(trained / "photos", tmp_path / "photos")
    for file in (root / part).glob("*/*.png"):  # whole headers, no pixels
        file.write_bytes(file.read_bytes()[:60])
    assert run(spec(root, tmp_path / "run")) == 3
    assert re.search(rf"^error: none of {said} could be read$", capsys.readouterr().err, re.M)


def test_an_epoch_whose_last_batch_has_no_readable_image_has_its_row(trained, tmp_path):
    root = shutil.copytree(trained / "photos", tmp_path / "photos")
    data = MultiScaleDataModule(str(root), schedule=(16, 24), batch_size=4)
    for index in data.plan(0)[-1].indices:
        file = Path(data.train.names[index])
        file.write_bytes(file.read_bytes()[:60])
    assert run(spec(root, tmp_path / "run")) == 0
    row = (tmp_path / "run" / "metrics.csv").read_text().splitlines()[1].split(",")
    assert np.isfinite([float(row[4]), float(row[5])]).all()


def test_a_run_that_came_and_went_while_the_lock_was_waited_for_is_left_alone(tmp_path, monkeypatch):
    lock = RunFolder._lock

    def another_finishes(folder):
        (folder.path / "summary.json").write_text("{}")
        lock(folder)

    monkeypatch.setattr(RunFolder, "_lock", another_finishes)
    with pytest.raises(ConfigError, match="already holds a run"):
        RunFolder(tmp_path / "run")


def test_fresh_folders_of_one_second_are_all_different(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("time.strftime", lambda *_: "2026-11-24_12-00-00")
    made = [fresh_folder() for _ in range(3)]
    assert made == [f"runs/2026-11-24_12-00-00{end}" for end in ("", "-2", "-3")]
    assert all(Path(folder).is_dir() for folder in made)


@pytest.mark.slow
def test_sweeps_of_one_folder_at_once_lose_no_job(tmp_path):
    small = ("data.train_size=24", "data.val_size=12", "data.batch_size=12", "model.width=0.125", "model.levels=[1]")
    small += ("schedule.scales=[16,24]", "trainer.max_epochs=1", "metrics.gap_images=0", "metrics.test_scales=[16]")
    sweeps = [
        subprocess.Popen([sys.executable, TRAIN, "-m", *small, f"seed={seeds}", "sweep_dir=s"], cwd=tmp_path)
        for seeds in ("0,1", "1,2", "3")
    ]
    assert [sweep.wait(300) for sweep in sweeps] == [0, 0, 0]
    jobs = json.loads((tmp_path / "s" / "sweep.json").read_text())["jobs"]
    assert len(jobs) == 4
    assert {json.loads((tmp_path / "s" / job / "status.json").read_text())["state"] for job in jobs} == {"finished"}
