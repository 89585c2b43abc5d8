"""Images from the wild: whatever is in a file, and whatever becomes of it, its batch mates are as they were."""

import os
import shutil
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from wild_files import look, mutant, picture, whole_files

from sppcls.data import decode as decoding
from sppcls.data.augment import Augment
from sppcls.data.cache import PixelCache
from sppcls.data.decode import decode_array, read_size, shown
from sppcls.data.files import FileSource, scan
from sppcls.data.geometry import fitted_size
from sppcls.data.images import decode, fit_image
from sppcls.data.loader import IGNORED, BatchDataset, PlannedLoader
from sppcls.data.paths import class_folders, image_files
from sppcls.data.plan import Batch, plan_epoch
from sppcls.data.schedule import Schedule
from sppcls.errors import DataError

PAD = (1, 2, 3)


# --- damaged files in batches ----------------------------------------------------------------------------------------


def put_all(folder: Path, copies: int = 1) -> FileSource:
    """Write the undamaged files and scan them."""
    for i in range(copies):
        for name, data in whole_files().items():
            if name != "rle.bmp":
                (folder / f"{i}{name}").write_bytes(data)
    paths = image_files(folder)
    return FileSource(paths, [i % 3 for i in range(len(paths))], ("a", "b", "c"), scan(paths)[1])


def load(source: FileSource, workers: int = 0, on_error: str = "skip", **options: Any) -> PlannedLoader:
    def plan(_: int) -> Any:  # every epoch is the first one, whose augmentation is known
        return plan_epoch(source.sizes, Schedule("single", (24,)), 0, seed=3, batch_size=6)

    return PlannedLoader(BatchDataset(source, pad=PAD, **options), plan, num_workers=workers, on_error=on_error)


Images = dict[int, tuple[torch.Tensor, int]]


def by_index(loader: PlannedLoader) -> Images:
    """Return index -> (pixels, target) of an epoch."""
    batches = list(loader)
    assert sorted(i for b in batches for i in b["indices"].tolist()) == list(range(len(loader.dataset.source.targets)))
    rows = (zip(b["indices"].tolist(), b["images"], b["targets"].tolist(), strict=True) for b in batches)
    return {i: (image, target) for batch in rows for i, image, target in batch}


def failure(loader: PlannedLoader) -> str:
    try:
        list(loader)
    except DataError as error:  # not pytest.raises, which would keep the workers alive
        line = str(error)
    assert line.endswith("; data.on_error=skip leaves such files out")
    return line


def check(source: FileSource, before: Images, after: Images, touched: set[int], skipped: dict[str, str]) -> list[int]:
    """What was not touched is the same to the bit; what was is an image or padding. Return what was left out."""
    left_out = [index for index, (_, target) in after.items() if target == IGNORED]
    for index, (image, target) in after.items():
        if index in left_out:
            assert (image == torch.tensor(PAD)[:, None, None]).all()
        else:
            assert target == source.targets[index]
        if index not in touched:
            assert torch.equal(image, before[index][0])
    assert touched.issuperset(left_out)
    assert sorted(skipped) == sorted(source.names[index] for index in left_out)
    for name, reason in skipped.items():
        assert reason.startswith(f"{shown(name)}: ")
        assert reason.count(shown(name)) == 1
        assert reason.isprintable()
    return left_out


@pytest.mark.parametrize("workers", [0, 2])
def test_files_damaged_after_the_scan(workers: int, tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    source = put_all(tmp_path, copies=4)
    before = by_index(load(source, augment=Augment(seed=2)))
    touched = set(Random(0).sample(range(len(source.names)), 50))
    readable = set()
    for number, index in enumerate(sorted(touched), 1000):
        Path(source.names[index]).write_bytes(mutant(number)[1])
        with torch.no_grad():
            try:
                decode(source.names[index])
                readable.add(index)
            except DataError:
                pass
    loader = load(source, workers, augment=Augment(seed=2))
    for _ in range(2):
        left_out = check(source, before, by_index(loader), touched, loader.skipped)
        assert touched - readable == set(left_out)
    assert len(left_out) > 10
    assert len(readable) > 10
    line = failure(load(source, workers, "fail"))
    assert [line.count(source.names[index]) for index in left_out].count(1) == 1
    assert line.isprintable()
    assert not recwarn.list


# --- files that change while they are trained on ---------------------------------------------------------------------


def vanish(path: Path) -> None:
    path.unlink()


def folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def endless(path: Path) -> None:
    path.unlink()
    path.symlink_to("/dev/zero")


def link_loop(path: Path) -> None:
    path.unlink()
    path.symlink_to(path)


def empty(path: Path) -> None:
    path.write_bytes(b"")


def no_image(path: Path) -> None:
    path.write_text("<html>404</html>")


def half(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def turned(path: Path) -> None:
    picture().resize((30, 90)).save(path, "jpeg")


def long(path: Path) -> None:
    picture().resize((3000, 1)).save(path, "png")


def large(path: Path) -> None:
    picture().resize((640, 480)).save(path, "webp", lossless=True)


LOSSES = (vanish, folder, pipe, endless, link_loop, empty, no_image, half)
CHANGES = (turned, long, large)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("cached", [False, True])
def test_files_that_change_between_two_epochs(workers: int, cached: bool, tmp_path: Path) -> None:
    source = put_all(tmp_path)
    by_name = {Path(name).name: index for index, name in enumerate(source.names)}
    places = [by_name[f"0{n}"] for n in ("a.jpg", "a.png", "a.webp", "a.bmp", "a.tif", "a.ppm", "deep.png", "grey.jpg")]
    cache = PixelCache(source, 24) if cached else None
    loader = load(source, workers, cache=cache, augment=Augment(seed=1))
    before = by_index(load(source, augment=Augment(seed=1), cache=PixelCache(source, 24) if cached else None))
    for change, index in zip(LOSSES, places, strict=True):
        change(Path(source.names[index]))
    touched = set(places)
    for change, name in zip(CHANGES, ("alpha.png", "moving.gif", "cmyk.jpg"), strict=True):
        change(Path(source.names[by_name[f"0{name}"]]))
        touched.add(by_name[f"0{name}"])
    for _ in range(2):
        left_out = check(source, before, by_index(loader), touched, loader.skipped)
        assert set(left_out) == set(places)
    assert any(source.names[index] in failure(load(source, workers, "fail")) for index in places)
    if cache:  # what it holds is served for ever, and what changed its aspect is not in it
        missing = {index for index in range(len(source.names)) if cache.get(index) is None}
        assert missing == touched - {by_name["0cmyk.jpg"]}
        for index in set(range(len(source.names))) - set(places):
            vanish(Path(source.names[index]))
        loader.skipped.clear()
        after = by_index(loader)
        assert set(check(source, before, after, touched, loader.skipped)) == missing


@pytest.mark.parametrize("fit", ["keep", "crop", "warp"])
@pytest.mark.parametrize("cached", [False, True])
@pytest.mark.parametrize("shape", [(90, 30), (1, 3000), (3000, 1), (7, 7), (480, 640), (2, 5)])
def test_a_file_of_another_aspect_fills_its_place(
    fit: Any, cached: bool, shape: tuple[int, int], tmp_path: Path
) -> None:
    source = put_all(tmp_path)
    index = [Path(name).name for name in source.names].index("0a.jpg")
    image = Image.new("RGB", shape[::-1], (200, 200, 200))
    image.save(source.names[index], "jpeg", quality=100)
    dataset = BatchDataset(source, fit, PAD, Augment(seed=1), PixelCache(source, 24) if cached else None)
    batch = Batch((index,) * 3, (24, 40), 24, 1)
    dataset.augment = None
    for got in dataset[batch]["images"]:
        h, w = fitted_size(*shape, batch.size) if fit == "keep" else batch.size
        assert torch.equal(got, fit_image(decode(source.names[index]), batch.size, fit, PAD))
        assert (got[:, :h, :w].int() - 200).abs().max() <= 2, "the file's own aspect"
        assert (got[:, h:] == torch.tensor(PAD)[:, None, None]).all()
        assert (got[:, :, w:] == torch.tensor(PAD)[:, None, None]).all()


def test_a_file_that_is_cut_short_while_it_is_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pillow maps some files that it is given by name: cutting such a file ends the process with a bus error."""
    for name, mode in (("a.bmp", "L"), ("a.tif", "CMYK"), ("a.tif", "I;16"), ("lzw.tif", "RGB")):
        path = tmp_path / name
        image = Image.new(mode, (600, 600), 7 if mode != "CMYK" and mode != "RGB" else (9,) * len(mode))
        image.save(path, compression="tiff_lzw" if name == "lzw.tif" else None)
        whole = decode_array(path)
        with monkeypatch.context() as patch:
            load = decoding._to_rgb

            def cut(image: Image.Image, path: Path = path, load: Callable[..., Any] = load) -> Image.Image:
                os.truncate(path, 100)
                return load(image)

            patch.setattr(decoding, "_to_rgb", cut)
            assert np.array_equal(decode_array(path), whole)


# --- cases made by hand ----------------------------------------------------------------------------------------------


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
    (batch,) = plan_epoch(source.sizes, Schedule("single", (32,)), 0, seed=0, batch_size=4).batches
    assert max(batch.size) < 4.2 * 32, "a tensor has a bounded aspect"
    for kept in (None, PixelCache(source, 32)):
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
        with pytest.raises(DataError, match=rf"{name}: (more than 178,956,970 pixels|a damaged|no image)"):
            read(tmp_path / name)


def test_a_jpeg_of_endless_scans_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.new("L", (1000, 1000), 128).save(tmp_path / "a.jpg", progressive=True, quality=5)
    data = (tmp_path / "a.jpg").read_bytes()
    last = data[data.rindex(b"\xff\xda") : -2]
    (tmp_path / "a.jpg").write_bytes(data[:-2] + last * (2**21 // len(last)) + data[-2:])
    monkeypatch.setattr(decoding, "_MOST_SECONDS", 0.3)
    with pytest.raises(DataError, match=r"a\.jpg: it takes more than 0\.3 s to decode; mend or remove the file$"):
        decode_array(tmp_path / "a.jpg")


def test_a_file_of_more_bytes_than_any_photograph(tmp_path: Path) -> None:
    shutil.copy(put_all(tmp_path).names[0], tmp_path / "b.webp")
    os.truncate(tmp_path / "b.webp", 2**30 + 1)  # takes no room on the disk
    for read in (read_size, decode_array):
        with pytest.raises(DataError, match=r"b\.webp: a file of more than 1 GiB; mend or remove the file$"):
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
    assert [str(path) for path in kept] == good
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
