"""Images that come as data sets, tables or folders by other names: what is read, and what is refused in one line."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch.utils.data import ConcatDataset, IterableDataset, Subset
from torchvision.datasets import ImageFolder

from sppcls import MultiScaleDataModule
from sppcls.build import build_planner, build_splits
from sppcls.data.cache import PixelCache
from sppcls.data.catalog import load_splits
from sppcls.data.cut import own_tensors
from sppcls.data.datasets import DatasetSource, from_datasets
from sppcls.data.files import FileSource
from sppcls.data.images import decode
from sppcls.data.source import Identity
from sppcls.data.source import Subset as OurSubset
from sppcls.data.split import _shares
from sppcls.errors import ConfigError, DataError
from sppcls.report.run_lines import plan_table
from sppcls.spec import parse


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def put(path: Path, h: int = 20, w: int = 30, value: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (w, h), (value, value, value)).save(path)
    return path


def put_classes(root: Path, counts: dict[str, int]) -> Path:
    for name, count in counts.items():
        for i in range(count):
            put(root / name / f"{i}.png", 20 + 5 * i, 40 - 3 * i, 10 * i)
    return root


class Items:
    """A data set of the given items."""

    def __init__(self, items: list[Any], **attributes: Any) -> None:
        self.items = items
        vars(self).update(attributes)

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Any:
        return self.items[index]


def photo(h: int = 20, w: int = 30) -> Image.Image:
    return Image.new("RGB", (w, h), (1, 2, 3))


# --- map-style data sets ---------------------------------------------------------------------------------------------


def test_an_image_folder_gives_batches(tmp_path: Path) -> None:
    train, val = (ImageFolder(put_classes(tmp_path / part, {"ant": 5, "bee": 4})) for part in ("train", "val"))
    data = MultiScaleDataModule(train, val, schedule=(16, 24), batch_size=4)
    assert data.classes == ("ant", "bee")
    loaded = [*data.train_dataloader(), *data.val_dataloader()]
    assert sum(len(batch["targets"]) for batch in loaded) == 18
    assert {min(batch["images"].shape[2:]) for batch in loaded} <= {16, 24}


def test_an_image_folder_is_read_by_headers_and_any_other_in_one_pass(tmp_path: Path) -> None:
    folder = ImageFolder(put_classes(tmp_path / "set", {"ant": 5, "bee": 4}))
    files, none = from_datasets(folder)
    assert isinstance(files, FileSource)
    assert none is None
    items = DatasetSource(folder)
    assert items.classes == files.classes
    assert (items.sizes == files.sizes).all()
    assert (items.targets == files.targets).all()
    for index in range(9):
        assert torch.equal(items.read(index), files.read(index))
        assert torch.equal(files.read(index), decode(folder.samples[index][0]))
    cut = Path(folder.samples[3][0])
    cut.write_bytes(cut.read_bytes()[:45])  # what is left is the header
    assert from_datasets(folder)[0].sizes.tolist() == files.sizes.tolist()
    with pytest.raises(DataError, match="item 3 of data: OSError"):
        DatasetSource(folder)


def test_subsets_keep_the_classes_and_the_order(tmp_path: Path) -> None:
    folder = ImageFolder(put_classes(tmp_path / "set", {"ant": 5, "bee": 4}))
    train, val = from_datasets(Subset(folder, [8, 0, 3]), Subset(Subset(folder, [1, 2, 4]), [2, 0]))
    assert val is not None
    assert isinstance(train, FileSource)
    assert [str(folder.samples[i][0]) for i in (8, 0, 3)] == list(train.names)
    assert [str(folder.samples[i][0]) for i in (4, 1)] == list(val.names)
    assert train.targets.tolist() == [1, 0, 0]
    assert train.classes == val.classes == ("ant", "bee")


class Reversed(ImageFolder):
    def __getitem__(self, index: int) -> Any:
        image, label = super().__getitem__(index)
        return image.transpose(Image.Transpose.ROTATE_90), label


def test_what_a_folder_does_by_itself_is_kept(tmp_path: Path) -> None:
    root = put_classes(tmp_path / "set", {"ant": 2, "bee": 2})
    plain = from_datasets(ImageFolder(root))[0]
    turned = from_datasets(Reversed(root))[0]
    black = from_datasets(ImageFolder(root, loader=lambda _: photo(7, 9)))[0]
    assert (turned.sizes == plain.sizes[:, ::-1]).all()
    assert black.sizes.tolist() == [[7, 9]] * 4


@given(
    st.integers(1, 9),
    st.integers(1, 9),
    st.sampled_from(["pil", "grey", "array", "array2", "tensor", "tensor1", "tensor2"]),
    st.integers(0, 255),
)
def test_every_form_of_an_image_is_the_same_pixels(h: int, w: int, form: str, seed: int) -> None:
    rng = np.random.default_rng(seed)
    colour, grey = (rng.integers(0, 256, shape, np.uint8) for shape in ((h, w, 3), (h, w)))
    image, pixels = {
        "pil": (Image.fromarray(colour), colour),
        "grey": (Image.fromarray(grey), grey),
        "array": (colour, colour),
        "array2": (grey, grey),
        "tensor": (torch.from_numpy(colour).permute(2, 0, 1), colour),
        "tensor1": (torch.from_numpy(grey)[None], grey),
        "tensor2": (torch.from_numpy(grey), grey),
    }[form]
    source = DatasetSource([(image, np.int64(1)), (image, torch.tensor(0))])
    wanted = np.stack([pixels] * 3, axis=2) if pixels.ndim == 2 else pixels
    assert source.sizes.tolist() == [[h, w]] * 2
    assert source.targets.tolist() == [1, 0]
    assert source.classes == ("0", "1")
    got = source.read(0)
    assert torch.equal(got, torch.from_numpy(wanted).permute(2, 0, 1))
    got.zero_()
    assert torch.equal(source.read(0), source.read(1)), "a tensor shares no memory with the data set"


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Any:
        return iter(())


class Raising:
    def __len__(self) -> int:
        return 3

    def __getitem__(self, index: int) -> Any:
        if index == 2:
            raise RuntimeError("no such row\nand more")
        return photo(), index


FLOATS = torch.zeros(3, 20, 30)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (3, "train is a int; allowed: a Source, a map-style data set"),
        (None, "train is a NoneType; allowed"),
        (Stream(), "train is a .*Stream; allowed"),
        (np.zeros((4, 20, 30, 3), np.uint8), r"train is a numpy.ndarray of uint8 and shape \[4, 20, 30, 3\]; allowed"),
        ({"a": 1}, "train is a dict; allowed"),
        ([], "train has no images"),
        (Items([(photo(), 0)], transform=photo), "train has a transform; create the data set without it: .*augment="),
        (Subset(Items([(photo(), 0)], transform=photo), [0]), "train has a transform"),  # type: ignore[arg-type]
        (ConcatDataset([Items([(photo(), 0)], transforms=photo)]), "train has a transforms"),  # type: ignore[list-item]
        (Items([(photo(), 0), photo()]), r"item 1 of train is a PIL.Image.Image; allowed: \(image, label\)"),
        (Items([{"image": photo(), "label": 0}]), r"item 0 of train is a dict; allowed: \(image, label\)"),
        (Items([(photo(), 0, "a.jpg")]), r"item 0 of train is a tuple; allowed: \(image, label\)"),
        (Items([(FLOATS, 0)]), r"item 0 of train has a torch.Tensor of torch.float32 and shape \[3, 20, 30\] as its "),
        (Items([(FLOATS.byte().permute(1, 2, 0), 0)]), r"shape \[20, 30, 3\] as its image; allowed: a PIL image"),
        (Items([(np.zeros((20, 30, 4), np.uint8), 0)]), r"shape \[20, 30, 4\] as its image"),
        (Items([(np.zeros((0, 30, 3), np.uint8), 0)]), r"shape \[0, 30, 3\] as its image"),
        (Items([("a.jpg", 0)]), "item 0 of train has a str as its image"),
        (Items([(photo(), "cat")]), "item 0 of train has a str as its label; allowed: an integer from 0"),
        (Items([(photo(), 0.0)]), "has a float as its label"),
        (Items([(photo(), 0), (photo(), -1)]), "item 1 of train has the label -1; allowed: 0 to 0, of 1 classes"),
        (Items([(photo(), 2)], classes=["a", "b"]), "item 0 of train has the label 2; allowed: 0 to 1, of 2 classes"),
        (Items([(photo(), 10**12)]), "item 0 of train has the label 1000000000000; allowed: 0 to 99999"),
        (Raising(), "item 2 of train: RuntimeError: no such row$"),
    ],
)
def test_anything_else_is_refused_when_it_is_given(data: Any, said: str) -> None:
    with pytest.raises((ConfigError, DataError), match=said) as caught:
        MultiScaleDataModule(data)
    assert "\n" not in str(caught.value)


def test_train_and_val_have_the_same_classes(tmp_path: Path) -> None:
    named = Items([(photo(), 0), (photo(), 1)], classes=["a", "b"])
    with pytest.raises(ConfigError, match=r"val: its classes differ from train's \(in another order\)"):
        MultiScaleDataModule(named, Items(named.items, classes=["b", "a"]))  # type: ignore[arg-type]
    with pytest.raises(DataError, match="item 1 of val has the label 3; allowed: 0 to 1"):
        MultiScaleDataModule(Items(named.items), Items([(photo(), 0), (photo(), 3)]))  # type: ignore[arg-type]
    data = MultiScaleDataModule(Items(named.items), Items(named.items[:1]))  # type: ignore[arg-type]
    assert data.val is not None
    assert data.val.classes == data.classes == ("0", "1")
    with pytest.raises(ConfigError, match="train is a path and val a Items; give two paths, or two data sets"):
        MultiScaleDataModule(str(tmp_path), named)  # type: ignore[arg-type]


def test_two_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for part in ("here", "there"):
        put_classes(tmp_path / part, {"ant": 2, "bee": 2})
    data = MultiScaleDataModule("here", tmp_path / "there")
    assert data.val is not None
    assert [{Path(name).parts[-3] for name in part.names} for part in (data.train, data.val)] == [{"here"}, {"there"}]


def test_an_image_that_changes_its_size_is_an_error() -> None:
    items: list[Any] = [(photo(), 0), (photo(), 1)]
    source = DatasetSource(Items(items), name="train")
    items[1] = (photo(10, 10), 1)
    with pytest.raises(DataError, match="train/1: 20 x 30 pixels at first, 10 x 10 now; data sets must not crop"):
        source.read(1)


def test_data_sets_of_equal_names_and_sizes_share_no_pixels_on_disk() -> None:
    one, same, other = (
        DatasetSource([(np.full((20, 30, 3), value, np.uint8), i % 2) for i in range(4)]) for value in (1, 1, 2)
    )
    for part in (lambda source: source, lambda source: OurSubset(source, [0, 1])):
        names = [
            PixelCache(part(source), own_tensors(part(source).sizes, (16,), "keep", 4.0)).file_name()
            for source in (one, same, other)
        ]
        assert names[0] == names[1] != names[2]


# --- tables ----------------------------------------------------------------------------------------------------------


def put_table(folder: Path, text: str, count: int = 5) -> Path:
    for name in ("ant", "bee"):
        put_classes(folder / "images", {name: count})
    (folder / "t.csv").write_text(text, encoding="utf-8")
    return folder / "t.csv"


def rows(*parts: str, count: int = 5) -> str:
    tail = f",{{}}{chr(10)}" if parts else "\n"
    lines = [
        f"images/{name}/{i}.png,{name}" + tail.format(parts[i % len(parts)] if parts else "")
        for name in ("ant", "bee")
        for i in range(count)
    ]
    return "".join(lines)


def test_a_table_is_split_as_a_folder_is(tmp_path: Path) -> None:
    table = load_splits("table", put_table(tmp_path, "\ufeffpath, label ,more\n" + rows().replace("\n", ",x\n")))
    folder = load_splits("folder", tmp_path / "images")
    for ours, theirs in ((table.train, folder.train), (table.val, folder.val)):
        assert list(ours.names) == list(theirs.names)
        assert (ours.sizes == theirs.sizes).all()
        assert (ours.targets == theirs.targets).all()


def test_a_table_with_parts(tmp_path: Path) -> None:
    file = put_table(tmp_path, "split,label,path\n" + "".join(
        f"{part},{name},{tmp_path / 'images' / name / f'{i}.png' if i % 2 else f'images/{name}/{i}.png'}\n"
        for name in ("bee", "ant")
        for i, part in enumerate(("train", "valid", "test", "train", "val"))
    ))  # fmt: skip
    splits = load_splits("table", file)
    assert splits.test is not None
    for part, wanted in ((splits.train, ["0", "3"]), (splits.val, ["1", "4"]), (splits.test, ["2"])):
        assert part.classes == ("ant", "bee")
        assert [Path(name).stem for name in part.names] == wanted * 2
        assert [Path(name).parent.name for name in part.names] == [part.classes[t] for t in part.targets]
    assert load_splits("table", file, classes=["bee", "ant"], train_per_class=1).train.targets.tolist() == [0, 1]


HEAD = "path,label\n"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "t.csv: the file is empty; its first row must name the columns path and label"),
        ("file,label\n", "no column 'path' among 'file', 'label'"),
        ("path;label\na;b\n", "no column 'path' among 'path;label'"),
        ("path,class\n", "no column 'label' among"),
        ("path,label,path\n", "two columns are called 'path'"),
        ("path,label,Split\n", r"unknown column 'Split'; did you mean 'split'\?"),
        ("path,label,splt\n", r"unknown column 'splt'; did you mean 'split'\?"),
        (HEAD, "no rows"),
        (HEAD + "images/ant/0.png,\n", "row 1: each row needs a path and a label"),
        (HEAD + rows() + ",ant\n", "row 11: each row needs a path"),
        (HEAD + "images/ant/0.png,a,b\n", "row 1 has 3 cells, but the header has 2; put quotes"),
        (HEAD + "a\0b,ant\n", "t.csv: |row 1: it contains a null byte"),
        (
            HEAD + rows() + "images/../images/ant/0.png,bee\n",
            "row 11 repeats the path of row 1, images/.*; list each image",
        ),
        ("path,label,split\n" + rows("train", "vla"), r"row 2 has the split 'vla'; did you mean 'val'\?"),
        ("path,label,split\n" + rows("train", ""), "row 2 has the split ''; allowed: test, train, val"),
        ("path,label,split\n" + rows("val"), "no row has the split 'train'"),
        (HEAD + rows() + "images/ant/gone.png,ant\n", "gone.png: No such file or directory; data.on_error=skip"),
        (HEAD + "images/ant/0.png,ant\n", "only one class, 'ant'; at least 2 labels are needed"),
        ("path,label,split\n" + rows("train", "val") + "images/bee/9.png,cat,val\n", "training lacks .'cat'.; use"),
        (HEAD + '"images', "data=table reads CSV in UTF-8"),
    ],
)
def test_a_wrong_table_is_one_line(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(DataError, match=said) as caught:
        load_splits("table", put_table(tmp_path, text))
    assert "\n" not in str(caught.value)


def test_files_that_are_no_table(tmp_path: Path) -> None:
    (tmp_path / "latin.csv").write_bytes(HEAD.encode() + b"caf\xe9.png,ant\n")
    with pytest.raises(DataError, match=r"latin.csv: .*can't decode byte.*; data=table reads CSV in UTF-8"):
        load_splits("table", tmp_path / "latin.csv")
    with pytest.raises(DataError, match=r"data.root=.* is a folder; a folder of images is data=folder"):
        load_splits("table", tmp_path)
    with pytest.raises(DataError, match=r"data=table needs data.root: a CSV or Parquet file with the columns path"):
        load_splits("table")


def test_parquet(tmp_path: Path) -> None:
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    put_table(tmp_path, "")
    paths = [f"images/{name}/{i}.png" for name in ("ant", "bee") for i in range(5)]
    columns = {"path": paths, "label": [1] * 5 + [2] * 5, "score": [0.5] * 10}
    parquet.write_table(arrow.table(columns), tmp_path / "t.parquet")
    splits = load_splits("table", tmp_path / "t.parquet")
    assert splits.train.classes == ("1", "2")
    assert np.bincount(splits.train.targets).tolist() == [4, 4]
    parquet.write_table(arrow.table(columns | {"label": [None] * 10}), tmp_path / "t.parquet")
    with pytest.raises(DataError, match="row 1: each row needs a path and a label"):
        load_splits("table", tmp_path / "t.parquet")
    (tmp_path / "t.parquet").write_text("path,label")
    with pytest.raises(DataError, match="data=table reads Parquet"):
        load_splits("table", tmp_path / "t.parquet")


def test_parquet_without_its_reader_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sppcls.data.folders.find_spec", lambda _: None)
    (tmp_path / "t.parquet").touch()
    with pytest.raises(ConfigError, match=r"t\.parquet is Parquet, which needs an extra: uv run --extra parquet"):
        load_splits("table", tmp_path / "t.parquet")


# --- folders by other names, and shares ------------------------------------------------------------------------------


def test_folders_by_other_names(tmp_path: Path) -> None:
    for part, count in (("learn", 5), ("check", 2), ("test", 2)):
        put_classes(tmp_path / part, {"ant": count, "bee": count})
    named = [
        load_splits("folder", tmp_path, train_dir="learn", val_dir="check"),
        load_splits("folder", None, train_dir=tmp_path / "learn", val_dir=str(tmp_path / "check")),
    ]
    for splits in named:
        assert {Path(name).parts[-3] for name in splits.train.names} == {"learn"}
        assert {Path(name).parts[-3] for name in splits.val.names} == {"check"}
        assert splits.test is None
    split = load_splits("folder", tmp_path, train_dir="learn", val_fraction=0.4)
    assert np.bincount(split.val.targets).tolist() == [2, 2]
    assert {Path(name).parts[-3] for name in split.val.names} == {"learn"}


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"train_dir": "lern"}, r"data\.train_dir=lern: no such folder, .*/lern; did you mean 'learn'\?"),
        ({"val_dir": "check"}, r"data\.train_dir=train: no such folder"),
        ({"train_dir": "learn", "val_dir": "learn"}, r"data\.val_dir=learn: .* overlap; use two folders"),
        ({"train_dir": ".", "val_dir": "check"}, r"data\.val_dir=check: .* overlap"),
        ({"train_dir": "learn", "root": None}, r"data\.train_dir=learn needs data\.root"),
        ({"val_dir": "/x", "root": None}, r"data\.val_dir=/x needs data\.root, or data\.train_dir"),
        ({"name": "caltech101", "train_dir": "x"}, "data=caltech101 has no such key; use data=folder"),
        ({"name": "shapes", "root": None, "val_dir": "x"}, "data=shapes has no such key"),
        (
            {"train_dir": "learn", "val_dir": "check", "val_fraction": 0.1},
            "val_fraction=0.1 and data.val_dir cannot",
        ),
        ({"val_per_class": 1, "val_fraction": 0.1}, r"val_fraction=0.1 and data\.val_per_class cannot be combined"),
        ({"name": "shapes", "root": None, "val_fraction": 0.1}, "data=shapes has validation images already; leave"),
        ({"val_fraction": 1.0}, r"data\.val_fraction: got 1\.0, it must be above 0 and below 1"),
        ({"val_fraction": 0.0}, r"data\.val_fraction: got 0\.0"),
    ],
)
def test_names_and_shares_that_cannot_be(tmp_path: Path, options: dict[str, Any], said: str) -> None:
    for part in ("learn", "check"):
        put_classes(tmp_path / part, {"ant": 2, "bee": 2})
    given: dict[str, Any] = {"name": "folder", "root": tmp_path} | options
    with pytest.raises((ConfigError, DataError), match=said) as caught:
        load_splits(given.pop("name"), given.pop("root"), **given)
    assert "\n" not in str(caught.value)


@given(st.integers(2, 500), st.none() | st.floats(0.001, 0.999))
def test_shares_of_a_class(n: int, fraction: float | None) -> None:
    train, val = _shares(n, None, None, fraction)
    assert train + val == n
    assert min(train, val) >= 1
    assert abs(val - n * (fraction or 0.2)) <= 0.5 or min(train, val) == 1
    if fraction is None:
        assert val == max(1, round(n / 5)), "as before there was a fraction"


def test_the_keys_reach_the_data_and_the_digest(tmp_path: Path) -> None:
    for part in ("learn", "check"):
        put_classes(tmp_path / part, {"ant": 5, "bee": 5})
    folder: dict[str, Any] = {"name": "folder", "root": str(tmp_path), "train_dir": "learn"}
    specs = [
        parse({"data": folder | {"val_dir": "check"}}),
        parse({"data": folder | {"val_fraction": 0.6}}),
        parse({"data": {"name": "table", "root": str(put_table(tmp_path, HEAD + rows()))}}),
    ]
    found = [build_splits(spec.data) for spec in specs]
    assert [(len(splits.train.names), len(splits.val.names)) for splits in found] == [(10, 10), (4, 6), (8, 2)]
    assert len({spec.digest for spec in specs}) == 3
    assert len({Identity.of(splits.train, splits.val).digest for splits in found}) == 3


def test_small_plans_show_their_megapixels() -> None:
    spec = parse({"schedule": {"kind": "single", "scales": [32]}})
    for count, shown in ((40, "0.041"), (400, "0.41"), (4000, "4.1"), (40_000, "41")):
        drawn = plan_table(spec, build_planner(spec, np.full((count, 2), 50)))
        assert [str(cell) for cell in drawn.columns[-1].cells] == [shown]


def test_a_check_of_the_data_imports_no_framework() -> None:
    code = "import sys, sppcls.training.preflight, sppcls.data.catalog; print(*sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"torch", "pytorch_lightning", "torchvision", "pyarrow"} & set(run.stdout.split())
