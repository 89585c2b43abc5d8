"""Images from the wild, case by case: cut short, threads of pixels, bombs, what is no file, names of any bytes."""

import os
import shutil
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from wild_batches import (
    PAD,
    by_index,
    check,
    endless,
    half,
    link_loop,
    load,
    pipe,
    put_all,
)
from wild_files import look, whole_files

from sppcls.data import decode as decoding
from sppcls.data.cache import PixelCache
from sppcls.data.cut import own_tensors
from sppcls.data.decode import decode_array, read_size
from sppcls.data.files import FileSource, scan
from sppcls.data.folders import class_folders, image_files
from sppcls.data.images import BatchDataset
from sppcls.data.plan import plan_epoch
from sppcls.data.schedule import Schedule
from sppcls.errors import DataError


@pytest.mark.parametrize("name", ["a.jpg", "progressive.jpg", "cmyk.jpg", *(n for n in whole_files() if n[0] == "a")])
def test_cut_at_every_tenth(name: str, tmp_path: Path) -> None:
    path, data = tmp_path / name, whole_files()[name]
    verdicts = []
    for tenth in range(10):
        path.write_bytes(data[: len(data) * tenth // 10])
        verdicts.append(look(path))
    path.write_bytes(data)
    assert look(path)
    assert not any(verdicts), "no format passes half an image off as a whole one"


@pytest.mark.parametrize("suffix", ["png", "jpg", "bmp", "tif", "ppm"])
@pytest.mark.parametrize("shape", [(1, 10000), (60000, 1)])
def test_threads_of_pixels(shape: tuple[int, int], suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"a.{suffix}"
    Image.new("RGB", shape[::-1], (200, 100, 50)).save(path)
    assert look(path)
    assert read_size(path) == shape
    source = FileSource([path], [0], ("a",), scan([path])[1])
    (batch,) = plan_epoch(source.sizes, Schedule("single", (32,)), 0, seed=0, batch_size=4)
    assert max(batch.size) < 4.2 * 32, "a tensor has a bounded aspect"
    for kept in (None, PixelCache(source, own_tensors(source.sizes, (32,))).open()):
        image = BatchDataset(source, pad=PAD, cache=kept)[batch]["images"][0]
        assert (image[:, 0, 0].int() - torch.tensor([200, 100, 50])).abs().max() < 8


def bombs() -> Iterator[tuple[str, bytes]]:
    png = bytearray(whole_files()["a.png"])
    struct.pack_into(">II", png, 16, 60000, 60000)
    gif = bytearray(whole_files()["a.gif"])
    struct.pack_into("<HH", gif, 6, 65535, 65535)
    bmp = bytearray(whole_files()["a.bmp"])
    struct.pack_into("<II", bmp, 18, 2**31 - 1, 2**31 - 1)
    webp = bytearray(whole_files()["alpha.webp"])
    webp[24:30] = b"\xfe\x3f\x00" * 2
    jpeg = bytearray(whole_files()["a.jpg"])
    struct.pack_into(">HH", jpeg, jpeg.index(b"\xff\xc0") + 5, 65500, 65500)
    ppm = b"P6 99999 99999 255\n" + bytes(100)
    yield from (("a.png", png), ("a.gif", gif), ("a.bmp", bmp), ("a.webp", webp), ("a.jpg", jpeg), ("a.ppm", ppm))


@pytest.mark.parametrize(("name", "data"), list(bombs()), ids=lambda value: value if isinstance(value, str) else "")
def test_bombs_are_refused_by_their_header(name: str, data: bytes, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(data)
    for read in (read_size, decode_array):
        with pytest.raises(DataError, match=rf"{name}: (more than 178,956,970 pixels|a damaged|not an image)"):
            read(tmp_path / name)


def test_a_jpeg_of_endless_scans_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.new("L", (1000, 1000), 128).save(tmp_path / "a.jpg", progressive=True, quality=5)
    data = (tmp_path / "a.jpg").read_bytes()
    last = data[data.rindex(b"\xff\xda") : -2]
    (tmp_path / "a.jpg").write_bytes(data[:-2] + last * (2**21 // len(last)) + data[-2:])
    monkeypatch.setattr(decoding, "_MOST_SECONDS", 0.3)
    with pytest.raises(DataError, match=r"a\.jpg: decoding takes more than 0\.3 s; repair or remove the file$"):
        decode_array(tmp_path / "a.jpg")


def test_a_file_of_more_bytes_than_any_photograph(tmp_path: Path) -> None:
    shutil.copy(put_all(tmp_path).names[0], tmp_path / "b.webp")
    os.truncate(tmp_path / "b.webp", 2**30 + 1)  # takes no room on the disk
    for read in (read_size, decode_array):
        with pytest.raises(DataError, match=r"b\.webp: the file is larger than 1 GiB; repair or remove the file$"):
            read(tmp_path / "b.webp")


@pytest.mark.parametrize(
    ("change", "why"), [(pipe, "a pipe or"), (endless, "a pipe or"), (link_loop, "Too many levels")]
)
def test_what_is_no_file_is_left_out_at_the_scan(change: Callable[[Path], None], why: str, tmp_path: Path) -> None:
    good = put_all(tmp_path).names
    (tmp_path / "x.png").touch()
    change(tmp_path / "x.png")
    paths = image_files(tmp_path)
    kept, _, skipped = scan(paths, "skip")
    assert [str(paths[index]) for index in kept] == good
    (entry,) = skipped
    assert entry[0] == str(tmp_path / "x.png")
    assert entry[1].startswith(why)
    with pytest.raises(DataError, match=rf"x\.png: {why}"):
        scan(paths)


@pytest.mark.parametrize(
    "name", [b"two\nlines.png", b"caf\xe9\xff.png", b"\x1b[31mred.png", "\u2028\x85\r.png".encode()]
)
def test_names_that_no_line_can_hold(name: bytes, tmp_path: Path) -> None:
    path = tmp_path / os.fsdecode(name)
    try:
        path.write_bytes(whole_files()["a.png"])
    except (OSError, UnicodeError):
        pytest.skip("this file system takes UTF-8 names only")
    assert look(path)
    (found,) = image_files(tmp_path)
    source = FileSource([found], [0], ("a",), scan([found])[1])
    before = by_index(load(source))
    half(path)
    assert not look(path)
    loader = load(source)
    assert check(source, before, by_index(loader), {0}, loader.skipped) == [0]


def test_classes_that_print_alike_are_told_apart_or_refused(tmp_path: Path) -> None:
    try:
        for name in (b"caf\xe8", b"caf\xe9"):
            (tmp_path / os.fsdecode(name)).mkdir()
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    with pytest.raises(DataError, match=r"two folders are both shown as 'caf\ufffd'; rename one"):
        class_folders(tmp_path)
    (tmp_path / os.fsdecode(b"caf\xe8")).rename(tmp_path / "caf\nè")
    assert list(class_folders(tmp_path)) == ["caf\\nè", "caf\ufffd"]


def test_grey_of_many_blocks_is_stretched_as_one(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(0).normal(3, 50, (37, 53)).astype(np.float32)
    values[3, 4], values[5, 6], values[20, 20] = np.nan, np.inf, -np.inf
    whole = decoding._to_8_bit(values)
    assert (whole.min(), whole.max()) == (0, 255)
    for block in (1, 10, 53, 1000):
        monkeypatch.setattr(decoding, "_BLOCK", block)
        assert np.array_equal(decoding._to_8_bit(values), whole)
