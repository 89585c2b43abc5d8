"""``sppcls evaluate``: equal to an obvious loop over files, on splits and folders, and its wrong inputs."""

import csv
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from sppcls import commands, load_model
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
            commands.main(["evaluate", "--device", "cpu", "--out", str(tmp_path / "out"), *map(str, arguments)])
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
            # Both are set to the nearest multiple of the trunk's stride, 8.
            side = 8 * round(scale * 1.0015 * 2 ** (max(steps, 1) / 24) / 8) if h != w else scale
            assert h == w or long - 5 <= side <= long * 1.04 + 4
            size = ((scale, side) if w > h else (side, scale)) if fit == "keep" else (scale, scale)
            pixels = fit_image(image, size, fit, tuple(round(m * 255) for m in network.mean), multiple=8)
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


def files(folder):
    return {path.name for path in folder.iterdir() if path.name.startswith("evaluation")}


def test_evaluations_say_what_they_are_of_and_replace_no_other(model, photos, tmp_path, capsys):
    run_folder = shutil.copytree(model, tmp_path / "r")
    twin = shutil.copytree(photos, tmp_path / "twin" / photos.name)
    other = next(path for path in twin.rglob("*.png"))
    other.unlink()

    def evaluated(*arguments):
        with pytest.raises(SystemExit) as end:
            commands.main(["evaluate", str(run_folder), "--scales", "24", "--device", "cpu", *map(str, arguments)])
        assert end.value.code == 0
        return capsys.readouterr()

    said = evaluated()
    assert "val of shapes, last.ckpt of epoch 2" in said.out
    tensors = len(load_model(run_folder).state_dict())
    assert said.err == f"model: {run_folder}/checkpoints/last.ckpt, epoch 2, all {tensors} tensors loaded\n"
    own = (run_folder / "evaluation.json").read_bytes()
    said = evaluated("--data", photos, "--checkpoint", "best")
    assert f"{photos}, best.ckpt of epoch " in said.out
    assert "val of" not in said.out
    assert (run_folder / "evaluation.json").read_bytes() == own
    evaluated("--data", twin, "--checkpoint", "best")
    evaluated("--data", twin, "--checkpoint", "best", "--fit", "warp")
    evaluated("--split", "test")
    stems = ["evaluation", f"evaluation-best-{photos.name}", f"evaluation-best-{photos.name}-2"]
    stems += [f"evaluation-best-{photos.name}-warp", "evaluation-test"]
    ends = (".json", ".csv", ".svg", "-classes.csv")
    assert files(run_folder) == {stem + end for stem in stems for end in ends}
    images = [json.loads((run_folder / f"{stem}.json").read_text())["scales"][0]["images"] for stem in stems[1:3]]
    assert images[0] == images[1] + 1
    before = files(run_folder)
    evaluated("--data", twin, "--checkpoint", "best")  # the same again replaces its own
    assert files(run_folder) == before


def test_the_best_checkpoint_is_the_one_named(model, photos, capsys, tmp_path):
    image, said = str(next(photos.rglob("*.png"))), []
    for chosen in (["predict", str(model), image, "--checkpoint", "best"], ["predict", str(model), image]):
        with pytest.raises(SystemExit):
            commands.main(chosen)
        said.append(capsys.readouterr().err)
    assert [line.count("\n") for line in said] == [1, 1]
    assert "checkpoints/best.ckpt, epoch" in said[0]
    assert "checkpoints/last.ckpt, epoch 2" in said[1]
    run_folder = shutil.copytree(model, tmp_path / "r")
    (run_folder / "checkpoints" / "best.ckpt").write_bytes(b"PK")
    for name, text in ((run_folder, "best.ckpt is damaged"), (run_folder / "checkpoints/last.ckpt", "is for a run")):
        with pytest.raises(SystemExit):
            commands.main(["export", str(name), "--format", "safetensors", "--checkpoint", "best"])
        error = capsys.readouterr().err
        assert text in error
        assert error.count("\n") == 1


def test_classes_confusion_and_answers_are_those_of_a_count_by_hand(model, photos, evaluate, tmp_path):
    table = tmp_path / "answers.csv"
    status, found, said = evaluate(model, "--data", photos, "--scales", "24,32", "--answers", table, "--classes")
    assert status == 0
    rows = list(csv.DictReader(table.read_text().splitlines()))
    assert [row["path"] for row in rows] == [str(path) for path in sorted(photos.rglob("*.png")) for _ in range(2)]
    assert {row["scale"] for row in rows} == {"24", "32"}
    assert all(row["class"] == Path(row["path"]).parent.name and 0 < float(row["probability"]) <= 1 for row in rows)
    at = [row for row in rows if row["scale"] == "32"]
    assert sum(row["class"] == row["predicted"] for row in at) / len(at) == found["scales"][1]["acc1"]
    names = load_model(model).classes
    assert found["class_scale"] == 32
    for k, (name, row) in enumerate(zip(names, found["per_class"], strict=True)):
        both = sum(a["class"] == a["predicted"] == name for a in at)
        images, answered = (sum(a[column] == name for a in at) for column in ("class", "predicted"))
        assert (row["class"], row["images"]) == (name, images)
        wanted = [(both, answered), (both, images), (2 * both, images + answered)]
        for value, (part, whole) in zip((row["precision"], row["recall"], row["f1"]), wanted, strict=True):
            assert value == (pytest.approx(part / whole, abs=1e-6) if whole else None)
        counts = [sum((a["class"], a["predicted"]) == (name, other) for a in at) for other in names]
        assert found["confusion"]["counts"][k] == counts
    assert "lowest F1:" in said.out
    assert "Classes at scale 32" in said.out
    assert len((tmp_path / "out" / "evaluation-classes.csv").read_text().splitlines()) == len(names) + 1


def test_a_graph_is_measured_as_its_checkpoint_is(exported, evaluate, tmp_path):
    rng, of_graph, graph = np.random.default_rng(0), [], exported / "model.onnx"
    for number in range(24):
        image = tmp_path / "photos" / ("cat", "dog", "emu")[number % 3] / f"{number}.png"
        image.parent.mkdir(parents=True, exist_ok=True)
        coarse = Image.fromarray(rng.integers(0, 256, (9, 12, 3), dtype=np.uint8))
        coarse.resize((50 + number // 3, 60)).save(image)
    photos = ["--data", tmp_path / "photos"]
    for name in (exported.parent / "a.ckpt", graph, exported / "model.pt2"):
        options = ["--trust", "--scales", "24,40,41", "--fuse", "24,40", "--batch-size", "5"]
        status, found, said = evaluate(name, *photos, *options)
        assert (status, said.err.count("\n")) == (0, 1), said.err
        of_graph.append([*found["scales"], found["fused"]])
    for row, *others in zip(*of_graph, strict=True):
        for other in others:
            assert (other["acc1"], other["acc5"], other["trained"]) == (row["acc1"], row["acc5"], row["trained"])
            assert [other["loss"], other["ece"]] == pytest.approx([row["loss"], row["ece"]], abs=1e-4)
    for option in (["--recalibrate-bn"], ["--views", "multi"]):
        status, _, said = evaluate(graph, *photos, *option)
        assert (status, "is a graph" in said.err) == (2, True)
    assert "does not record its data set" in evaluate(graph)[2].err


def test_a_report_of_single_trainings_is_that_of_the_latest(model, tmp_path, capsys):
    runs = tmp_path / "runs"
    for name in ("2026-01-02_10-00-00", "2026-01-10_09-00-00"):
        shutil.copytree(model, runs / name)
        (runs / name / "report.html").unlink(missing_ok=True)
    for folder, names in ((runs, ["2026-01-10_09-00-00/report.html"]), (tmp_path / "jobs", ["report.html"])):
        with pytest.raises(SystemExit) as end:
            commands.main(["report", str(folder)])
        said = capsys.readouterr()
        assert (end.value.code, said.err) == (0, "")
        assert sorted(str(path.relative_to(folder)) for path in folder.rglob("report.html")) == names
        assert ("separate runs; reporting the latest" in said.out) == (folder == runs)
        if folder == runs:
            assert f"has 2 separate runs; reporting the latest, {runs}/2026-01-10_09-00-00" in said.out
            (runs / "2026-01-10_09-00-00" / "report.html").unlink()
            runs.rename(tmp_path / "jobs")
            for number, job in enumerate(sorted((tmp_path / "jobs").iterdir())):
                job = job.rename(job.with_name(f"job-{number}"))  # put together by hand: to be compared
                config = (job / "config.yaml").read_text()
                (job / "config.yaml").write_text(re.sub(r"^seed: \d+", f"seed: {number}", config, flags=re.M))


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
        ([foreign], 1, "not a model of this package"),
        ([model, "--scales", "64,x"], 2, "comma-separated integers"),
        ([model, "--scales", "0"], 2, "allowed: 8 to 8192 pixels"),
        ([model, "--fuse", "-3"], 2, "allowed: 8 to 8192"),
        ([model, "--data", strange], 3, "the model has no class 'zebra'"),
        ([model, "--data", tmp_path / "nowhere"], 3, "no such file or folder"),
        ([model, "--data", unfinished], 3, "no images in class folders"),
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
        (["--views", "multi"], "--views multi"),
    ):
        status, _, said = evaluate(fixed, *arguments)
        assert status == 2
        assert text in said.err


def test_a_scale_too_small_for_the_network_is_named(evaluate, tmp_path):
    run_folder = trained(tmp_path / "zf5", backbone="zf5", width=0.05)
    smallest = load_model(run_folder).signature.smallest_scale
    for option in ("--scales", "--fuse"):
        status, _, said = evaluate(run_folder, option, f"{smallest - 1},64")
        assert status == 2
        assert f"scale {smallest - 1} is too small for zf5; the smallest scale is {smallest}" in said.err


def test_a_table_is_measured_and_the_images_of_the_run_itself_are_its_validation_part(train, capsys, tmp_path):
    chance = np.random.default_rng(0)
    lines = ["path,label"]
    for number in range(20):
        Image.fromarray(chance.integers(0, 255, (20, 24, 3), np.uint8)).save(tmp_path / f"{number}.png")
        lines.append(f"{number}.png,{'ab'[number % 2]}")
    for name, rows in (("all.csv", lines), ("few.csv", lines[:7])):
        (tmp_path / name).write_text("\n".join(rows) + "\n")
    small = ["model.width=0.125", "schedule.scales=[16]", "trainer.max_epochs=1", "data.batch_size=4"]
    assert train("data=table", "data.root=all.csv", "data.num_workers=0", *small, "run_dir=run") == 0
    for name, images in (("all.csv", 4), ("few.csv", 6)):
        with pytest.raises(SystemExit) as end:
            commands.main(["evaluate", "run", "--data", name, "--scales", "16"])
        assert end.value.code == 0
        assert f", {images} images (* trained)" in capsys.readouterr().out
