"""Exports prove themselves: parity at sizes that were not traced, and nothing left where it fails."""

import ast
import json
import subprocess
import sys
from dataclasses import replace

import numpy as np
import onnx
import pytest
import torch
from PIL import Image
from torch.nn import functional

from sppcls import commands, load_model
from sppcls.build import build_classifier
from sppcls.deploy import graph, parity
from sppcls.deploy.runtime import open_model, softmax
from sppcls.ops import pyramid
from sppcls.settings import ModelSpec
from tests.readme import blocks

CLASSES = ("cat", "dog", "emu")


def export(capsys, *arguments):
    with pytest.raises(SystemExit) as end:
        commands.main(["export", *map(str, arguments)])
    said = capsys.readouterr()
    return end.value.code, said.out, said.err


@pytest.fixture(scope="module")
def model(exported):
    return exported.parent / "a.ckpt"


def test_every_format_is_proved_at_sizes_that_were_not_traced(exported):
    proofs = json.loads((exported / "parity.json").read_text())["formats"]
    assert list(proofs) == ["safetensors", "onnx", "pt2"]
    for found in proofs.values():
        sizes = {(row["height"], row["width"]) for row in found["sizes"]}
        assert len(sizes) >= 8
        assert graph.traced_size(open_model(exported).signature) not in sizes
        assert {row["batch"] for row in found["sizes"]} == {1, 3}
        assert found["largest_difference"] <= 1e-4
        assert found["largest_difference"] == max(row["difference"] for row in found["sizes"])
        assert found["top1_agreement"] == 1
    assert proofs["safetensors"]["largest_difference"] == 0
    assert sorted(path.name for path in exported.iterdir()) == sorted(
        ["README.md", "config.json", "model.onnx", "model.pt2", "model.safetensors", "parity.json"]
    )


def test_the_proof_measures_what_a_loop_measures(exported, model):
    network, onnx_model = load_model(model), open_model(exported / "model.onnx")
    worst = 0.0
    for batch, height, width in parity.parity_sizes(onnx_model.signature):
        images = parity._images(batch, height, width)
        with torch.no_grad():
            want = network(network.normalize(torch.from_numpy(images))).numpy()
        worst = max(worst, float(np.abs(want - onnx_model.run(images)).max()))
    found = json.loads((exported / "parity.json").read_text())["formats"]["onnx"]["largest_difference"]
    assert found == pytest.approx(worst, abs=1e-6)


def test_class_names_and_preprocessing_travel_in_each_file(exported, model):
    network = load_model(model)
    for name in ("", "model.safetensors", "model.onnx", "model.pt2"):
        signature = open_model(exported / name, trust=True).signature
        assert signature == network.signature
    config = json.loads((exported / "config.json").read_text())
    assert config["id2label"] == {"0": "cat", "1": "dog", "2": "emu"}
    card = (exported / "README.md").read_text()
    assert "cat, dog, emu" in card
    assert "val_acc1: 0.25" in card
    assert torch.equal(load_model(exported).head.levels[0][2][0].weight, network.head.levels[0][2][0].weight)


def test_the_lines_of_the_readme_say_without_this_package_what_the_checkpoint_says(exported, model, tmp_path):
    (lines,) = (block for block in blocks("python") if any("onnxruntime" in line for line in block))
    (tmp_path / "lines.py").write_text("\n".join(lines))
    (tmp_path / "model").symlink_to(exported)
    rng, network, files = np.random.default_rng(0), load_model(model), []
    for number, (width, height) in enumerate([(400, 301), (60, 60), (50, 222), (90, 500), (133, 100), (81, 60)]):
        coarse = Image.fromarray(rng.integers(0, 256, (9, 12, 3), dtype=np.uint8)).resize((width, height))
        files.append(str(tmp_path / f"{number}.{'png' if number % 2 else 'jpg'}"))
        coarse.save(files[-1])
    program = "import sys\nlines = open('lines.py').read()\nfor sys.argv[1] in sys.argv[1:]: exec(lines)\n"
    program += "assert not {'torch', 'sppcls'} & sys.modules.keys()\n"
    done = subprocess.run([sys.executable, "-c", program, *files], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for file, line in zip(files, done.stdout.splitlines(), strict=True):
        wanted = {row["label"]: row["probability"] for row in network.predict(file)["top"]}
        assert ast.literal_eval(line) == pytest.approx(wanted, abs=0.02)


@pytest.mark.parametrize(("fit", "given"), [("keep", "normalized"), ("crop", "uint8"), ("warp", "float")])
def test_metadata_of_onnx_say_the_whole_preprocessing(exported, fit, given):
    signature = replace(open_model(exported).signature, fit=fit, input=given)
    told = graph.instructions(signature)
    words = {"keep": "pad on the right", "crop": "Cut out", "warp": "Resize the image to 40 x 40"}
    assert words[fit] in told["preprocessing"]
    assert ("Divide by 255" in told["preprocessing"]) == (given != "uint8")
    assert all(word in told["preprocessing"] for word in ("RGB", "EXIF", "antialiasing", "bilinear"))
    assert json.loads(told["classes"]) == list(CLASSES)
    assert json.loads(told["scale"]) == 40
    assert tuple(json.loads(told["mean"])) == signature.mean
    made = onnx.load(exported / "model.onnx", load_external_data=False)
    kept = {entry.key: entry.value for entry in made.metadata_props}
    assert graph.instructions(open_model(exported).signature).items() <= kept.items()


def test_onnx_is_one_valid_file_with_free_axes_and_no_paths(exported):
    made = onnx.load(exported / "model.onnx", load_external_data=False)
    onnx.checker.check_model(made, full_check=True)
    assert not any(tensor.external_data for tensor in made.graph.initializer)
    assert [(entry.domain, entry.version) for entry in made.opset_import if not entry.domain] == [("", graph.OPSET)]
    axes = made.graph.input[0].type.tensor_type.shape.dim
    assert [axis.dim_param or axis.dim_value for axis in axes] == ["batch", 3, "height", "width"]
    for name in ("model.onnx", "model.pt2"):
        content = (exported / name).read_bytes()
        assert str(exported.parent).encode() not in content
        assert b"site-packages" not in content
        assert b"classifier.py" not in content


@pytest.mark.parametrize(
    ("options", "kind"),
    [(["--normalize", "--probabilities"], "uint8"), (["--normalize", "float"], "float"), (["--half"], "normalized")],
)
def test_options_change_what_goes_in_and_comes_out(tmp_path, capsys, model, options, kind):
    out = tmp_path / "out"
    assert export(capsys, model, "--format", "onnx,pt2", "--out", out, *options)[0] == 0
    images = np.random.default_rng(0).integers(0, 256, (3, 3, 50, 70), dtype=np.uint8)
    network = load_model(model)
    with torch.no_grad():
        logits = network(network.normalize(torch.from_numpy(images))).numpy()
    for name in ("model.onnx", "model.pt2"):
        found = open_model(out / name, trust=True)
        assert found.signature.input == kind
        said = found.run(images)
        assert said.dtype == np.float32
        wanted = softmax(logits) if "--probabilities" in options else logits
        assert np.abs(said - wanted).max() < (0.05 if "--half" in options else 1e-4)
        assert np.allclose(found.probabilities(images), softmax(logits), atol=0.02)


def test_half_weights_load_into_a_network_again(tmp_path, capsys, model):
    assert export(capsys, model, "--format", "safetensors", "--half", "--out", tmp_path / "out")[0] == 0
    assert (tmp_path / "out" / "model.safetensors").stat().st_size < 0.6 * model.stat().st_size
    half, full = load_model(tmp_path / "out"), load_model(model)
    assert half.trunk.net[0][0].weight.dtype == torch.float32
    images = torch.randn(2, 3, 40, 50)
    assert torch.allclose(half(images), full(images), atol=0.05)


def naive(x, n, _mode):
    return functional.adaptive_max_pool2d(x, n)


def test_the_naive_adaptive_form_is_caught(tmp_path, capsys, model, monkeypatch):
    # At a size whose map the levels divide, the exporter freezes its windows: right there, wrong elsewhere, no error.
    monkeypatch.setattr(graph, "traced_size", lambda _signature: (96, 96))
    monkeypatch.setattr(pyramid, "_masked", naive)
    status, _, said = export(capsys, model, "--format", "onnx", "--out", tmp_path / "out")
    assert status == 1
    assert "model.onnx does not run at 1 x 3 x 1 x 1" in said
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_answers_otherwise_is_not_left(tmp_path, capsys, model, monkeypatch):
    monkeypatch.setattr(parity, "TOLERANCE", 0.0)
    monkeypatch.setattr(parity, "_images", lambda *_size: np.full((1, 3, 40, 40), 9, np.uint8))
    monkeypatch.setattr(graph.Graph, "forward", lambda self, images: self.network(images * 1.01))
    status, _, said = export(capsys, model, "--format", "safetensors,onnx", "--out", tmp_path / "new" / "out")
    assert status == 1
    assert "model.onnx: output differs from the checkpoint's" in said
    assert list((tmp_path / "new").iterdir()) == []


def test_an_output_folder_that_is_there_needs_force(tmp_path, capsys, model, exported):
    before = {path.name: path.read_bytes() for path in exported.iterdir()}
    status, _, said = export(capsys, model, "--format", "safetensors", "--out", exported)
    assert (status, said.count("\n")) == (2, 1)
    assert "add --force" in said
    assert before == {path.name: path.read_bytes() for path in exported.iterdir()}
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine.txt").write_text("keep")
    (out / "README.md").write_text("mine")
    status, _, said = export(capsys, model, "--format", "safetensors", "--out", out, "--force")
    assert (status, (out / "README.md").read_text()) == (2, "mine")
    assert "contains README.md and is not an export" in said
    (out / "model.onnx").write_text("of another model")
    (out / "parity.json").write_text("{}")
    assert export(capsys, model, "--format", "safetensors", "--out", out, "--force")[0] == 0
    assert sorted(path.name for path in out.iterdir()) == [
        "README.md",
        "config.json",
        "mine.txt",
        "model.safetensors",
        "parity.json",
    ]


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (["--format", "torchscript"], 2, "--format 'torchscript' is unknown"),
        (["--format", "onnx", "--out", "/proc/none/x"], 2, "--out /proc/none/x"),
        (["--format", "onnx", "--out", __file__], 2, "name a new folder"),
        (["--format", "onnx", "--out", f"{__file__}/x"], 2, "name a writable folder"),
        ([], 2, "--format"),
        (["--format", "safetensors", "--regions"], 2, "--regions needs onnx"),
        (["--format", "safetensors", "--normalize"], 2, "--normalize"),
        (["--format", "safetensors", "--out", "n" * 300], 2, "argument --out: got 'nnn"),
        (["--format", "safetensors", "--out", __file__, "--force"], 2, "name a new folder"),
    ],
)
def test_wrong_arguments_are_one_line(capsys, model, arguments, status, said):
    got, _, error = export(capsys, model, *arguments)
    assert (got, error.count("\n")) == (status, 1)
    assert said in error


def test_a_fixed_network_exports_at_its_one_size(tmp_path, capsys, save_model):
    model = save_model(tmp_path / "fixed.ckpt", pool="fixed")
    assert export(capsys, model, "--format", "onnx,pt2")[0] == 0
    for name in ("model.onnx", "model.pt2"):
        found = open_model(tmp_path / "fixed-export" / name, trust=True)
        assert found.signature.input_size == (40, 40)
        assert found.run(np.zeros((4, 3, 40, 40), np.uint8)).shape == (4, 3)


def test_a_graph_with_boxes_answers_as_the_network(tmp_path, capsys, model):
    out = tmp_path / "out"
    assert export(capsys, model, "--format", "onnx", "--regions", "--normalize", "--out", out)[0] == 0
    found, network = open_model(out), load_model(model)
    images = np.random.default_rng(0).integers(0, 256, (1, 3, 53, 70), dtype=np.uint8)
    boxes = np.array([[0, 0, 70, 53], [8, 8, 16, 16], [69.5, 52, 70, 53], [3, 4, 41.5, 20]])
    with torch.no_grad():
        wanted = network.classify_regions(
            network.normalize(torch.from_numpy(images)), [torch.from_numpy(boxes)]
        ).numpy()
    got = found.regions(images, boxes)
    assert np.abs(got - wanted).max() < 1e-5
    assert np.allclose(found.run(images)[0], got[0], atol=1e-6)
    assert found.regions(images, boxes[:0]).shape == (0, 3)


@pytest.mark.parametrize(
    "settings",
    [{"levels": (7, 1)}, {"mode": "avg"}, {"pool": "gap"}, {"pool": "fixed"}],
    ids=["7", "avg", "gap", "fixed"],
)
def test_a_graph_with_boxes_that_would_not_be_exact_is_refused(tmp_path, capsys, save_model, settings):
    model = save_model(tmp_path / "a.ckpt", **settings)
    status, _, error = export(capsys, model, "--format", "onnx", "--regions")
    assert (status, error.count("\n")) == (2, 1)
    assert "supported are max-pooled levels" in error


@pytest.mark.slow
@pytest.mark.parametrize("pool", ["spp", "gap", "fixed"])
@pytest.mark.parametrize("backbone", ["tiny", "zf5", "resnet18", "efficientnet_lite0"])
def test_every_network_is_proved_in_every_format(tmp_path, capsys, save_model, backbone, pool):
    # At random, this one's activations vanish, and with them every difference.
    weights = "pretrained" if backbone == "efficientnet_lite0" else None
    model = save_model(tmp_path / "a.ckpt", backbone=backbone, pool=pool, levels=(6, 3, 2, 1), weights=weights)
    status, _, error = export(capsys, model, "--format", "safetensors,onnx,pt2")
    assert (status, error) == (0, ""), error
    proofs = json.loads((tmp_path / "a-export" / "parity.json").read_text())["formats"]
    print(backbone, pool, {name: found["largest_difference"] for name, found in proofs.items()})
    assert all(found["largest_difference"] <= 1e-4 and found["top1_agreement"] == 1 for found in proofs.values())


def test_the_sizes_of_a_proof_hold_what_is_promised():
    network = build_classifier(ModelSpec(backbone="efficientnet_lite0"), CLASSES, (32, 96))
    sizes = parity.parity_sizes(network.signature)
    assert min(min(h, w) for _, h, w in sizes) == 32
    assert max(h * w for _, h, w in sizes) == 192 * 256
    assert any(h == w for _, h, w in sizes)
    assert any(h < w for _, h, w in sizes)
    assert any(h > w for _, h, w in sizes)
    assert len(parity.parity_sizes(replace(network.signature, scales=()))) >= 8
