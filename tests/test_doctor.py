"""What `sppcls data` finds in made-up folders, what an epoch costs a scale, and the page about both."""

import math
import os
import shutil
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from sppcls.commands import data
from sppcls.commands.data import data_tables
from sppcls.data.cut import Sizes, bucket_size, cut_images
from sppcls.data.geometry import Fit, fitted_size
from sppcls.data.plan import plan_epoch
from sppcls.data.planner import Planner
from sppcls.data.schedule import Schedule
from sppcls.errors import ConfigError, DataError
from sppcls.measure import dataset
from sppcls.measure.dataset import STRIDE, examine, scale_costs
from sppcls.models.backbones import build_trunk
from sppcls.report.data_page import plain, remarks, sheets, write_data_page
from sppcls.settings import DataSpec, ModelSpec


def run(directory: Path, scales: Sequence[int], decode: bool = False, out: Path | None = None) -> int:
    return data.run(Namespace(directory=str(directory), scales=scales, decode=decode, out=out and str(out)))


def put(path: Path, h: int = 40, w: int = 50, seed: int | None = None) -> Path:
    """Write an image of noise that follows from the seed, or else from the path's last three names."""
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(list(os.fsencode(Path(*path.parts[-3:]))) if seed is None else seed)
    Image.fromarray(noise.integers(0, 256, (h, w, 3), np.uint8)).save(path)
    return path


def put_classes(root: Path, counts: dict[str, int]) -> Path:
    for name, count in counts.items():
        (root / name).mkdir(parents=True)
        for i in range(count):
            put(root / name / f"{i:02}.jpg")
    return root


def cut(path: Path) -> Path:
    path.write_bytes(path.read_bytes()[:-200])
    return path


# --- examine ---------------------------------------------------------------------------------------------------------


def test_counts_of_a_set_without_parts(tmp_path: Path) -> None:
    put_classes(tmp_path, {"ant": 2, "bee": 6, "cat": 3})
    facts = examine(tmp_path, [16, 32])
    assert (facts.root, facts.parts, facts.imbalance) == (tmp_path, {"all": 11}, 3.0)
    assert list(facts.classes.items()) == [("bee", (6,)), ("cat", (3,)), ("ant", (2,))]
    assert (facts.broken, facts.copies, facts.loose, facts.decoded) == ({}, [], [], False)
    assert [cost.scale for cost in facts.costs] == [16, 32]


def test_counts_of_parts_whose_classes_differ(tmp_path: Path) -> None:
    put_classes(tmp_path / "train", {"ant": 2, "bee": 4, "empty": 0})
    put_classes(tmp_path / "val", {"bee": 1, "cat": 3})
    facts = examine(tmp_path, [16])
    assert facts.parts == {"train": 6, "val": 4}
    assert facts.classes == {"bee": (4, 1), "ant": (2, None), "cat": (None, 3), "empty": (0, None)}
    assert facts.imbalance == 2.0, "a class without images is no smallest class"
    assert [line for line in remarks(facts) if "training would fail" in line] == [
        "train: no images of cat, empty; training would fail",
        "val: no images of ant, empty; training would fail",
    ]
    planned = Planner(np.full((6, 2), (40, 50)), Schedule("single", (16,)), 32, mix=0.45, multiple=8)
    assert facts.costs == scale_costs(planned, [16]), "an epoch is one of the training images"


def test_counts_of_a_table(tmp_path: Path) -> None:
    put_classes(tmp_path, {"a": 2, "b": 3})
    files = sorted(tmp_path.glob("*/*.*"))
    rows = [f"{file},{file.parent.name},{('val', 'train')[at % 2]}" for at, file in enumerate(files)]
    (tmp_path / "t.csv").write_text("\n".join(["path,label,split", *rows]))
    whole = examine(tmp_path, [16])
    facts = examine(tmp_path / "t.csv", [16])
    assert set(facts.parts) == {"train", "val"}
    assert sum(facts.parts.values()) == whole.parts["all"]
    assert facts.classes.keys() == whole.classes.keys()


def test_a_training_part_without_images(tmp_path: Path) -> None:
    put_classes(tmp_path / "train", {"ant": 0})
    put_classes(tmp_path / "val", {"ant": 1})
    facts = examine(tmp_path, [16])
    assert (facts.parts, facts.imbalance, facts.costs) == ({"train": 0, "val": 1}, None, [])
    write_data_page(facts, tmp_path / "page.html")


def test_sizes_and_histograms(tmp_path: Path) -> None:
    sizes = [(30, 40), (30, 60), (64, 64), (9, 200), (200, 9), (48, 64)]
    for i, (h, w) in enumerate(sizes):
        put(tmp_path / "c" / f"{i}.png", h, w)
    facts = examine(tmp_path, [])
    assert facts.sizes["height"] == (9, 39, 200)
    assert facts.sizes["width"] == (9, 62, 200)
    assert facts.sizes["shorter side"] == (9, 30, 64)
    assert facts.sizes["aspect"] == (9 / 200, pytest.approx(4 / 3), 200 / 9)
    values = {"short": [min(size) for size in sizes], "aspect": [min(max(w / h, 1 / 8), 8) for h, w in sizes]}
    for name, (counts, edges) in {"short": facts.short, "aspect": facts.aspect}.items():
        assert counts.tolist() == np.histogram(values[name], edges)[0].tolist()
        assert counts[0] > 0
        assert counts[-1] > 0
        assert np.allclose(np.diff(np.log2(edges)), math.log2(edges[1] / edges[0]))


def test_broken_files_are_named_and_not_counted(tmp_path: Path) -> None:
    put_classes(tmp_path, {"ant": 3, "bee": 3})
    (tmp_path / "ant" / "zero.jpg").touch()
    (tmp_path / "ant" / "text.jpg").write_text("no image")
    truncated = cut(put(tmp_path / "bee" / "cut.jpg", 300, 400))
    (tmp_path / "bee" / "gone.png").symlink_to(tmp_path / "nowhere")
    header = {
        tmp_path / "ant" / "text.jpg": "not an image that Pillow can read",
        tmp_path / "ant" / "zero.jpg": "an empty file",
        tmp_path / "bee" / "gone.png": "No such file or directory",
    }
    facts = examine(tmp_path, [16])
    assert (facts.broken, facts.parts) == (header, {"all": 7})
    facts = examine(tmp_path, [16], decode_all=True)
    reason = facts.broken.pop(truncated)
    assert reason.startswith("a damaged image")
    assert "truncated" in reason
    assert not reason.endswith("remove the file")
    assert (facts.broken, facts.parts, facts.decoded) == (header, {"all": 6}, True)


def test_equal_files_by_where_they_lie(tmp_path: Path) -> None:
    put_classes(tmp_path / "train", {"ant": 5, "bee": 5})
    put_classes(tmp_path / "val", {"ant": 2, "bee": 2})

    def copy(source: str, *targets: str) -> list[Path]:
        for target in targets:
            shutil.copy(tmp_path / source, tmp_path / target)
        return sorted(tmp_path / name for name in (source, *targets))

    within = copy("train/ant/00.jpg", "train/ant/x.jpg", "train/ant/y.jpg")
    across_classes = copy("train/ant/01.jpg", "train/bee/x.jpg")
    across_parts = copy("train/bee/02.jpg", "val/bee/x.jpg")
    across_both = copy("train/bee/03.jpg", "val/ant/x.jpg")
    facts = examine(tmp_path, [16])
    assert facts.copies == [
        (True, True, across_both),
        (True, False, across_parts),
        (False, True, across_classes),
        (False, False, within),
    ]
    assert "groups of identical files across parts: 2; scores on them are inflated" in remarks(facts)
    assert "groups of identical files across classes: 2; at most one label of each is right" in remarks(facts)


def test_files_of_one_length_and_ending_are_not_equal(tmp_path: Path) -> None:
    for name in "ab":
        put(tmp_path / "c" / f"{name}.bmp", 60, 60, seed=7)
    content = bytearray((tmp_path / "c" / "b.bmp").read_bytes())
    content[100] ^= 1
    (tmp_path / "c" / "b.bmp").write_bytes(content)
    put(tmp_path / "c" / "small.bmp", 5, 5, seed=1)
    assert examine(tmp_path, []).copies == []


def test_no_file_of_a_length_of_its_own_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    for name in ("_ending", "_content"):
        work = getattr(dataset, name)
        monkeypatch.setattr(dataset, name, lambda file, work=work: read.append(file.name) or work(file))
    for name, h in {"a": 10, "b": 10, "c": 11}.items():
        put(tmp_path / "c" / f"{name}.bmp", h, 10)
    assert examine(tmp_path, []).copies == []
    assert sorted(read) == ["a.bmp", "b.bmp"], "the endings of two differ, so neither is read whole"


def test_a_file_that_goes_away_has_no_equal(tmp_path: Path) -> None:
    files = [put(tmp_path / name, seed=1) for name in ("a.png", "b.png")] + [tmp_path / "gone.png", tmp_path / "x.png"]
    assert dataset._copies(files, dict.fromkeys(files, ("all", "c"))) == [(False, False, files[:2])]


def test_loose_files(tmp_path: Path) -> None:
    put_classes(tmp_path / "train", {"ant": 1, "bee": 1})
    put_classes(tmp_path / "val", {"ant": 1, "bee": 1})
    loose = [put(tmp_path / "train" / "x.png"), put(tmp_path / "val" / "y.jpg")]
    (tmp_path / "train" / "notes.txt").touch()
    facts = examine(tmp_path, [16])
    assert (facts.loose, facts.parts) == (loose, {"train": 2, "val": 2})
    assert "ignored, outside the class folders: train/x.png, val/y.jpg" in remarks(facts)


def test_wrong_inputs(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    put(tmp_path / "loose" / "x.png")
    (tmp_path / "broken" / "c").mkdir(parents=True)
    (tmp_path / "broken" / "c" / "x.jpg").touch()
    put(tmp_path / "good" / "c" / "x.png")
    for name, why in (("missing", "missing does not exist; give train/"), ("loose/x.png", "x.png: .*data=table reads")):
        with pytest.raises(DataError, match=why):
            examine(tmp_path / name, [16])
    for name, why in {
        "empty": "0 broken.* 0 images",
        "loose": "0 broken.* 1 image",
        "broken": "1 broken file,",
    }.items():
        with pytest.raises(
            DataError, match=rf"{name}: no images in class folders \({why}.*; put images into one folder per class"
        ):
            examine(tmp_path / name, [16])
    for scale in (0, -3):
        with pytest.raises(ConfigError, match=f"scale {scale}: .*give 1 or more"):
            examine(tmp_path / "good", [16, scale])
        with pytest.raises(ConfigError, match=f"scale {scale}: "):
            scale_costs(planner(np.ones((1, 2), np.int64)), [scale])


def planner(sizes: Sizes, batch_size: int = 32, fit: Fit = "keep") -> Planner:
    return Planner(sizes, Schedule("single", (16,)), batch_size, fit)


# --- costs -----------------------------------------------------------------------------------------------------------

SIZES = st.lists(st.tuples(st.integers(1, 300), st.integers(1, 300)), min_size=1, max_size=60)


@settings(max_examples=60, deadline=None)
@given(sizes=SIZES, scale=st.integers(1, 128), batch_size=st.integers(1, 16))
def test_costs_of_keep_are_those_of_its_batches(sizes: list[tuple[int, int]], scale: int, batch_size: int) -> None:
    array = np.array(sizes)
    (cost,) = scale_costs(planner(array, batch_size), [scale])
    cut = cut_images(array, batch_size=batch_size)
    shapes = [bucket_size(*buckets, scale) for buckets in zip(cut.lowest.tolist(), cut.highest.tolist(), strict=True)]
    images = iter(cut.members[cut.picks].tolist())  # not shuffled
    used = total = 0
    for count, (height, width) in zip(cut.counts.tolist(), shapes, strict=True):
        for _ in range(count):
            h, w = sizes[next(images)]
            factor = min(height / h, width / w)
            used += max(round(h * factor), 1) * max(round(w * factor), 1)
            total += height * width
    assert cost.padding == pytest.approx(1 - used / total, abs=1e-9)
    assert cost.megapixels == total / 1e6
    assert cost.upscaled == pytest.approx(sum(min(size) < scale for size in sizes) / len(sizes))
    batches = plan_epoch(array, Schedule("single", (scale,)), 0, seed=0, batch_size=batch_size)
    assert {batch.size for batch in batches} == set(shapes)
    assert cost.shapes == len(set(shapes))
    assert (cost.lost, cost.distortion) == (0.0, 1.0)


@settings(max_examples=60, deadline=None)
@given(sizes=SIZES, scale=st.integers(1, 128))
def test_costs_of_crop_and_warp_are_those_of_their_images(sizes: list[tuple[int, int]], scale: int) -> None:
    (crop,) = scale_costs(planner(np.array(sizes), fit="crop"), [scale])
    (warp,) = scale_costs(planner(np.array(sizes), fit="warp"), [scale])
    lost, factors = 0.0, 1.0
    for h, w in sizes:
        height, width = fitted_size(scale, scale, (h, w))
        lost += (1 - height * width / (h * w)) / len(sizes)
        factors *= (max(h, w) / min(h, w)) ** (1 / len(sizes))
    assert crop.lost == pytest.approx(lost, abs=1e-9)
    assert warp.distortion == pytest.approx(factors)
    assert (crop.distortion, warp.lost) == (1.0, 0.0)
    for cost in (crop, warp):
        assert (cost.padding, cost.shapes) == (0.0, 1)
        assert cost.megapixels == pytest.approx(len(sizes) * scale**2 / 1e6)


# --- the page --------------------------------------------------------------------------------------------------------


def test_the_page_asks_for_nothing_and_escapes_everything(tmp_path: Path) -> None:
    root = put_classes(tmp_path / "<i>set", {"<b>x": 2, "[red]y": 2})
    (root / "<b>x" / "<u>.jpg").touch()
    shutil.copy(root / "<b>x" / "00.jpg", root / "[red]y" / "<s>.jpg")
    put(root / "<em>.png")
    facts = examine(root, [16, 64])
    page = write_data_page(facts, tmp_path / "page.html").read_text()
    for tag in ("<b>", "<u>", "<s>", "<i>", "<em>"):
        assert tag not in page
    for name in ("&lt;b&gt;x", "&lt;u&gt;.jpg", "&lt;s&gt;.jpg", "&lt;i&gt;set", "&lt;em&gt;.png", "[red]y"):
        assert name in page
    outside = [line for line in page.splitlines() if "http" in line and "xmlns" not in line]
    assert [line for line in outside if "http-equiv" not in line] == []
    assert "<script" not in page
    assert page.count("<svg") == 2
    assert page.count("Show as a table") == 2


def test_the_page_folds_long_lists(tmp_path: Path) -> None:
    put_classes(tmp_path, {f"class{i:02}": 1 + (i == 0) for i in range(30)})
    for i in range(20):
        (tmp_path / "class00" / f"x{i:02}.jpg").touch()
    facts = examine(tmp_path, [16])
    page = write_data_page(facts, tmp_path / "page.html").read_text()
    assert "... 13 more" in page
    assert "All 30 classes" in page
    assert "All 20 files" in page
    assert [table.row_count for table in data_tables(facts)] == [18, 4, 1, 18]


def test_names_of_any_bytes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = tmp_path / os.fsdecode(b"caf\xe9\x1b[31m")
    try:
        put(root / os.fsdecode(b"a\nb\xff") / "x.png")
    except OSError:
        pytest.skip("this file system takes UTF-8 alone")
    (root / "c").mkdir()
    (root / "c" / os.fsdecode(b"\xfe\n\x1b.jpg")).touch()
    assert run(root, [16], out=root / "page.html") == 3
    said = capsys.readouterr().out
    page = (root / "page.html").read_text()
    assert "c/\N{REPLACEMENT CHARACTER}\\n\\x1b.jpg" in said
    assert "a\\nb\N{REPLACEMENT CHARACTER}" in said
    assert "\x1b" not in said + page
    assert "<h1>caf\N{REPLACEMENT CHARACTER}\\x1b[31m</h1>" in page


@given(st.text())
def test_plain_names_are_one_printable_line(name: str) -> None:
    try:
        assert plain(name).isprintable()
    except UnicodeEncodeError:
        assert any(0xD800 <= ord(c) < 0xDC80 or 0xDD00 <= ord(c) < 0xE000 for c in name), "no file has such a name"


def test_what_is_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    put_classes(tmp_path / "set", {"ant": 1, "bee": 3})
    assert run(tmp_path / "set", [16, 48], decode=True, out=tmp_path / "page.html") == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    for text in ("all (4)", "bee", "upscaled", "100.0%", "broken files: 0 (every file decoded)", "3.0 times"):
        assert text in captured.out
    assert f"page: {tmp_path / 'page.html'}\n" in captured.out
    assert (tmp_path / "page.html").is_file()
    assert run(tmp_path / "set", []) == 0
    assert "page:" not in capsys.readouterr().out


@pytest.mark.parametrize(("content", "decode"), [(b"", False), (None, True)], ids=["no header", "truncated"])
def test_a_broken_file_is_exit_status_3_after_all_was_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: bytes | None, decode: bool
) -> None:
    put_classes(tmp_path / "set", {"ant": 3, "bee": 3})
    bad = cut(put(tmp_path / "set" / "ant" / "bad.jpg", 300, 400))
    if content is not None:
        bad.write_bytes(content)
    page = tmp_path / "page.html"
    assert run(tmp_path / "set", [16], decode=decode, out=page) == 3
    assert "ant/bad.jpg" in capsys.readouterr().out
    assert "ant/bad.jpg" in page.read_text()


def test_a_page_that_cannot_be_is_refused_before_the_work(tmp_path: Path) -> None:
    for out in (tmp_path, tmp_path / "missing" / "page.html"):
        with pytest.raises(ConfigError, match=r"--out .*give FILE\.html in an existing folder"):
            run(tmp_path / "nowhere", [16], out=out)


def test_every_cell_is_text(tmp_path: Path) -> None:
    put_classes(tmp_path / "train", {"ant": 1})
    put_classes(tmp_path / "val", {"bee": 1})
    for columns, rows in sheets(examine(tmp_path, [16])).values():
        for row in rows:
            assert len(row) == len(columns)
            assert all(isinstance(cell, str) for cell in row)


def test_the_costs_are_those_of_the_default_networks_stride():
    assert build_trunk(ModelSpec().backbone).stride == STRIDE
    assert DataSpec().align == "stretch"
