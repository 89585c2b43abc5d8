"""Folders, arrays and torchvision's sets as sources: scanning, splitting, limits, and what must fail."""

import json
import os
import pickle
import shutil
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Callable
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from sppcls.data import files
from sppcls.data.catalog import load_splits
from sppcls.data.decode import read_size_unguarded
from sppcls.data.files import FileSource, read_groups, scan, size_cache
from sppcls.data.folders import class_folders, image_files
from sppcls.data.source import ArraySource, Names, Source, Subset
from sppcls.data.split import split_by_class
from sppcls.errors import ConfigError, DataError


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def put_image(path: Path, h: int = 6, w: int = 8, value: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (w, h), (value, value, value)).save(path)
    return path


def put_classes(root: Path, counts: dict[str, int]) -> Path:
    for name, count in counts.items():
        (root / name).mkdir(parents=True)
        for i in range(count):
            put_image(root / name / f"{i:03}.png", 6 + i % 5, 8 + i % 3, i)
    return root


def short_names(source: Source) -> list[str]:
    return ["/".join(Path(name).parts[-2:]) for name in source.names]


def check(source: Source) -> None:
    """Sizes, targets, names and pixels say the same."""
    assert len(source.names) == len(source.targets) == len(source.sizes)
    assert source.targets.dtype == source.sizes.dtype == np.int64
    for i in range(len(source.names)):
        assert tuple(source.read(i).shape) == (3, *source.sizes[i])
        assert Path(source.names[i]).parent.name == source.classes[source.targets[i]]


# --- listing ---------------------------------------------------------------------------------------------------------


def test_lists_images_of_any_case_and_depth_and_no_hidden_files(tmp_path: Path) -> None:
    wanted = ["A.JPG", "b.jpeg", "c.PnG", "d.tiff", "deep/er/e.webp", "f.pgm", "g.h.bmp"]
    others = [".DS_Store", "._a.jpg", ".hidden/x.png", "notes.txt", "Thumbs.db", "jpg", ".png", "a.jpg.part", "a.npy"]
    for name in wanted + others:
        (tmp_path / "c" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "c" / name).touch()
    assert [path.relative_to(tmp_path / "c").as_posix() for path in image_files(tmp_path / "c")] == sorted(wanted)


def test_link_loops_end_and_links_are_followed(tmp_path: Path) -> None:
    put_image(tmp_path / "elsewhere" / "b.png")
    put_image(tmp_path / "c" / "a.png")
    (tmp_path / "c" / "loop").symlink_to(tmp_path / "c")
    (tmp_path / "c" / "more").symlink_to(tmp_path / "elsewhere")
    assert [path.name for path in image_files(tmp_path / "c")] == ["a.png", "b.png"]


def test_names_that_are_not_utf8(tmp_path: Path) -> None:
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/data/caf\xe9"))
    try:
        put_image(folder / os.fsdecode(b"\xff.png"), 5, 7)
    except (OSError, UnicodeError):
        pytest.skip("this file system takes UTF-8 names only")
    put_image(folder / "b.png")
    put_classes(tmp_path / "data", {"tea": 2})
    for _ in range(2):  # the second time from the cache
        splits = load_splits("folder", tmp_path / "data")
        assert splits.train.classes == ("caf\ufffd", "tea")
        assert sorted(Path(name).name for name in [*splits.train.names, *splits.val.names])[2:] == [
            "b.png",
            "\udcff.png",
        ]


# --- scanning and its cache ------------------------------------------------------------------------------------------


def counted(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    read: list[Path] = []
    real = read_size_unguarded

    def spy(path: Path) -> tuple[int, int]:
        read.append(path)
        return real(path)

    monkeypatch.setattr(files, "read_size_unguarded", spy)
    return read


def test_scan_reads_each_header_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = [put_image(tmp_path / f"{i}.png", 5 + i, 9) for i in range(300)]
    cache = size_cache(tmp_path)
    assert cache is not None
    assert cache.is_relative_to(tmp_path / "cache" / "sppcls")
    read = counted(monkeypatch)
    wanted = [[5 + i, 9] for i in range(300)]
    for reads in (300, 0):
        kept, sizes, skipped = scan(paths, cache=cache)
        assert (kept.tolist(), sizes.tolist(), skipped) == ([*range(300)], wanted, [])
        assert len(read) == reads
        read.clear()
    put_image(paths[7], 40, 50)
    assert scan(paths, cache=cache)[1][7].tolist() == [40, 50]
    assert read == [paths[7]]
    assert [path.name for path in cache.parent.iterdir()] == [cache.name], "nothing is left beside the cache"


def test_a_file_of_the_same_length_and_another_time_is_read_again(tmp_path: Path) -> None:
    cache = size_cache(tmp_path)
    path = tmp_path / "a.bmp"
    put_image(path, 4, 8)
    assert scan([path], cache=cache)[1].tolist() == [[4, 8]]
    length = path.stat().st_size
    put_image(path, 8, 4)
    assert path.stat().st_size == length
    os.utime(path, ns=(1, 1))
    assert scan([path], cache=cache)[1].tolist() == [[8, 4]]


@pytest.mark.parametrize("damage", [b"", b"{", bytes(39), bytes(40), b"\xff" * 80, b'{"a": [1, 2, 3, 4]}'])
def test_a_damaged_cache_is_ignored_and_rewritten(tmp_path: Path, damage: bytes) -> None:
    paths = [put_image(tmp_path / "a.png", 5, 6)]
    cache = size_cache(tmp_path)
    assert cache is not None
    scan(paths, cache=cache)
    whole = cache.read_bytes()
    cache.write_bytes(damage)
    assert scan(paths, cache=cache)[1].tolist() == [[5, 6]]
    assert cache.read_bytes() == whole


def test_an_unwritable_cache_only_means_no_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))  # a folder cannot be made under a file
    put_classes(tmp_path / "data", {"a": 2, "b": 2})
    check(load_splits("folder", tmp_path / "data").train)


def test_unreadable_files_fail_by_name_or_are_skipped(tmp_path: Path) -> None:
    good = [put_image(tmp_path / f"{i}.png") for i in range(3)]
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "text.png").write_text("no image")
    (tmp_path / "gone.png").symlink_to(tmp_path / "nowhere")
    paths = sorted([*good, tmp_path / "empty.jpg", tmp_path / "text.png", tmp_path / "gone.png"])
    with pytest.raises(DataError, match=r"empty\.jpg: an empty file.*\(2 more such files\); data\.on_error=skip"):
        scan(paths)
    kept, sizes, skipped = scan(paths, "skip")
    assert [paths[index] for index in kept] == good
    assert len(sizes) == 3
    assert [(Path(path).name, reason) for path, reason in skipped] == [
        ("empty.jpg", "an empty file"),
        ("gone.png", "No such file or directory"),
        ("text.png", "not an image that Pillow can read"),
    ]
    with pytest.raises(ConfigError, match=r"data\.on_error: got 'skipp'; did you mean 'skip'\?"):
        scan(paths, "skipp")


def test_no_file_is_no_error() -> None:
    kept, sizes, skipped = scan([])
    assert (len(kept), sizes.shape, skipped) == (0, (0, 2), [])


# --- subsets ---------------------------------------------------------------------------------------------------------


def arrays(n: int = 20) -> ArraySource:
    images = np.arange(n, dtype=np.uint8)[:, None, None, None] * np.ones((1, 4, 5, 3), np.uint8)
    return ArraySource(images, [i % 4 for i in range(n)], ["a", "b", "c", "d"], "set/train")


@settings(deadline=None)
@given(st.lists(st.integers(0, 19), unique=True))
def test_subset_keeps_everything_in_step(indices: list[int]) -> None:
    whole = arrays()
    part = Subset(whole, indices)
    assert part.classes == whole.classes
    assert part.targets.tolist() == [i % 4 for i in indices]
    assert list(part.names) == [f"set/train/{i}" for i in indices]
    assert part.sizes.reshape(-1, 2).tolist() == [[4, 5]] * len(indices)
    for place, index in enumerate(indices):
        assert torch.equal(part.read(place), whole.read(index))


def test_array_source_hands_out_copies() -> None:
    source = arrays()
    source.read(3).fill_(99)
    assert (source.read(3) == 3).all()


# --- splitting -------------------------------------------------------------------------------------------------------


def slow_sizes(n: int, train: int | None, val: int | None) -> tuple[int, int] | None:
    """The rule said one image at a time; None where nothing is left for one of the two."""
    if train is None and val is None:
        val = max(1, round(0.2 * n))
    if train is None:
        train = n - (val or 0)
    left = n - train
    taken = left if val is None else 0
    while val is not None and taken < val and taken < left:
        taken += 1
    return (train, taken) if train >= 1 and taken >= 1 else None


@settings(deadline=None)
@given(
    st.lists(st.integers(1, 12), min_size=2, max_size=4),
    st.one_of(st.none(), st.integers(1, 8)),
    st.one_of(st.none(), st.integers(1, 8)),
    st.integers(0, 3),
)
def test_split_by_class(counts: list[int], train: int | None, val: int | None, seed: int) -> None:
    targets = [c for c, n in enumerate(counts) for _ in range(n)]
    source = ArraySource(
        np.zeros((len(targets), 1, 1, 3), np.uint8), targets, [f"c{c}" for c in range(len(counts))], "set"
    )
    wanted = [slow_sizes(n, train, val) for n in counts]
    if None in wanted:
        with pytest.raises(DataError, match=f"has {min(counts)} image"):
            split_by_class(source, seed, train, val)
        return
    first, second = split_by_class(source, seed, train, val)
    assert not set(first.names) & set(second.names)
    got = list(zip(np.bincount(first.targets).tolist(), np.bincount(second.targets).tolist(), strict=True))
    assert got == wanted


def test_a_class_is_split_alike_whatever_else_there_is(tmp_path: Path) -> None:
    put_classes(tmp_path / "one", {"a": 20, "b": 10})
    before = load_splits("folder", tmp_path / "one", seed=3)
    shutil.copytree(tmp_path / "one", tmp_path / "moved")
    put_classes(tmp_path / "moved", {"0": 5, "c": 7})
    put_image(tmp_path / "moved" / "b" / "new.png")
    after = load_splits("folder", tmp_path / "moved", seed=3)
    of_a = [[name for name in short_names(s.val) if name.startswith("a/")] for s in (before, after)]
    assert of_a[0] == of_a[1]
    other = load_splits("folder", tmp_path / "one", seed=4)
    assert short_names(other.val) != short_names(before.val)


def test_the_validation_set_stays_while_training_grows(tmp_path: Path) -> None:
    put_classes(tmp_path / "data", {"a": 12, "b": 9})
    names = [
        short_names(load_splits("folder", tmp_path / "data", train_per_class=n, val_per_class=3).val) for n in (1, 4, 6)
    ]
    assert names[0] == names[1] == names[2]


# --- folders ---------------------------------------------------------------------------------------------------------


def test_one_root(tmp_path: Path) -> None:
    put_classes(tmp_path / "data", {"b": 10, "a": 5, ".git": 3})
    (tmp_path / "data" / "README.txt").touch()
    splits = load_splits("folder", str(tmp_path / "data"))
    check(splits.train)
    check(splits.val)
    assert splits.train.classes == splits.val.classes == ("a", "b")
    assert np.bincount(splits.train.targets).tolist() == [4, 8]
    assert np.bincount(splits.val.targets).tolist() == [1, 2]
    assert splits.test is None


@pytest.mark.parametrize(
    ("parts", "val", "test"),
    [
        (("train", "val"), "val", None),
        (("train", "validation"), "validation", None),
        (("train", "valid"), "valid", None),
        (("train", "valid", "test"), "valid", "test"),
        (("train", "test"), "test", None),
        (("train", "val", "test"), "val", "test"),
        (("train", "validation", "test"), "validation", "test"),
    ],
)
def test_parts_in_their_own_folders(tmp_path: Path, parts: tuple[str, ...], val: str, test: str | None) -> None:
    for size, part in enumerate(parts, start=2):
        put_classes(tmp_path / "data" / part, {"a": size, "b": size})
    splits = load_splits("folder", tmp_path / "data")
    for source, folder in ((splits.train, "train"), (splits.val, val), (splits.test, test)):
        assert (source is None) == (folder is None)
        if source is not None:
            check(source)
            assert {Path(name).parts[-3] for name in source.names} == {folder}


def test_train_alone_is_split(tmp_path: Path) -> None:
    put_classes(tmp_path / "data" / "train", {"a": 5, "b": 5})
    assert np.bincount(load_splits("folder", tmp_path / "data").val.targets).tolist() == [1, 1]


@pytest.mark.parametrize(
    ("parts", "said"),
    [
        (("train", "vall"), r"vall has images next to train/, but is not a known part; did you mean 'val'\?"),
        (("train", "vla"), r"vla has images next to .*; did you mean 'val'\?"),
        (("train", "Validation"), r"Validation has images next to .*; did you mean 'validation'\?"),
        (("train", "tset"), r"tset has images next to .*; did you mean 'test'\?"),
        (
            ("train", "holdout"),
            r"holdout has .*; allowed: test, val, valid, validation \(data\.val_dir=holdout validates on it, data",
        ),
        (("trian", "val"), r"data: val/ and trian/ have the same class folders, but there is no train/; rename"),
        (("Train", "Val"), r"Train/ and Val/ have the same class folders"),
        (("training", "testing"), r"have the same class folders"),
        (("val", "test"), r"have the same class folders"),
    ],
)
def test_a_mistyped_part_is_no_class(tmp_path: Path, parts: tuple[str, ...], said: str) -> None:
    for part in parts:
        put_classes(tmp_path / "data" / part, {"a": 2, "b": 2})
    with pytest.raises(DataError, match=said):
        load_splits("folder", tmp_path / "data")


def test_only_the_images_beside_train_make_a_part(tmp_path: Path) -> None:
    put_classes(tmp_path / "data" / "train", {"a": 5, "b": 5})
    (tmp_path / "data" / "docs").mkdir()
    put_image(tmp_path / "data" / "test" / "1.png")  # of a competition, without labels
    assert np.bincount(load_splits("folder", tmp_path / "data").val.targets).tolist() == [1, 1]
    put_image(tmp_path / "data" / "unlabelled" / "1.png")
    with pytest.raises(DataError, match="unlabelled has images next to train/"):
        load_splits("folder", tmp_path / "data")


def test_classes_may_hold_folders_of_the_same_names(tmp_path: Path) -> None:
    for name in ("cat", "dog", "valley"):
        put_classes(tmp_path / "data" / name, {"front": 3, "side": 2})
    assert load_splits("folder", tmp_path / "data").train.classes == ("cat", "dog", "valley")


def test_parts_of_loose_images_are_no_classes(tmp_path: Path) -> None:
    for part in ("train", "test"):
        put_image(tmp_path / "data" / part / "1.png")
    with pytest.raises(DataError, match="no class folders"):
        load_splits("folder", tmp_path / "data")


def test_a_class_may_be_called_train(tmp_path: Path) -> None:
    put_classes(tmp_path / "data", {"train": 5, "bus": 5})
    assert load_splits("folder", tmp_path / "data").train.classes == ("bus", "train")


def test_a_test_folder_of_loose_images_is_left_alone(tmp_path: Path) -> None:
    for part in ("train", "val"):
        put_classes(tmp_path / "data" / part, {"a": 2, "b": 2})
    put_image(tmp_path / "data" / "test" / "1.png")
    assert load_splits("folder", tmp_path / "data").test is None


def test_counts_with_separate_parts(tmp_path: Path) -> None:
    put_classes(tmp_path / "data" / "train", {"a": 6, "b": 4})
    put_classes(tmp_path / "data" / "val", {"a": 2, "b": 5})
    splits = load_splits("folder", tmp_path / "data", train_per_class=4, val_per_class=3)
    assert np.bincount(splits.train.targets).tolist() == [4, 4]
    assert np.bincount(splits.val.targets).tolist() == [2, 3]
    check(splits.train)
    with pytest.raises(DataError, match=r"class 'b' has 4 training images: data\.train_per_class=5 can be at most 4"):
        load_splits("folder", tmp_path / "data", train_per_class=5)


def test_classes_can_be_chosen(tmp_path: Path) -> None:
    put_classes(tmp_path / "data", {"ant": 5, "bee": 5, "cat": 5})
    (tmp_path / "data" / "bee" / "broken.png").touch()  # of no interest
    splits = load_splits("folder", tmp_path / "data", classes=["cat", "ant"])
    assert splits.train.classes == ("ant", "cat")
    check(splits.train)
    with pytest.raises(ConfigError, match=r"data\.classes: no class 'catt'; did you mean 'cat'\?"):
        load_splits("folder", tmp_path / "data", classes=["catt"])


def test_skipped_files_are_listed(tmp_path: Path) -> None:
    put_classes(tmp_path / "data", {"a": 5, "b": 5})
    (tmp_path / "data" / "b" / "broken.png").touch()
    with pytest.raises(DataError, match=r"broken\.png: an empty file"):
        load_splits("folder", tmp_path / "data")
    splits = load_splits("folder", tmp_path / "data", on_error="skip")
    assert [Path(path).name for path, _ in splits.skipped] == ["broken.png"]
    assert len(splits.train.names) + len(splits.val.names) == 10


# --- folders that must fail ------------------------------------------------------------------------------------------


def nothing(_: Path) -> None: ...


def loose_files(root: Path) -> None:
    put_image(root / "a.png")


def file_for_a_folder(root: Path) -> None:
    root.rmdir()
    root.touch()


def unreadable_class(root: Path) -> None:
    put_classes(root, {"a": 2, "b": 0})
    (root / "b" / "x.png").touch()


def other_classes(root: Path) -> None:
    put_classes(root / "train", {"a": 2, "b": 2, "c": 2})
    put_classes(root / "val", {"a": 2, "b": 2})


def more_classes(root: Path) -> None:
    put_classes(root / "train", {"a": 2, "b": 2})
    put_classes(root / "val", {"a": 2, "b": 2, "z": 1})


def empty_val_class(root: Path) -> None:
    put_classes(root / "train", {"a": 2, "b": 2})
    put_classes(root / "val", {"a": 2, "b": 0})


@pytest.mark.parametrize(
    ("make", "options", "message"),
    [
        (nothing, {}, "data: no class folders; at least 2 class folders with images are needed"),
        (loose_files, {}, "no class folders"),
        (file_for_a_folder, {}, "is a file; a table of paths and labels is data=table"),
        (lambda root: put_classes(root, {"a": 3}), {}, "only one class, 'a'"),
        (lambda root: put_classes(root, {"a": 3, "b": 0}), {}, "class 'b' has no images"),
        (unreadable_class, {"on_error": "skip"}, "no readable images in class b"),
        (other_classes, {}, r"validation classes differ from training: validation lacks \['c'\]"),
        (more_classes, {}, r"validation classes differ from training: training lacks \['z'\]"),
        (empty_val_class, {}, "validation class 'b' has no images"),
        (
            lambda root: put_classes(root, {"a": 3, "b": 1}),
            {},
            "class 'b' has 1 image: at least 2 are needed to split",
        ),
        (
            lambda root: put_classes(root, {"a": 9, "b": 5}),
            {"train_per_class": 5, "val_per_class": 2},
            r"class 'b' has 5 images: data\.train_per_class=5 leaves none for validation; allowed: at most 4",
        ),
        (
            lambda root: put_classes(root, {"a": 9, "b": 5}),
            {"val_per_class": 7},
            r"class 'b' has 5 images: data\.val_per_class=7 leaves none for training; allowed: at most 4",
        ),
    ],
)
def test_bad_folders_are_one_line(
    tmp_path: Path, make: Callable[[Path], Any], options: dict[str, Any], message: str
) -> None:
    (tmp_path / "data").mkdir()
    make(tmp_path / "data")
    with pytest.raises(DataError, match=message) as caught:
        load_splits("folder", tmp_path / "data", **options)
    assert "\n" not in str(caught.value)


def test_root_must_be_given_and_exist(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"data=folder needs data\.root: the folder with train/ and val/"):
        load_splits("folder")
    with pytest.raises(DataError, match=r"data\.root=.*gone: no such folder"):
        load_splits("folder", tmp_path / "gone")


def test_bad_names_and_counts() -> None:
    with pytest.raises(ConfigError, match=r"data: no data set 'folderr'; did you mean 'folder'\?"):
        load_splits("folderr")
    with pytest.raises(ConfigError, match=r"data\.val_per_class: got 0, allowed: 1 or more"):
        load_splits("shapes", val_per_class=0)


# --- the other sets --------------------------------------------------------------------------------------------------


def test_shapes() -> None:
    splits = load_splits("shapes", train_size=40, val_size=20)
    assert (len(splits.train.names), len(splits.val.names), splits.test) == (40, 20, None)
    few = load_splits(
        "shapes", train_size=40, val_size=20, test_size=20, train_per_class=2, classes=splits.val.classes[:3]
    )
    assert np.bincount(few.train.targets).tolist() == [2, 2, 2]
    assert few.train.classes == few.val.classes == splits.val.classes[:3]
    assert few.test is not None
    assert tuple(few.train.read(1).shape) == (3, *few.train.sizes[1])


@pytest.mark.parametrize("root", [".", "caltech101", "caltech101/101_ObjectCategories"])
def test_caltech101_is_found_from_any_of_its_folders(tmp_path: Path, root: str) -> None:
    put_classes(tmp_path / "caltech101" / "101_ObjectCategories", {"BACKGROUND_Google": 4, "ant": 31})
    splits = load_splits("caltech101", tmp_path / root, train_per_class=3, val_per_class=20)
    assert splits.train.classes == ("BACKGROUND_Google", "ant")
    assert np.bincount(splits.val.targets).tolist() == [1, 20]


@pytest.mark.parametrize("name", ["caltech101", "cifar10", "flowers102", "food101", "oxford_iiit_pet"])
def test_missing_sets_say_what_to_put_where(tmp_path: Path, name: str) -> None:
    with pytest.raises(
        DataError, match=rf"data={name}: cannot be loaded from .*; put .*/.* there, or set data\.download"
    ):
        load_splits(name, tmp_path)


def test_a_network_that_refuses_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torchvision import datasets

    def refuse(*_: Any, **__: Any) -> None:
        raise OSError("<urlopen error [Errno -3] Temporary failure in name resolution>\nand more")

    monkeypatch.setattr(datasets, "CIFAR10", refuse)
    with pytest.raises(
        DataError, match=r"data=cifar10: cannot be loaded from .*name resolution>\); put cifar-10"
    ) as caught:
        load_splits("cifar10", tmp_path / "new", download=True)
    assert "\n" not in str(caught.value)


def test_food101(tmp_path: Path) -> None:
    for part, counts in (("train", {"pie": 3, "tea": 3}), ("test", {"pie": 2, "tea": 1})):
        listed = {}
        for name, count in counts.items():
            paths = [put_image(tmp_path / f"food-101/images/{name}/{part}{i}.jpg") for i in range(count)]
            listed[name] = [f"{name}/{path.stem}" for path in paths]
        (tmp_path / "food-101/meta").mkdir(exist_ok=True)
        (tmp_path / f"food-101/meta/{part}.json").write_text(json.dumps(listed))
    splits = load_splits("food101", tmp_path)
    check(splits.train)
    check(splits.val)
    assert splits.train.classes == ("pie", "tea")
    assert np.bincount(splits.val.targets).tolist() == [2, 1]


def test_oxford_iiit_pet(tmp_path: Path) -> None:
    base = tmp_path / "oxford-iiit-pet"
    (base / "annotations").mkdir(parents=True)
    for part, first in (("trainval", 0), ("test", 10)):
        rows = [(f"{pet}_{first + i}", label) for pet, label in (("Maine_Coon", 1), ("beagle", 2)) for i in range(2)]
        (base / f"annotations/{part}.txt").write_text("".join(f"{name} {label} 1 1\n" for name, label in rows))
        for name, label in rows:
            put_image(base / f"images/{name}.jpg", 5 + label, 9)
    splits = load_splits("oxford_iiit_pet", tmp_path)
    assert splits.train.classes == ("Maine Coon", "Beagle")
    assert splits.train.targets.tolist() == [0, 0, 1, 1]
    assert splits.val.sizes.tolist() == [[6, 9], [6, 9], [7, 9], [7, 9]]


def test_cifar10_test_split_serves_as_validation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torchvision import datasets

    class Fake:
        classes = ("plane", "car")

        def __init__(self, root: str, train: bool, download: bool) -> None:
            assert (root, download) == (str(tmp_path), False)
            self.train = train
            self.data = np.zeros((6 if train else 2, 32, 32, 3), np.uint8)
            self.targets = [0, 1] * (len(self.data) // 2)

    monkeypatch.setattr(datasets, "CIFAR10", Fake)
    splits = load_splits("cifar10", tmp_path, train_per_class=2)
    assert splits.train.sizes.tolist() == [[32, 32]] * 4
    assert list(splits.val.names) == ["cifar10/test/0", "cifar10/test/1"]


def test_imagenet_unpacked_is_a_folder(tmp_path: Path) -> None:
    for part in ("train", "val"):
        put_classes(tmp_path / "imagenet" / part, {"n01440764": 2, "n01443537": 2})
    splits = load_splits("imagenet", tmp_path / "imagenet")
    check(splits.val)
    with pytest.raises(DataError, match="data=imagenet: "):
        load_splits("imagenet", tmp_path)


def test_file_source_reads_reduced_jpegs(tmp_path: Path) -> None:
    path = put_image(tmp_path / "a.jpg", 200, 300)
    source: Source = FileSource([path], [0], ["x"], np.array([[200, 300]]))
    assert tuple(source.read(0).shape) == (3, 200, 300)
    assert tuple(source.read(0, min_short=64).shape) == (3, 100, 150)


# --- a million files -------------------------------------------------------------------------------------------------


def test_a_hundred_thousand_files_take_less_than_130_bytes_each() -> None:
    count = 100_000
    paths = (f"/data/imagenet/train/n{i // 1300:08}/n{i // 1300:08}_{i}.JPEG" for i in range(count))
    tracemalloc.start()
    source = FileSource(paths, np.zeros(count, np.int64), ["x"], np.full((count, 2), 300))
    source = Subset(source, range(0, count, 2))
    at_rest, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert at_rest < 130 * count
    assert peak < 200 * count
    assert len(pickle.dumps(source)) < 130 * count
    assert source.names[-1] == f"/data/imagenet/train/n00000076/n00000076_{count - 2}.JPEG"


def test_a_scan_takes_less_than_600_bytes_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    count = 5_000
    monkeypatch.setattr(files, "read_size_unguarded", lambda _: (30, 40))
    folder = tmp_path / "set" / "n01440764_a_class_of_many_images"
    folder.mkdir(parents=True)
    for index in range(count):
        os.link(folder / "0.JPEG", folder / f"{index}.JPEG") if index else (folder / "0.JPEG").touch()
    read_groups(class_folders(folder.parent), folder.parent)  # what is imported late is not the files'
    shutil.rmtree(tmp_path / "cache")
    for _ in range(2):  # the second time from the cache
        tracemalloc.start()
        source, _ = read_groups(class_folders(folder.parent), folder.parent)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert len(source.names) == count
        assert peak < 600 * count


@settings(max_examples=40, deadline=None)
@given(st.lists(st.binary(max_size=12).filter(lambda name: b"\0" not in name), max_size=20), st.data())
def test_names_are_a_sequence_of_any_bytes(encoded: list[bytes], data: st.DataObject) -> None:
    plain = [name.decode("utf-8", "surrogateescape") for name in encoded]
    names = Names(plain)
    assert (list(names), len(names)) == (plain, len(plain))
    at = data.draw(st.slices(len(plain)))
    assert list(names[at]) == plain[at]
    assert [names[i] for i in range(-len(plain), len(plain))] == plain * 2
    with pytest.raises(IndexError):
        names[len(plain)]
    copy = pickle.loads(pickle.dumps(names.pick(range(len(plain))[::-1])))
    assert list(copy) == plain[::-1]


READER = """
import sys, time
from pathlib import Path
from sppcls.data import files
from sppcls.data.folders import class_folders
real, root, log = files.read_size_unguarded, Path(sys.argv[1]), Path(sys.argv[2])
def slowly(path):
    with log.open("a") as file:
        file.write(f"{path}\\n")
    time.sleep(0.05)
    return real(path)
files.read_size_unguarded = slowly
(log.parent / sys.argv[3]).touch()
while len(list(log.parent.glob("ready*"))) < 2:
    time.sleep(0.01)
source, _ = files.read_groups(class_folders(root), root)
print(source.sizes.tolist())
"""


@pytest.mark.slow
def test_of_two_processes_one_reads_the_headers(tmp_path: Path) -> None:
    put_classes(tmp_path / "data", {"a": 20, "b": 20})
    log = tmp_path / "read"
    command = [sys.executable, "-c", READER, str(tmp_path / "data"), str(log)]
    ranks = [subprocess.Popen([*command, f"ready{rank}"], stdout=subprocess.PIPE) for rank in range(2)]
    said = [rank.communicate(timeout=120)[0] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0]
    assert said[0] == said[1]
    assert len(log.read_text().split()) == 40


@pytest.mark.parametrize("cached", [True, False])
def test_of_two_scans_at_once_one_reads_the_headers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cached: bool
) -> None:
    put_classes(tmp_path / "data", {"a": 20, "b": 20})
    (tmp_path / "file").touch()  # a folder cannot be made under a file
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / ("cache" if cached else "file")))
    read = counted(monkeypatch)
    counting = files.read_size_unguarded
    monkeypatch.setattr(files, "read_size_unguarded", lambda path: time.sleep(0.01) or counting(path))
    groups = class_folders(tmp_path / "data")
    with ThreadPool(2) as pool:  # a lock is held by an open file: two threads wait for each other as processes do
        sources = pool.map(lambda _: read_groups(groups, tmp_path / "data")[0], range(2), 1)
    assert sources[0].sizes.tolist() == sources[1].sizes.tolist()
    assert len(read) == (40 if cached else 80)
