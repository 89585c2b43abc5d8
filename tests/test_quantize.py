"""An ONNX export in 8 bits: smaller, near to the original, measured beside it, and as safe to open."""

import shutil

import numpy as np
import pytest
from PIL import Image

from sppcls import commands
from sppcls.deploy.runtime import open_model


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder, chance = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    for name in ("cat", "dog", "emu"):
        (folder / name).mkdir()
        for number in range(10):
            coarse = chance.integers(0, 255, (4, 5, 3), np.uint8)
            Image.fromarray(coarse).resize((50, 40)).save(folder / name / f"{number}.png")
    return folder


@pytest.fixture
def graph(exported, tmp_path):
    return shutil.copy(exported / "model.onnx", tmp_path / "model.onnx")


def quantize(*arguments):
    with pytest.raises(SystemExit) as end:
        commands.main(["quantize", *map(str, arguments)])
    return end.value.code


def test_the_8_bit_file_answers_nearly_as_the_original(graph, photos, capsys):
    assert quantize(graph, "--data", photos, "--images", 12) == 0
    said = capsys.readouterr()
    small = graph.with_name("model-int8.onnx")
    assert f"written: {small}" in said.out
    assert "calibrated on 12 training images" in said.out
    assert "model-int8.onnx" in said.out
    assert small.stat().st_size < graph.stat().st_size
    before, after = open_model(graph), open_model(small)
    assert after.signature == before.signature
    images = np.random.default_rng(1).integers(0, 255, (5, 3, 48, 64), np.uint8)
    wanted, got = before.run(images), after.run(images)
    assert 0 < np.abs(wanted - got).max() < 0.5 * np.abs(wanted).max()
    assert sorted(path.name for path in graph.parent.iterdir()) == ["model-int8.onnx", "model.onnx"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("none.onnx",), "none.onnx is not an ONNX file; write one with sppcls export"),
        (("{graph}", "--out", "{graph}"), "already exists; remove it, or name another"),
        (("{graph}", "--out", "small.pt"), "the name must end in .onnx"),
        (("{graph}", "--images", "0"), "an integer of at least 1"),
    ],
)
def test_wrong_arguments_are_one_line(graph, photos, capsys, arguments, said):
    assert quantize(*(text.format(graph=graph) for text in arguments), "--data", photos) == 2
    err = capsys.readouterr().err
    assert said in err
    assert err.count("\n") == 1


def test_images_of_other_classes_are_refused(graph, photos, capsys, tmp_path):
    shutil.copytree(photos, tmp_path / "other")
    (tmp_path / "other" / "cat").rename(tmp_path / "other" / "cow")
    assert quantize(graph, "--data", tmp_path / "other") == 3
    assert "the model has no class 'cow'" in capsys.readouterr().err
    assert not graph.with_name("model-int8.onnx").exists()
