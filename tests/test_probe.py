"""``sppcls probe``: equal to an SVM on plainly computed features; splits, and wrong inputs."""

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.svm import LinearSVC

from sppcls import SppClassifier, commands
from sppcls.data.files import FileSource
from sppcls.data.images import decode, fit_image
from sppcls.measure import probe as module
from sppcls.measure.probe import Features, fit_svm, inner_products, kernel
from sppcls.models.backbones import build_trunk

CLASSES = ("ants", "bees", "cats")


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Three classes of 9, 7 and 6 noisy images, told apart by their stripes."""
    root, rng = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    for k, (name, count) in enumerate(zip(CLASSES, (9, 7, 6), strict=True)):
        (root / name).mkdir()
        for i in range(count):
            h, w = rng.integers(32, 60, 2)
            stripes = np.sin(np.arange(w) * (0.3 + 0.5 * k))[None, :, None] * 60 + 128
            pixels = np.clip(stripes + rng.normal(0, 60, (h, w, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(root / name / f"{i}.png")
    return root


@pytest.fixture
def probe(tmp_path, capsys, monkeypatch):
    """Run the verb on a small network and return exit status, probe.json, what it said and the images it read."""

    def call(data, *arguments):
        read, plain = [], FileSource.read
        monkeypatch.setattr(FileSource, "read", lambda self, i, s=None: read.append(self.names[i]) or plain(self, i, s))
        small = ["--backbone", "tiny", "--weights", "none", "--scales", "32", "--train-per-class", "4", "--splits", "2"]
        out = tmp_path / "out"
        shutil.rmtree(out, ignore_errors=True)
        with pytest.raises(SystemExit) as end:
            commands.main(["probe", "--data", str(data), *small, "--out", str(out), *map(str, arguments)])
        monkeypatch.setattr(FileSource, "read", plain)
        found = out / "probe.json"
        return end.value.code, json.loads(found.read_text()) if found.exists() else None, capsys.readouterr(), read

    return call


def unit(features):
    return features / np.linalg.norm(features, axis=1, keepdims=True)


def plain_features(path, scale, fit, levels):
    """The features of one image, by adaptive pooling of the last map, in single precision."""
    torch.manual_seed(0)
    network = SppClassifier(build_trunk("tiny"), CLASSES).eval()
    image, maps = decode(path), []
    h, w = image.shape[1:]
    steps = np.ceil(24 * (np.log2(max(h, w) / min(h, w)) - np.log2(1.0015)) - 1e-9)  # 24 aspect buckets an octave
    long = round(scale * 1.0015 * 2 ** (max(steps, 1) / 24)) if h != w else scale
    size = (scale, scale) if fit != "keep" else (scale, long) if w > h else (long, scale)
    pixels = fit_image(image, size, fit, tuple(round(m * 255) for m in network.mean))
    network.trunk.register_forward_hook(lambda _m, _i, out: maps.append(out.clone()))
    with torch.no_grad():
        network.features(network.normalize(pixels[None]))
    pool = [torch.nn.functional.adaptive_max_pool2d(maps[0], n) if n else maps[0].mean((2, 3)) for n in levels]
    return torch.cat([part.flatten(1) for part in pool], 1)[0].double().numpy()


@pytest.mark.parametrize(
    ("fit", "scales", "levels"), [("keep", (32,), (3, 2, 1)), ("warp", (24, 40), (2, 1)), ("crop", (32,), (0,))]
)
def test_accuracy_is_that_of_linear_svc_on_plainly_computed_features(probe, photos, monkeypatch, fit, scales, levels):
    drawn, plain = [], module.split_by_class
    monkeypatch.setattr(module, "split_by_class", lambda *given: drawn.append(plain(*given)) or drawn[-1])
    name = ",".join(map(str, levels)) if levels != (0,) else "gap"
    options = ["--fit", fit, "--scales", ",".join(map(str, scales)), "--levels", name, "--C", "3"]
    status, found, _, _ = probe(photos, *options)
    assert status == 0

    def features(part):
        each = [unit(np.array([plain_features(p, s, fit, levels) for p in part.names])) for s in scales]
        return np.concatenate(each, 1) / len(scales) ** 0.5

    for (train, test), accuracy in zip(drawn, found["accuracy_of_splits"], strict=True):
        svm = LinearSVC(C=3, dual=True, random_state=0).fit(features(train), train.targets)
        assert accuracy == (svm.predict(features(test)) == test.targets).mean()


@pytest.mark.parametrize("classes", [2, 5])
@pytest.mark.parametrize("length", [6, 300])
@pytest.mark.parametrize("c", [0.01, 1.0, 10.0])
def test_the_svm_from_inner_products_is_the_svm_on_features(classes, length, c):
    rng = np.random.default_rng(length)
    targets = np.arange(40) % classes
    features = unit(np.abs(rng.normal(size=(70, length))) + np.eye(classes, length)[np.arange(70) % classes])
    features[1] = features[1 + classes]  # a repeated training image: their inner products have no Cholesky factor
    svm, vectors = fit_svm(features @ features[:40].T, targets, c, tol=1e-10)
    oracle = LinearSVC(C=c, tol=1e-10, dual=True, max_iter=10**6).fit(features[:40], targets)
    found, expected = svm.decision_function(vectors), oracle.decision_function(features[40:])
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert (svm.predict(vectors) == oracle.predict(features[40:])).all()


def test_inner_products_of_levels_and_scales_add_up():
    rng = np.random.default_rng(0)
    levels, scales, rows = (3, 1, 0), (32, 48), np.array([5, 2, 9, 0, 7])
    features = {("keep", s, n): rng.random((10, 5000 * max(n, 1))).astype(np.float16) for s in scales for n in levels}
    grams = {key: inner_products(values, rows, 3) for key, values in features.items()}
    for some in ((32,), scales):
        sides = [unit(np.concatenate([features["keep", s, n][rows] for n in levels], 1).astype(float)) for s in some]
        whole = unit(np.concatenate(sides, 1))
        np.testing.assert_allclose(kernel(grams, Features("keep", some, levels)), whole @ whole[:3].T, atol=2e-6)


def test_splits_are_disjoint_counted_seeded_and_the_same_for_all_variants(probe, photos, monkeypatch):
    seen, plain = [], module.inner_products
    monkeypatch.setattr(module, "inner_products", lambda f, rows, n: seen.append((rows, n)) or plain(f, rows, n))
    targets = np.repeat([0, 1, 2], [9, 7, 6])
    probe(photos, "--levels", "gap/2,1", "--fit", "keep/warp", "--splits", 3, "--test-per-class", 4)
    assert len(seen) == 3 * 2 * 3  # splits, fits, levels
    by_split = [seen[i : i + 6] for i in range(0, 18, 6)]
    for calls in by_split:
        rows, n = calls[0]
        assert all((other == rows).all() and count == n for other, count in calls)
        assert len(set(rows.tolist())) == len(rows)
        assert np.bincount(targets[rows[:n]]).tolist() == [4, 4, 4]
        assert np.bincount(targets[rows[n:]]).tolist() == [4, 3, 2]
    draws = [calls[0][0].tolist() for calls in by_split]
    assert draws[0] != draws[1] != draws[2]
    seen.clear()
    probe(photos, "--splits", 2, "--seed", 1, "--test-per-class", 4)
    assert [seen[0][0].tolist(), seen[3][0].tolist()] == draws[1:]


def test_each_image_is_read_once_a_fit_and_scale_and_nothing_is_kept(probe, photos, tmp_path):
    _, _, _, read = probe(photos, "--levels", "2,1/gap", "--scales", "32/32,40", "--fit", "keep/warp")
    assert sorted(read) == sorted([*map(str, photos.rglob("*.png"))] * 4)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["probe.json"]


def test_broken_images_are_named_and_change_nothing_else(probe, photos, tmp_path):
    root = shutil.copytree(photos, tmp_path / "mine")
    torn, empty = root / "bees" / "torn.png", root / "cats" / "empty.jpg"
    torn.write_bytes((root / "bees" / "0.png").read_bytes()[:900])
    empty.write_bytes(b"")
    status, found, said, _ = probe(root)
    assert (status, found["images"], found["left_out"]) == (0, 22, [str(empty), str(torn)])
    assert str(torn) in said.out
    assert str(empty) in said.out
    assert found["variants"] == probe(photos)[1]["variants"]


def test_what_probe_json_holds(probe, photos):
    status, found, said, _ = probe(photos, "--levels", "1/2,1/gap", "--splits", 3)
    assert status == 0
    assert (found["images"], found["classes"], found["train_images"], found["test_images"]) == (22, 3, 12, 10)
    assert found["options"]["levels"] == [[1], [2, 1], [0]]
    assert found["seconds_features"] >= 0 <= found["seconds_svm"]
    base = found["variants"][0]
    for row in found["variants"]:
        for name in ("accuracy", "mean_class_accuracy"):
            of_splits = row[f"{name}_of_splits"]
            assert row[name] == pytest.approx(np.mean(of_splits))
            assert row[f"{name}_std"] == pytest.approx(np.std(of_splits, ddof=1))
        gains = np.subtract(row["accuracy_of_splits"], base["accuracy_of_splits"])
        assert row["difference"] == pytest.approx(gains.mean())
        half = 4.302653 * gains.std(ddof=1) * (1 / 3 + 10 / 12) ** 0.5  # t of 2 degrees of freedom
        assert row["difference_half_width"] == pytest.approx(half)
    assert all(found[key] == base[key] for key in base if "accuracy" in key)
    assert "2,1" in said.out
    one = probe(photos, "--splits", 1)[1]
    assert one["accuracy_std"] is None


def test_wrong_inputs_are_one_line(probe, photos, tmp_path):
    (tmp_path / "loose").mkdir()
    for part in ("train", "val"):
        shutil.copytree(photos, tmp_path / "parts" / part)
    ruined = shutil.copytree(photos, tmp_path / "ruined")
    for file in ruined.rglob("*.png"):
        file.write_bytes(file.read_bytes()[:900])
    (tmp_path / "file").touch()
    cases = [
        (photos, ["--train-per-class", "6"], 3, "class 'cats' has 6 images"),
        (ruined, [], 3, "none of 22 images could be read"),
        (tmp_path / "nowhere", [], 3, "no such folder"),
        (tmp_path / "loose", [], 3, "at least 2 are needed"),
        (tmp_path / "parts", [], 3, "has train/val parts"),
        (photos, ["--weights", "pretrained"], 2, "not supported by tiny"),
        (photos, ["--weights", "nowhere.pth"], 2, "nowhere.pth"),
        (photos, ["--levels", "3,0"], 2, "allowed: gap, or grid sizes"),
        (photos, ["--levels", "3/"], 2, "allowed: gap, or grid sizes"),
        (photos, ["--scales", "64,x"], 2, "comma-separated integers"),
        (photos, ["--backbone", "zf5", "--scales", "64/8"], 2, "--scales 8 is too small for zf5"),
        (photos, ["--fit", "keep/stretch"], 2, "allowed: keep, crop, warp"),
        (photos, ["--splits", "0"], 2, "--splits"),
        (photos, ["--C", "nan"], 2, "from 1e-6 to 1000"),
        (photos, ["--device", "tpu7"], 2, "--device"),
        (photos, ["--out", tmp_path / "file"], 2, "--out"),
    ]
    for data, arguments, status, text in cases:
        got, found, said, _ = probe(data, *arguments)
        lines = said.err.strip().splitlines()
        assert (got, len(lines), found) == (status, 1, None), (arguments, said.err)
        assert text in lines[0], lines[0]


def test_without_scikit_learn_the_extra_is_named(probe, photos, monkeypatch):
    monkeypatch.setattr(module, "find_spec", lambda _name: None)
    status, _, said, _ = probe(photos)
    assert status == 2
    assert said.err == "error: sppcls probe needs an extra: uv run --extra probe ..., or pip install 'sppcls[probe]'\n"
