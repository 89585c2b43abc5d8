"""Files that change after the scan: left out or trained on as they are, and their batch mates are as they were."""

import os
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from wild_batches import (
    PAD,
    by_index,
    check,
    empty,
    endless,
    failure,
    folder,
    half,
    large,
    link_loop,
    load,
    long,
    no_image,
    pipe,
    put_all,
    turned,
    vanish,
)
from wild_files import mutant

from sppcls.data import decode as decoding
from sppcls.data.cache import PixelCache
from sppcls.data.cut import own_tensors
from sppcls.data.decode import decode_array
from sppcls.data.geometry import fitted_size
from sppcls.data.images import Augment, BatchDataset, decode, fit_image
from sppcls.data.steps import Batch
from sppcls.errors import DataError

LOSSES = (vanish, folder, pipe, endless, link_loop, empty, no_image, half)
CHANGES = (turned, long, large)


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


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("cached", [False, True])
def test_files_that_change_between_two_epochs(workers: int, cached: bool, tmp_path: Path) -> None:
    source = put_all(tmp_path)
    by_name = {Path(name).name: index for index, name in enumerate(source.names)}
    places = [by_name[f"0{n}"] for n in ("a.jpg", "a.png", "a.webp", "a.bmp", "a.tif", "a.ppm", "deep.png", "grey.jpg")]
    cache = PixelCache(source, own_tensors(source.sizes, (24,))).open() if cached else None
    loader = load(source, workers, cache=cache, augment=Augment(seed=1))
    before = by_index(
        load(
            source,
            augment=Augment(seed=1),
            cache=PixelCache(source, own_tensors(source.sizes, (24,))).open() if cached else None,
        )
    )
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
        kept = ((index, cache.get(index, batch.size)) for batch in loader.plan(0) for index in batch.indices)
        missing = {index for index, image in kept if image is None}
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
    dataset = BatchDataset(
        source,
        fit,
        PAD,
        Augment(seed=1),
        PixelCache(source, own_tensors(source.sizes, (24,), fit), fit).open() if cached else None,
    )
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
