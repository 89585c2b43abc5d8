"""The pixel cache: it changes no bit of any batch or figure, its room is reserved, and it is found and removed."""

import errno
import json
import os
import subprocess
import sys
import time
from csv import DictReader
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from sppcls import commands
from sppcls.data.cache import PixelCache, cache_dir, open_caches, open_reserved
from sppcls.data.cut import own_tensors
from sppcls.data.files import FileSource, scan
from sppcls.data.geometry import fitted_size, fitted_sizes
from sppcls.data.images import Augment, BatchDataset, fit_image
from sppcls.data.plan import plan_epoch, plan_evaluation
from sppcls.data.schedule import Schedule
from sppcls.data.shapes import ShapesSource
from sppcls.errors import ConfigError
from sppcls.spec import parse
from sppcls.training.datamodule import MultiScaleDataModule
from sppcls.training.run import run


def cache_of(source, scales, fit="keep"):
    return PixelCache(source, own_tensors(source.sizes, scales, fit), fit)


SIZES = [(300, 220), (220, 310), (130, 130), (40, 64), (64, 41), (23, 29), (400, 300), (31, 300), (300, 31), (190, 260)]


def photographs(root, count=20):
    """Write JPEGs (every fifth one by another suffix), PNGs and a PNG that is named as a JPEG."""
    rng = np.random.default_rng(0)
    for i in range(count):
        h, w = SIZES[i % len(SIZES)]
        coarse = Image.fromarray(rng.integers(0, 256, (h // 8 + 2, w // 8 + 2, 3), np.uint8))
        path = root / f"{'ab'[i % 2]}" / f"{i:02}.{('jpg', 'png', 'jpg', 'JPG', 'jfif')[i % 5]}"
        path.parent.mkdir(exist_ok=True)
        coarse.resize((w, h)).save(path, ("jpeg", "png", "png", "jpeg", "jpeg")[i % 5] if i != 16 else "jpeg")
    return root


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """Return files of several formats, some under the suffix of another."""
    root = photographs(tmp_path_factory.mktemp("photographs"))
    paths = sorted(root.rglob("*.*"))
    return FileSource(paths, [i % 2 for i in range(len(paths))], ("a", "b"), scan(paths)[1])


SCHEDULES = [
    Schedule("single", (96,)),
    Schedule("alternate", (48, 96)),
    Schedule("alternate", (96, 24, 200)),
    Schedule("random", (32, 96), every="batch", step=16),
]


def batches(source, schedule, fit, cache):
    """Yield the pixels of two training epochs and of an evaluation at each scale, twice."""
    train = BatchDataset(source, fit, augment=Augment(brightness=0.2, seed=1), cache=cache)
    plain = BatchDataset(source, fit, cache=cache)
    for epoch in (0, 1):
        for batch in plan_epoch(source.sizes, schedule, epoch, seed=0, batch_size=4, fit=fit):
            yield train[batch]["images"]
    for scale in (*schedule.choices, 40, 150) * 2:
        for batch in plan_evaluation(source.sizes, scale, batch_size=4, fit=fit):
            yield plain[batch]["images"]


@pytest.mark.parametrize("fit", ["keep", "crop", "warp"])
@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda schedule: f"{schedule.kind}-{len(schedule.choices)}")
def test_batches_are_the_same_to_the_bit(source, schedule, fit, tmp_path):
    cache = cache_of(source, schedule.choices, fit).open(tmp_path / "a.pixels" if schedule.kind == "single" else None)
    with_cache = batches(source, schedule, fit, cache)
    for place, expected in enumerate(batches(source, schedule, fit, None)):
        assert torch.equal(next(with_cache), expected), place


@pytest.mark.parametrize("fit", ["keep", "crop", "warp"])
def test_a_full_cache_reads_nothing(source, fit, monkeypatch):
    scales = (48, 96)
    cache = cache_of(source, scales, fit).open()
    plans = [batch for scale in scales for batch in plan_evaluation(source.sizes, scale, batch_size=4, fit=fit)]
    dataset = BatchDataset(source, fit, cache=cache)
    before = [dataset[batch]["images"] for batch in plans]
    read, real = set(), FileSource.read
    monkeypatch.setattr(FileSource, "read", lambda self, i, short: read.add(self.names[i]) or real(self, i, short))
    assert all(torch.equal(dataset[batch]["images"], images) for batch, images in zip(plans, before, strict=True))
    assert not read or fit == "crop"
    # With crop: files that are not what their suffix says, and those that would take far more room.
    assert len(read) <= 8


@pytest.mark.parametrize("cache", ["ram", "disk"])
def test_batches_of_wide_and_tall_images_are_kept_as_well(source, cache, monkeypatch):
    def module(cache):
        return MultiScaleDataModule(source, schedule=(48, 96), batch_size=12, cache=cache, augment=Augment(hue=0.1))

    plain, cached = module("none").train_dataloader(), module(cache).train_dataloader()
    assert any(min(batch.size) > batch.scale for batch in plain.plan(0))
    reads, real = [], FileSource.read
    monkeypatch.setattr(FileSource, "read", lambda self, i, short: reads.append(i) or real(self, i, short))
    for _ in range(4):
        before = len(reads)
        batches = [batch["images"] for batch in cached]
        read = len(reads) - before
        assert all(torch.equal(*pair) for pair in zip(batches, (b["images"] for b in plain), strict=True))
    assert not read


def test_a_part_of_a_cache_is_the_same_pixels(source):
    whole = cache_of(source, (48,)).open()
    indices = np.array([7, 2, 11])
    for index in indices:
        whole.put(int(index), source.read(int(index), 48), 48, fit_image)
    part = whole.part(indices)
    for place, index in enumerate(indices):
        box = next(b.size for b in plan_evaluation(source.sizes, 48, batch_size=1) if b.indices == (index,))
        assert torch.equal(part.get(place, box), whole.get(int(index), box))


def test_a_cache_of_another_fit_is_refused(source):
    with pytest.raises(ValueError, match="fit is keep and the cache's is crop"):
        BatchDataset(source, "keep", cache=cache_of(source, (48,), "crop"))


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 3000), st.integers(1, 3000)), min_size=1, max_size=20),
    st.integers(8, 300),
)
def test_slots_have_the_shape_of_the_image_in_its_own_tensor(sizes, scale):
    sizes = np.array(sizes)
    (shapes,) = fitted_sizes(sizes, np.stack([own_tensors(sizes, (scale,))[scale]]))
    for batch in plan_evaluation(sizes, scale, batch_size=1):
        (index,) = batch.indices
        assert tuple(shapes[index]) == fitted_size(*map(int, sizes[index]), batch.size)


def test_the_room_is_bounded_by_the_scales():
    """Also for huge images that no decoder reduces, and for many scales of small images."""

    class Sizes:
        classes, names = ("a",), [f"{i}.png" for i in range(3)]
        targets, sizes = np.zeros(3, np.int64), np.array([[6000, 8000], [30, 40], [200, 300]])

    for scales in ((96,), (64, 96), tuple(range(64, 129, 8))):
        fitted = sum(3 * scale * round(scale * 1.51) for scale in scales)
        assert cache_of(Sizes(), scales).size < 3 * fitted + 5000
        assert cache_of(Sizes(), scales, "warp").size < 3 * fitted + 5000
        assert cache_of(Sizes(), scales, "crop").size < 12 * 3 * sum(3 * scale * scale for scale in scales) + 5000


def spec(folder, **data):
    values = {
        "data": {"batch_size": 12, "num_workers": 0, "train_size": 48, "val_size": 24} | data,
        "model": {"width": 0.125, "levels": [2, 1]},
        "schedule": {"scales": [64, 32]},
        "trainer": {"max_epochs": 2, "accelerator": "cpu"},
        "metrics": {"gap_images": 10, "gap_every": 1, "test_scales": [24, 32, 64]},
        "run_dir": str(folder),
    }
    return parse(values)


def figures(folder):
    """Return what three files say, but for what a clock said."""
    rows = []
    for name in ("metrics.csv", "gap.csv"):
        with (folder / name).open() as file:
            rows += [{k: v for k, v in row.items() if k not in ("seconds", "images_per_s")} for row in DictReader(file)]
    summary = json.loads((folder / "summary.json").read_text())
    return rows, {key: value for key, value in summary.items() if "seconds" not in key}


@pytest.mark.parametrize(("name", "cache"), [("shapes", "ram"), ("folder", "disk")])
def test_a_run_has_the_same_figures(name, cache, tmp_path, capsys):
    data = {"name": name}
    if name == "folder":
        (tmp_path / "set").mkdir()
        data["root"] = str(photographs(tmp_path / "set", 40))
    assert run(spec(tmp_path / "none", cache="none", **data)) == 0
    assert "data.cache" not in capsys.readouterr().out
    assert run(spec(tmp_path / "kept", cache=cache, **data)) == 0
    assert f"data.cache={cache}: " in capsys.readouterr().out
    assert figures(tmp_path / "none") == figures(tmp_path / "kept")


# --- room ---------------------------------------------------------------------------------------------------------


def pair():
    return {"train": cache_of(ShapesSource("train", 24), (32,)), "val": cache_of(ShapesSource("val", 12), (32,))}


def test_all_room_is_reserved_at_once(tmp_path):
    line = open_caches(pair(), tmp_path)
    files = list(tmp_path.iterdir())
    assert len(files) == 2
    for file in files:
        assert file.stat().st_blocks * 512 >= file.stat().st_size > 4096
    assert line == f"data.cache=disk: 1 MB in {tmp_path} (train 1, val 1)"
    assert open_caches(pair(), tmp_path) == line
    assert sorted(tmp_path.iterdir()) == sorted(files)


def refused(folder, match):
    with pytest.raises(ConfigError, match=match) as error:
        open_caches(pair(), folder)
    assert "\n" not in str(error.value)


@pytest.mark.skipif(not hasattr(os, "posix_fallocate"), reason="room is reserved by writing zeros here")
def test_a_disk_that_fills_up_between_two_caches(tmp_path, monkeypatch):
    real, calls = os.posix_fallocate, []

    def fallocate(handle, start, size):
        calls.append(size)
        real(handle, start, size if len(calls) == 1 else size // 2)
        if len(calls) == 2:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", fallocate)
    refused(tmp_path, r"data\.cache=disk needs 1 MB in .*: No space left on device; use .*data\.cache=none")
    assert not list(tmp_path.iterdir()), "neither half a file nor the one before it"


def test_the_sum_is_checked_before_anything_is_made(tmp_path, monkeypatch):
    largest = max(cache.size for cache in pair().values())
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=largest))
    refused(tmp_path, r"data\.cache=disk needs .* \(train 1, val 1\): only 1 MB are free")
    assert not list(tmp_path.iterdir())
    if Path("/dev/shm").is_dir():
        refused(
            None,
            r"data\.cache=ram needs .* in shared memory \(train 1, val 1\): only 1 MB are free; use data\.cache=disk",
        )


def test_a_file_that_was_reserved_in_part_is_completed(tmp_path, monkeypatch):
    path = tmp_path / "a.pixels"
    path.write_bytes(b"12345")
    open_reserved(path, 10_000).close()
    assert path.read_bytes() == b"12345" + bytes(9_995)
    path.unlink()
    monkeypatch.delattr(os, "posix_fallocate", raising=False)
    open_reserved(path, 3_000_000).close()
    assert path.stat().st_size == 3_000_000
    assert path.stat().st_blocks * 512 >= 3_000_000


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="mounts a small disk")
def test_a_small_disk_ends_a_run_by_one_line(tmp_path):
    disk, train = tmp_path / "disk", Path(__file__).parent.parent / "train.py"
    disk.mkdir()
    mount = f'mount -t tmpfs -o size=4m none {disk} || exit 77; exec "$@"'
    command = [
        sys.executable,
        train,
        "data.cache=disk",
        "data.train_size=150",
        "data.val_size=150",
        "model.width=0.125",
    ]
    command += ["trainer.max_epochs=1", f"run_dir={tmp_path / 'run'}"]
    environment = os.environ | {"XDG_CACHE_HOME": str(disk)}
    private = ["unshare", "-rm", "sh", "-c", mount, "sh"]
    ended = subprocess.run([*private, *command], env=environment, capture_output=True, text=True, check=False)
    if ended.returncode == 77 or "unshare" in ended.stderr:
        pytest.skip("may not mount a disk")
    assert ended.returncode == 2, ended
    assert "data.cache=disk needs" in ended.stderr
    assert json.loads((tmp_path / "run" / "status.json").read_text())["state"] == "failed"


# --- what is there, and how it goes -------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Return a cache folder with files of each kind, unused for 10 days, and things that are not ours."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for name in ("0" * 20 + ".pixels", f"sizes/{'1' * 16}.bin", f"sizes/{'2' * 16}.bin"):
        put(cache_dir() / name)
    for name in (
        "mine.pixels",
        "0.pixels",
        "sizes/a.json",
        "sizes/more/" + "2" * 16 + ".bin",
        "features/" + "2" * 20 + "-a-1-1.npy",
    ):
        put(cache_dir() / name)
    (cache_dir() / ("f" * 20 + ".pixels")).symlink_to(put(tmp_path / "photograph.jpg"))
    return cache_dir()


def put(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(bytes(5000))
    ten_days_ago = time.time() - 10 * 86400
    os.utime(path, (ten_days_ago, ten_days_ago))
    return path


def called(capsys, *arguments):
    with pytest.raises(SystemExit) as end:
        commands.main(["cache", *arguments])
    assert not end.value.code
    return capsys.readouterr().out


def test_old_caches_are_listed_and_removed_and_nothing_else(folder, capsys):
    everything = sorted(folder.rglob("*"))
    held = cache_of(ShapesSource("train", 12), (32,)).open(folder / ("a" * 20 + ".pixels"))
    out = called(capsys)
    assert "4 files" in out
    assert ["shapes/train" in line for line in out.splitlines() if "a" * 20 in line] == [True]
    assert "3 files" in called(capsys, "--older-than", "9")
    assert "0 files" in called(capsys, "--older-than", "11")
    assert "removed 0 files" in called(capsys, "--clear", "--older-than", "11")
    assert sorted(folder.rglob("*")) == sorted([*everything, folder / ("a" * 20 + ".pixels")])
    assert "removed 3 files, 1 MB" in called(capsys, "--clear")
    left = {path.name for path in folder.rglob("*") if path.is_file()}
    ours = {"a" * 20 + ".pixels"}
    others = {"mine.pixels", "0.pixels", "a.json", "2" * 16 + ".bin", "2" * 20 + "-a-1-1.npy", "f" * 20 + ".pixels"}
    assert left == ours | others
    assert "1 in use, kept" in called(capsys, "--clear")
    held.get(0, (32, 32))
    del held
    assert "removed 1 file, " in called(capsys, "--clear")
    assert {path.name for path in folder.rglob("*") if path.is_file()} == others


def test_what_another_process_uses_is_kept(folder, capsys):
    path = put(folder / ("b" * 20 + ".pixels"))
    code = "import sys; from pathlib import Path; from sppcls.data.cache import open_reserved as o"
    code += f"; f = o(Path({str(path)!r}), 5000); print(1, flush=True); sys.stdin.read()"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        other.stdout.read(1)
        assert "removed 3 files" in called(capsys, "--clear")
        assert path.exists()
        other.stdin.close()
    assert "removed 1 file, " in called(capsys, "--clear")


def test_a_folder_that_is_not_there_has_no_caches(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "none"))
    assert called(capsys) == "0 files, 0 MB\n"
    assert called(capsys, "--clear") == f"removed 0 files, 0 MB, from {tmp_path / 'none' / 'sppcls'}\n"
