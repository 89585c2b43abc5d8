"""A source of small files of every format, its batches by image, and what can become of a file meanwhile."""

import os
from pathlib import Path
from typing import Any

import torch
from wild_files import picture, whole_files

from sppcls.data.batch import IGNORED
from sppcls.data.decode import shown
from sppcls.data.files import FileSource, scan
from sppcls.data.folders import image_files
from sppcls.data.images import BatchDataset
from sppcls.data.loader import PlannedLoader
from sppcls.data.plan import plan_epoch
from sppcls.data.schedule import Schedule
from sppcls.errors import DataError

PAD = (1, 2, 3)


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
    assert line.endswith("; data.on_error=skip skips such files")
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
