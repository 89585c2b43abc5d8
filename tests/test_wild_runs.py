"""Whole runs on folders in which files are broken, vanish and change, and what `sppcls data` says of such folders."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from wild_batches import empty, folder, half, large, long, no_image, pipe, turned, vanish
from wild_files import mutant, whole_files

from sppcls.data.decode import shown
from sppcls.data.images import decode
from sppcls.errors import DataError
from sppcls.measure.dataset import examine
from sppcls.training import fit
from tests.test_sweep import SMALL as SHAPES

SMALL = ["data=folder", *SHAPES[2:], "run_dir=run"]  # without the numbers of generated images


def photos(root: Path) -> Path:
    """Write the undamaged files into two classes of both parts."""
    for part in ("train", "val"):
        for place, (name, data) in enumerate(whole_files().items()):
            if name != "rle.bmp":
                file = root / part / "ab"[place % 2] / name
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_bytes(data)
    return root


@pytest.fixture
def changing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return what a run on tmp_path/photos leaves out: two files are broken at its scan, and more are soon after."""
    root = photos(tmp_path / "photos")
    broken = root / "train" / "a" / "a.jpg", root / "val" / "a" / "a.jpg"
    empty(broken[0])
    no_image(broken[1])
    lost: dict[str, Callable[[Path], None]] = {"grey.jpg": vanish, "a.png": half, "a.webp": pipe, "a.bmp": folder}
    kept = {"alpha.png": turned, "moving.gif": long, "cmyk.jpg": large}
    build = fit.build_data

    def change(*arguments: object) -> object:
        for part in ("train", "val"):
            for name, spoil in (lost | kept).items():
                (file,) = (root / part).glob(f"*/{name}")
                spoil(file)
        return build(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(fit, "build_data", change)
    return sorted(map(str, [*broken, *(file for name in lost for file in root.glob(f"*/*/{name}"))]))


@pytest.mark.parametrize("options", [[], ["data.cache=disk", "data.num_workers=2"]], ids=["plain", "cached"])
def test_a_run_that_skips_ends_well(
    options: list[str], train: Callable[..., int], changing: list[str], tmp_path: Path
) -> None:
    assert train(*SMALL, *options, "data.root=photos", "data.on_error=skip") == 0
    lines = [line.split("\t") for line in (tmp_path / "run" / "skipped.txt").read_text().splitlines()]
    assert sorted(str(tmp_path / name) for name, _ in lines) == changing
    assert all(reason for _, reason in lines)
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert 0 <= summary["acc1"] <= 1
    assert summary["train_images"] == summary["val_images"] == len(whole_files()) - 2


@pytest.mark.parametrize("workers", [0, 2])
def test_a_run_that_does_not_skip_ends_in_a_line(
    workers: int, train: Callable[..., int], changing: list[str], capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    for name in ("train/a/a.jpg", "val/a/a.jpg"):  # at which the scan would end the run
        (tmp_path / "photos" / name).unlink()
    assert train(*SMALL, f"data.num_workers={workers}", "data.root=photos") == 3
    (line,) = [line for line in capfd.readouterr().err.splitlines() if "error" in line.lower()]
    assert line.startswith("error: ")
    assert sum(name in line for name in changing) == 1
    assert line.endswith("; data.on_error=skip skips such files")


def test_data_names_each_broken_file_once(tmp_path: Path) -> None:
    root = photos(tmp_path)
    for number in range(120):
        name, data, _ = mutant(number)
        (root / "train" / "a" / name).write_bytes(data)
    for number, spoil in enumerate((pipe, half, empty, no_image)):
        (root / "val" / "b" / f"{number}.png").write_bytes(whole_files()["a.png"])
        spoil(root / "val" / "b" / f"{number}.png")
    unreadable = set()
    for file in root.glob("*/*/*"):
        try:
            decode(file)
        except DataError:
            unreadable.add(file)
    facts = examine(root, [24], decode_all=True)
    assert set(facts.broken) == unreadable
    assert len(unreadable) > 50
    assert sum(facts.parts.values()) + len(unreadable) == len(list(root.glob("*/*/*")))
    for file, why in facts.broken.items():
        assert why.isprintable()
        assert shown(file) not in why
