"""``sppcls evaluate``: equal to an obvious loop over files, on splits and folders, and its wrong inputs."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from sppcls import cli, load_model
from sppcls.data.images import decode, fit_image
from sppcls.data.shapes import ShapesSource
from sppcls.spec import parse
from sppcls.training.run import run

VALUES = {
    "data": {"train_size": 48, "val_size": 24, "test_size": 12, "batch_size": 12, "num_workers": 0},
    "model": {"width": 0.25},
    "schedule": {"scales": [32, 24]},
    "trainer": {"max_epochs": 2, "accelerator": "cpu"},
    "metrics": {"test_scales": [24, 32], "gap_images": 12},
}


def trained(folder, **model):
    values = VALUES | {"run_dir": str(folder), "model": VALUES["model"] | model}
    if model.get("pool") == "fixed":
        values |= {"schedule": {"kind": "single", "scales": [32]}, "data": VALUES["data"] | {"fit": "warp"}}
    assert run(parse(values)) == 0
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return trained(tmp_path_factory.mktemp("runs") / "r")


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Three of the classes as files, not in the order of the model's classes."""
    root, source = tmp_path_factory.mktemp("photos"), ShapesSource("test", 60)
    for index in np.flatnonzero(np.isin(source.targets, [0, 3, 11])).tolist():
        folder = root / source.classes[source.targets[index]]
        folder.mkdir(exist_ok=True)
        Image.fromarray(source.read(index).permute(1, 2, 0).numpy()).save(folder / f"{index}.png")
    return root


@pytest.fixture
def evaluate(tmp_path, capsys):
    """Run the verb and return exit status, evaluation.json and the lines of the error."""

    def call(*arguments):
        with pytest.raises(SystemExit) as end:
            cli.main(["evaluate", "--device", "cpu", "--out", str(tmp_path / "out"), *map(str, arguments)])
        said = capsys.readouterr()
        found = tmp_path / "out" / "evaluation.json"
        return end.value.code, json.loads(found.read_text()) if found.exists() else None, said

    return call


@pytest.mark.parametrize("fit", ["keep", "crop", "warp"])
def test_accuracy_on_a_folder_is_that_of_a_plain_loop_over_its_files(model, photos, evaluate, fit):
    status, found, _ = evaluate(model, "--data", photos, "--fit", fit, "--scales", "40,24")
    assert status == 0
    network = load_model(model)
    assert [row["scale"] for row in found["scales"]] == [24, 40]
    for row in found["scales"]:
        right = count = 0
        for path in sorted(photos.rglob("*.png")):
            image, scale = decode(path), row["scale"]
            h, w = image.shape[1:]
            long = max(h, w) / min(h, w) * scale
            # The tensor of an image's own bucket: 24 to an octave, its long side rounded up by at most 3 %.
            steps = np.ceil(24 * (np.log2(max(h, w) / min(h, w)) - np.log2(1.0015)) - 1e-9)
            side = round(scale * 1.0015 * 2 ** (max(steps, 1) / 24)) if h != w else scale
            assert h == w or long - 1 <= side <= long * 1.04
            size = ((scale, side) if w > h else (side, scale)) if fit == "keep" else (scale, scale)
            pixels = fit_image(image, size, fit, tuple(round(m * 255) for m in network.mean))
            with torch.no_grad():
                said = network.classes[int(network(network.normalize(pixels[None])).argmax())]
            right += said == path.parent.name
            count += 1
        assert (row["acc1"], row["images"]) == (right / count, count)
        assert row["acc1_low"] <= row["acc1"] <= row["acc1_high"]


def test_the_runs_own_validation_gives_its_summary_again(model, evaluate, tmp_path):
    status, found, said = evaluate(model, "--gap")
    summary = json.loads((model / "summary.json").read_text())
    assert status == 0
    same = ("scale", "acc1", "acc5", "loss", "ece", "trained")
    assert [[row[k] for k in same] for row in found["scales"]] == [[row[k] for k in same] for row in summary["scales"]]
    for key in ("scale_spread", "scale_consistency", "scale_area", "worst_scale", "agreement"):
        assert found[key] == summary[key]
    assert all(row["generalization_gap"] == row["train_acc1"] - row["acc1"] for row in found["scales"])
    assert (tmp_path / "out" / "evaluation.csv").read_text().startswith("scale,acc1,")
    assert (tmp_path / "out" / "evaluation.svg").read_text().startswith("<svg")
    assert "scale spread" in said.out


def test_views_fusion_recalibration_and_object_sizes(model, evaluate):
    options = ["--scales", "32,40", "--split", "test", "--object-scale", "--recalibrate-bn"]
    status, found, _ = evaluate(model / "checkpoints" / "best.ckpt", *options, "--views", "multi")
    assert status == 0
    assert found["fused"]["scale"] == [32, 40]
    assert found["split"] == "test"
    assert sum(part["images"] for part in found["object_scale"]) == 12
    for scale, row in zip(("32", "40"), found["scales"], strict=True):
        whole = sum(part["acc1"][scale] * part["images"] for part in found["object_scale"])
        assert whole == pytest.approx(row["acc1"] * 12)


def test_wrong_inputs_are_one_line(model, photos, evaluate, tmp_path):
    strange = tmp_path / "strange"
    for name in ("arrow", "zebra"):
        (strange / name).mkdir(parents=True)
        Image.new("RGB", (40, 40)).save(strange / name / "0.png")
    unfinished = tmp_path / "unfinished"
    unfinished.mkdir()
    (unfinished / "config.yaml").write_text("seed: 1\n")
    torn = tmp_path / "torn.ckpt"
    torn.write_bytes((model / "checkpoints" / "last.ckpt").read_bytes()[:2000])
    foreign = tmp_path / "foreign.ckpt"
    torch.save({"state_dict": {}}, foreign)
    cases = [
        ([tmp_path / "nowhere"], 2, "no model at"),
        ([unfinished], 2, "has no checkpoints/last.ckpt"),
        ([torn], 1, "damaged"),
        ([foreign], 1, "no model of this package"),
        ([model, "--scales", "64,x"], 2, "whole numbers and commas"),
        ([model, "--scales", "0"], 2, "a scale is 1 to 8192 pixels"),
        ([model, "--fuse", "-3"], 2, "a scale is 1 to 8192"),
        ([model, "--data", strange], 3, "the model has no class 'zebra'"),
        ([model, "--data", tmp_path / "nowhere"], 3, "no such folder"),
        ([model, "--data", unfinished], 3, "no image in class folders"),
        ([model, "--data", photos, "--object-scale"], 2, "data=shapes only"),
        ([model, "--views", "some"], 2, "--views 'some' is unknown"),
        ([model, "--batch-size", "0"], 2, "--batch-size"),
        ([model, "--device", "tpu7"], 2, "--device"),
        ([model, "--split", "nonsense"], 2, "--split 'nonsense' is unknown"),
    ]
    for arguments, status, text in cases:
        got, found, said = evaluate(*arguments)
        lines = said.err.strip().splitlines()
        assert (got, len(lines), found) == (status, 1, None), (arguments, said.err)
        assert text in lines[0], lines[0]


def test_a_network_of_one_size_says_so(evaluate, tmp_path):
    fixed = trained(tmp_path / "fixed", pool="fixed")
    status, found, _ = evaluate(fixed)
    assert status == 0
    assert len(found["scales"]) == 1
    (tmp_path / "out" / "evaluation.json").unlink()
    for arguments, text in (
        (["--scales", "32,64"], "takes 32 only"),
        (["--fit", "keep"], "takes one square size"),
        (["--views", "multi"], "views=multi"),
    ):
        status, _, said = evaluate(fixed, *arguments)
        assert status == 2
        assert text in said.err


def test_a_scale_too_small_for_the_network_is_named(evaluate, tmp_path):
    run_folder = trained(tmp_path / "zf5", backbone="zf5", width=0.05)
    smallest = load_model(run_folder).smallest
    for option in ("--scales", "--fuse"):
        status, _, said = evaluate(run_folder, option, f"{smallest - 1},64")
        assert status == 2
        assert f"scale {smallest - 1} is too small for zf5; the smallest scale is {smallest}" in said.err
