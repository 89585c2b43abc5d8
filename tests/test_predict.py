"""Predictions: the same from every kind of file, as a slow loop makes them; what cannot be read costs itself alone."""

import csv
import io
import json
import math
import shutil
import signal
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from sppcls import commands, load_model
from sppcls.data.images import decode, fit_image
from sppcls.data.plan import plan_evaluation
from sppcls.deploy.predict import expand, predict
from sppcls.deploy.regions import _moved, _scale_of_each, apart, distinct, grid
from sppcls.deploy.runtime import open_model
from sppcls.errors import ConfigError, DataError
from tests.processes import Program, run_to_end

SIZES = [(60, 80), (80, 60), (64, 64), (61, 79), (30, 200), (300, 401), (60, 81)]
FORMATS = ("model.safetensors", "model.onnx", "model.pt2")


@pytest.fixture(scope="module")
def folder(exported):
    """Add images of several sizes and formats to the folder with a model and its exports."""
    place = exported.parent
    (place / "images" / "deep").mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    for number, (height, width) in enumerate(SIZES):
        coarse = Image.fromarray(rng.integers(0, 256, (9, 12, 3), dtype=np.uint8)).resize((width, height))
        sub = "deep" if number % 2 else "."
        coarse.save(place / "images" / sub / f"{number}.{'jpg' if number < 5 else 'png'}")
    return place


def run(capsys, *arguments):
    with pytest.raises(SystemExit) as end:
        commands.main(["predict", *map(str, arguments)])
    said = capsys.readouterr()
    return end.value.code, said.out, said.err


def by_hand(model, path, scale):
    """Return the logits of one image in a tensor of its own, by torch alone."""
    network = load_model(model)
    with Image.open(path) as image:
        native = (image.height, image.width)
    size = plan_evaluation(np.array([native]), scale, batch_size=1)[0].size
    pad = tuple(round(value * 255) for value in network.mean)
    image = fit_image(decode(path, min(size)), size, "keep", pad, native=native)
    with torch.no_grad():
        return network(network.normalize(image[None]))[0]


@pytest.mark.parametrize("name", ["a.ckpt", *(f"a-export/{name}" for name in FORMATS), "a-export"])
def test_every_kind_of_file_says_what_a_slow_loop_says(folder, capsys, name):
    status, out, error = run(
        capsys, folder / name, folder / "images", "--json", "--top", 3, "--trust", "--batch-size", 2
    )
    assert (status, error.count("\n")) == (0, 1)
    assert error.startswith(f"model: {folder / 'a'}")
    rows = [json.loads(line) for line in out.splitlines()]
    assert [row["path"] for row in rows] == [str(path) for path in expand([str(folder / "images")])]
    assert len(rows) == len(SIZES)
    for row in rows:
        wanted = by_hand(folder / "a.ckpt", row["path"], 40).softmax(0)
        got = {answer["label"]: answer["probability"] for answer in row["top"]}
        assert row["label"] == row["top"][0]["label"] == ("cat", "dog", "emu")[int(wanted.argmax())]
        assert [got[name] for name in ("cat", "dog", "emu")] == pytest.approx(wanted.tolist(), abs=1e-5)


def test_logits_are_equal_from_the_file_on_disk_in_every_format(folder):
    paths = expand([str(folder / "images")])
    wanted = torch.stack([by_hand(folder / "a.ckpt", path, 40) for path in paths]).log_softmax(1).numpy()
    for name in FORMATS:
        opened = open_model(folder / "a-export" / name, trust=True)
        said = np.stack([row for _, row in predict(opened, paths, (40,))])
        assert np.abs(np.log(said) - wanted).max() < 1e-4


def test_python_says_what_the_verb_says(folder, capsys):
    network, images = load_model(folder / "a.ckpt"), folder / "images"
    network.train()

    def near(got, wanted):
        assert (got["path"], got["label"]) == (wanted["path"], wanted["label"])
        assert [a["label"] for a in got["top"]] == [a["label"] for a in wanted["top"]]
        for mine, other in zip(got["top"], wanted["top"], strict=True):
            assert mine["probability"] == pytest.approx(other["probability"], abs=1e-6)

    for options, arguments in ((), {}), (("--scale", 56, "--top", 2), {"scale": 56, "top": 2}):
        rows = [json.loads(line) for line in run(capsys, folder / "a.ckpt", images, "--json", *options)[1].splitlines()]
        for got, wanted in zip(network.predict(images, **arguments), rows, strict=True):
            near(got, wanted)
        by_path = {row["path"]: row for row in rows}
        near(network.predict(str(images / "0.jpg"), **arguments), by_path[str(images / "0.jpg")])
        png = by_path[str(images / "6.png")]  # what is open in memory is not decoded at a fraction of its size
        with Image.open(images / "6.png") as image:
            for one in (image, np.asarray(image)):
                near(network.predict(one, **arguments), png | {"path": None})
            first, second = network.predict([image, images / "2.jpg"], **arguments)
        near(first, png | {"path": None})
        near(second, by_path[str(images / "2.jpg")])
        (only,) = network.predict(str(images / "2.*"), **arguments)
        near(only, by_path[str(images / "2.jpg")])
    assert network.training
    turned = Image.fromarray(np.arange(60 * 80 * 3, dtype=np.uint32).astype(np.uint8).reshape(60, 80, 3))
    turned.getexif()[0x0112] = 6
    near(network.predict(turned), network.predict(turned.transpose(Image.Transpose.ROTATE_270)))


def test_python_predicts_as_the_network_was_trained(tmp_path, save_model):
    network = load_model(save_model(tmp_path / "a.ckpt"))
    network.fit, image = "warp", np.random.default_rng(0).integers(0, 256, (60, 90, 3), dtype=np.uint8)
    with torch.no_grad():
        pixels = fit_image(torch.from_numpy(image).permute(2, 0, 1), (40, 40), "warp")
        wanted = network(network.normalize(pixels[None]))[0].softmax(0)
    assert network.predict(image)["top"][0]["probability"] == pytest.approx(float(wanted.max()), abs=1e-6)


def test_what_is_no_image_is_refused_by_python(folder, tmp_path):
    network = load_model(folder / "a.ckpt")
    wrong = [3, np.zeros((4, 5, 3)), np.zeros((2, 4, 5, 3), np.uint8), np.zeros((0, 5, 3), np.uint8), torch.zeros(3, 4)]
    for image in wrong:
        with pytest.raises(TypeError, match="expected a file, a folder, a Pillow image"):
            network.predict(image)
    (tmp_path / "torn.jpg").write_bytes(b"\xff\xd8")
    for image, said in (
        (tmp_path / "torn.jpg", "torn.jpg"),
        (tmp_path / "none.jpg", "No such file"),
        ("no*", "no image"),
    ):
        with pytest.raises(DataError, match=said):
            network.predict([folder / "images" / "0.jpg", image])
    with pytest.raises(ConfigError, match="too small"):
        network.predict(folder / "images", scale=0)
    assert network.predict([]) == []


def test_fused_scales_are_the_mean_of_probabilities(folder, capsys):
    image = folder / "images" / "0.jpg"
    status, out, _ = run(capsys, folder / "a.ckpt", image, "--fuse", "24,40,56", "--json", "--top", 3)
    wanted = torch.stack([by_hand(folder / "a.ckpt", image, scale).softmax(0) for scale in (24, 40, 56)]).mean(0)
    got = {answer["label"]: answer["probability"] for answer in json.loads(out)["top"]}
    assert status == 0
    assert [got[name] for name in ("cat", "dog", "emu")] == pytest.approx(wanted.tolist(), abs=1e-5)
    one = json.loads(run(capsys, folder / "a.ckpt", image, "--scale", "56", "--json")[1])["top"][0]["probability"]
    assert one == pytest.approx(float(by_hand(folder / "a.ckpt", image, 56).softmax(0).max()), abs=1e-5)


def test_a_bad_image_is_reported_and_the_rest_go_on(folder, capsys, tmp_path):
    (tmp_path / "empty.jpg").write_bytes(b"")
    whole = (folder / "images" / "6.png").read_bytes()
    (tmp_path / "torn.png").write_bytes(whole[: len(whole) // 2])
    good = [folder / "images" / "0.jpg", folder / "images" / "2.jpg"]
    images = [good[0], tmp_path / "empty.jpg", tmp_path / "torn.png", tmp_path / "none.jpg", good[1]]
    status, out, error = run(capsys, folder / "a.ckpt", *images, "--csv", "--top", 2)
    assert status == 3
    rows = list(csv.DictReader(io.StringIO(out)))
    assert [row["path"] for row in rows] == [str(path) for path in good]
    assert set(rows[0]) == {"path", "label", "probability", "label2", "probability2"}
    lines = error.splitlines()
    named = ("model: ", "empty.jpg", "torn.png", "none.jpg")
    assert all(name in line for name, line in zip(named, lines, strict=False))
    assert lines[4] == "3 of 5 images could not be read"
    wanted = by_hand(folder / "a.ckpt", good[1], 40).softmax(0).max()
    assert float(rows[1]["probability"]) == pytest.approx(float(wanted), abs=1e-5)


def test_files_folders_globs_and_a_list_on_standard_input(folder, monkeypatch, tmp_path):
    images = folder / "images"
    assert expand([str(images / "*.jpg")]) == sorted(images.glob("*.jpg"))
    assert expand([str(images / "**" / "*.jpg")]) == sorted(images.rglob("*.jpg"))
    assert expand(["no*such"]) == []
    assert expand(["none.jpg", str(images / "0.jpg")]) == [Path("none.jpg"), images / "0.jpg"]
    monkeypatch.setattr(sys, "stdin", io.StringIO(f"{images}/0.jpg\n\n{images}/a name.jpg\n"))
    assert expand(["-"]) == [images / "0.jpg", images / "a name.jpg"]
    (tmp_path / "[x].jpg").write_bytes(b"")
    assert expand([str(tmp_path / "[x].jpg")]) == [tmp_path / "[x].jpg"]


BLOCKED = """
import sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] not in ALLOWED and not name.startswith("_"):
            raise ImportError(f"{name} is blocked")
ALLOWED = set(sys.stdlib_module_names) | {"sppcls", "numpy", "PIL", "onnxruntime"} | set(sys.argv.pop(1).split(","))
sys.meta_path.insert(0, Block())
from sppcls import commands
commands.main(sys.argv[1:])
"""


def test_onnx_needs_onnxruntime_pillow_and_numpy_alone(folder, tmp_path):
    command = ["predict", str(folder / "a-export" / "model.onnx"), str(folder / "images"), "--json"]
    # What onnxruntime itself asks for: flatbuffers, protobuf, packaging; none of them is torch.
    own = "flatbuffers,google,packaging"
    package = str(Path(commands.__file__).parents[2])
    done = run_to_end([sys.executable, "-c", BLOCKED, own, *command], tmp_path, PYTHONPATH=package)
    assert done.err == f"model: {folder}/a-export/model.onnx\n"
    assert len(done.out.splitlines()) == len(SIZES)
    for name in ("a-export/model.safetensors", "a-export/model.pt2", "a.ckpt"):
        command[1] = str(folder / name)
        done = run_to_end([sys.executable, "-c", BLOCKED, own, *command], tmp_path, 2, PYTHONPATH=package)
        assert done.err == f"error: {command[1]}: this format needs torch; install torch or use an .onnx file\n"


def boxes_file(tmp_path, rows, name="boxes.json"):
    path = tmp_path / name
    text = json.dumps(rows) if name.endswith("json") else "\n".join(",".join(map(str, row)) for row in rows)
    path.write_text(text)
    return path


def test_the_box_of_the_whole_image_is_the_image(folder, capsys, tmp_path):
    for number, (height, width) in enumerate(SIZES):
        image = next((folder / "images").rglob(f"{number}.*"))
        boxes = boxes_file(tmp_path, [[0, 0, width, height], {"box": [5, 5, 25, 25]}])
        row = json.loads(run(capsys, folder / "a.ckpt", image, "--boxes", boxes, "--json", "--top", 3)[1])
        whole, part = row["regions"]
        assert whole["box"] == [0, 0, width, height]
        assert [a["probability"] for a in whole["top"]] == pytest.approx(
            [a["probability"] for a in row["top"]], abs=1e-6
        )
        assert set(part) == {"box", "label", "top"}


def test_names_of_strangers_do_not_command_the_terminal(folder, capsys, tmp_path):
    strange = tmp_path / "a\x1b[2J\n.jpg"
    strange.write_bytes((folder / "images" / "0.jpg").read_bytes())
    status, out, _ = run(capsys, folder / "a.ckpt", strange, "--top", 1)
    assert (status, out.count("\n"), "\x1b" in out) == (0, 1, False)
    assert json.loads(run(capsys, folder / "a.ckpt", strange, "--json")[1])["path"] == str(strange)


def test_an_export_that_is_ended_leaves_nothing(folder, tmp_path):
    command = ["export", str(folder / "a.ckpt"), "--format", "onnx", "--out", str(tmp_path / "x")]
    program = Program.started([Path(sys.executable).with_name("sppcls"), *command], tmp_path)
    program.until(lambda: any(tmp_path.iterdir()))
    program.signal(signal.SIGTERM)
    program.end(143)
    assert list(tmp_path.iterdir()) == []


def test_boxes_of_csv_with_and_without_a_heading_and_none_at_all(folder, capsys, tmp_path):
    image, rows = folder / "images" / "0.jpg", [[0, 0, 40, 40], [10.5, 3, 70, 60]]
    found = []
    for name, lines in (("a.csv", rows), ("b.csv", [["x1", "y1", "x2", "y2"], *rows]), ("c.json", rows)):
        status, out, _ = run(capsys, folder / "a.ckpt", image, "--boxes", boxes_file(tmp_path, lines, name), "--csv")
        assert status == 0
        found.append(out)
    assert found[0] == found[1] == found[2]
    assert len(found[0].splitlines()) == 3
    none = boxes_file(tmp_path, [])
    assert json.loads(run(capsys, folder / "a.ckpt", image, "--boxes", none, "--json")[1])["regions"] == []


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([[0, 0, 10, 10], [0, 0, 81, 10]], "box 1 is 0 0 81 10"),
        ([[10, 0, 10, 10]], "box 0 is"),
        ([[-1, 0, 10, 10]], "box 0 is -1 0 10 10"),
        ([["a", 0, 10, 10]], "not four numbers"),
        ([[0, 0, 10]], "not four numbers"),
        ([5], "not four numbers"),
        ([[math.nan, 0, 10, 10]], "box 0 is nan"),
        ({"a": 1}, "it contains dict, not a list"),
        ([[0, 0, 10**400, 5]], "not four numbers"),
    ],
)
def test_boxes_that_are_none_are_named(folder, capsys, tmp_path, rows, said):
    image = folder / "images" / "0.jpg"
    status, _, error = run(capsys, folder / "a.ckpt", image, "--boxes", boxes_file(tmp_path, rows), "--top", 1)
    assert (status, error.count("\n")) == (3, 1)
    assert said in error


def test_each_region_comes_from_the_scale_where_it_is_nearest_to_the_training_area():
    boxes = np.array([[0, 0, 200, 200], [0, 0, 100, 100], [0, 0, 50, 50.0]])
    # At scale s a box of side b has (b * s / 200)^2 pixels; the training images have 48^2.
    assert _scale_of_each(boxes, (200, 300), (48, 96, 192), 48).tolist() == [48, 96, 192]
    assert _scale_of_each(boxes, (200, 300), (64,), 48).tolist() == [64, 64, 64]


def test_boxes_move_with_the_pixels_and_edges_stay_edges():
    # A 60 x 81 image in a tensor of 40 x 55: 54 columns of image and one of padding.
    moved = _moved(np.array([[0, 0, 81, 60], [40.5, 30, 54, 59.0]]), (60, 81), (40, 55), 1)
    assert moved[0].tolist() == [0, 0, 55, 40]
    assert moved[1].tolist() == pytest.approx([27, 20, 36, 39.3333333])


def test_a_grid_lies_inside_and_the_surest_do_not_overlap():
    boxes = grid((61, 97), 8)
    assert (boxes[:, :2] >= 0).all()
    assert (boxes[:, 2] <= 97).all()
    assert (boxes[:, 3] <= 61).all()
    assert (boxes[:, 2:] > boxes[:, :2]).all()
    assert len(np.unique(boxes, axis=0)) == len(boxes)
    rng = np.random.default_rng(0)
    sure = rng.dirichlet([1, 1, 1], len(boxes)).astype(np.float32)
    kept = distinct(boxes, sure, 10)
    assert kept[0] == sure.max(1).argmax()
    assert sorted(kept, key=lambda k: -sure[k].max()) == kept
    for place, a in enumerate(kept):
        for b in kept[:place]:
            inside = [max(0, min(boxes[a][i + 2], boxes[b][i + 2]) - max(boxes[a][i], boxes[b][i])) for i in (0, 1)]
            areas = sum(np.prod(boxes[k][2:] - boxes[k][:2]) for k in (a, b))
            assert math.prod(inside) <= 0.3 * (areas - math.prod(inside)) + 1e-9


def test_regions_are_drawn_onto_the_image(folder, capsys, tmp_path):
    image, out = folder / "images" / "0.jpg", tmp_path / "drawn.png"
    status, said, _ = run(capsys, folder / "a.ckpt", image, "--grid", 4, "--draw", out, "--top", 1)
    assert status == 0
    assert 2 <= len(said.splitlines()) <= 11
    with Image.open(out) as drawn:
        assert drawn.size == (640, 480)
        assert len(drawn.convert("RGB").getcolors(10**6)) > 20


def test_boxes_of_many_images_and_drawings_of_each(folder, capsys, tmp_path):
    images = [folder / "images" / "0.jpg", folder / "images" / "6.png"]
    rows = [["path", "x1", "y1", "x2", "y2"], [images[1], 0, 0, 81, 60], [images[1], 5, 5, 40, 40]]
    table, out = boxes_file(tmp_path, rows, "many.csv"), tmp_path / "drawn"
    status, said, _ = run(capsys, folder / "a.ckpt", *images, "--boxes", table, "--json", "--draw", out)
    assert status == 0
    none, two = (json.loads(line)["regions"] for line in said.splitlines())
    alone = boxes_file(tmp_path, rows[2:] and [row[1:] for row in rows[1:]], "one.csv")
    one = json.loads(run(capsys, folder / "a.ckpt", images[1], "--boxes", alone, "--json")[1])["regions"]
    assert (none, two) == ([], one)
    assert {path.name for path in out.iterdir()} == {"0.jpg.png", "6.png.png"}
    status, _, error = run(capsys, folder / "a.ckpt", images[0], "--boxes", table)
    assert (status, error.count("\n"), "is not one of the images" in error) == (3, 1, True)


def test_the_label_of_a_whole_image_is_drawn(folder, capsys, tmp_path):
    image, out = folder / "images" / "0.jpg", tmp_path / "x.png"
    assert run(capsys, folder / "a.ckpt", image, "--draw", out)[0] == 0
    with Image.open(out) as drawn, Image.open(image) as plain:
        changed = np.asarray(drawn.convert("RGB")) != np.asarray(plain.resize(drawn.size))
    places = np.argwhere(changed.any(2))
    assert len(places) > 100
    assert places.max(0)[0] < drawn.height // 10  # at the top, and nothing else


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(*[st.floats(-50, 400)] * 2, st.integers(1, 120), st.integers(1, 20)), max_size=8))
def test_labels_lie_inside_and_do_not_cover_one_another(wanted):
    places = apart(wanted, (300, 400))
    boxes = [(x, y, x + w, y + h) for (x, y), (_, _, w, h) in zip(places, wanted, strict=True)]
    for number, a in enumerate(boxes):
        assert 0 <= a[0] < a[2] <= 300
        assert 0 <= a[1] < a[3] <= 400
        for b in boxes[:number]:
            assert a[2] <= b[0] or b[2] <= a[0] or a[3] <= b[1] or b[3] <= a[1]


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (["a.ckpt", "images", "--boxes", "x.json"], 2, "has no path column for 7 images; add path,x1,y1,x2,y2"),
        (["a.ckpt", "images", "--draw", "x.png"], 2, "7 images need an output folder"),
        (["a.ckpt", "images/0.jpg", "--grid", "4", "--draw", "none/x.png"], 2, "--draw none/x.png"),
        (["a.ckpt", "images/0.jpg", "--boxes", "none.json"], 3, "--boxes none.json: No such file"),
        (["a.ckpt", "images/0.jpg", "--boxes", "a.ckpt"], 3, "--boxes a.ckpt"),
        (["a-export/model.onnx", "images/0.jpg", "--grid", "4"], 2, "or an ONNX file made with --regions"),
        (["a.ckpt", "no*such"], 3, "no images in no*such"),
        (["a.ckpt", ""], 2, "got '' as an image"),
        (["a.ckpt", "images", "--scales", "64"], 2, "--scales applies to regions only"),
        (["a.ckpt", "images/0.jpg", "--grid", "4", "--draw", "images/0.jpg"], 2, "name a file other than the image"),
        (["a.ckpt", "images/0.jpg", "--grid", "4", "--draw", "x.txt"], 2, "ends in .png"),
        (["a.ckpt", "images/0.jpg", "--grid", "100000"], 2, "at most 64"),
        (["a.ckpt", "images/0.jpg", "--scale", "1000000"], 2, "at most 8192"),
        (["none", "images"], 2, "no model at none"),
        (["images", "images"], 2, "images has no checkpoints/last.ckpt"),
        (["images/0.jpg", "images"], 1, "images/0.jpg is not a checkpoint or is damaged"),
        (["a.ckpt", "images", "--scale", "0"], 2, "at least 8"),
        (["a.ckpt", "images", "--scale", "9", "--fuse", "8,9"], 2, "not allowed with"),
        (["a.ckpt", "images", "--json", "--csv"], 2, "not allowed with"),
        (["a.ckpt", "images", "--device", "tpu"], 2, "--device tpu"),
        (["a-export/model.onnx", "images", "--device", "cuda"], 2, "--device cuda"),
    ],
)
def test_wrong_arguments_are_one_line(folder, capsys, monkeypatch, arguments, status, said):
    monkeypatch.chdir(folder)
    got, _, error = run(capsys, *arguments)
    assert (got, error.count("\n")) == (status, 1), error
    assert said in error


def test_images_of_one_name_are_drawn_in_folders_as_they_are_in(folder, capsys, tmp_path):
    for place in ("in/a", "in/b", "c"):
        (tmp_path / place).mkdir(parents=True)
        shutil.copy(folder / "images" / "0.jpg", tmp_path / place / "0.jpg")
    images = [tmp_path / "in" / "a" / "0.jpg", tmp_path / "in" / "a" / ".." / "b" / "0.jpg", tmp_path / "c" / "0.jpg"]
    assert run(capsys, folder / "a.ckpt", *images, "--draw", tmp_path / "out")[0] == 0
    found = sorted(str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*.png"))
    assert found == ["c/0.jpg.png", "in/a/0.jpg.png", "in/b/0.jpg.png"]
