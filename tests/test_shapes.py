"""The embedded data set and its trunk: known beforehand, pure in the index, and not solved by a shallow look."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch.nn.functional import interpolate

from sppcls.data import shapes
from sppcls.data.shapes import _OUTLINES, CONTRAST, LUMA, SPLITS, ShapesSource, _contrasting, _mask
from sppcls.data.source import Source
from sppcls.errors import ConfigError
from sppcls.models.trunks import tiny


@pytest.fixture(scope="module")
def train() -> ShapesSource:
    return ShapesSource("train", 1200)


def test_sizes_and_targets_are_known_and_true(train: ShapesSource) -> None:
    source: Source = train
    assert source.targets.dtype == source.sizes.dtype == np.int64
    assert np.bincount(source.targets).tolist() == [100] * 12
    for index in range(40):
        image = source.read(index, min_short=16)
        assert image.shape == (3, *source.sizes[index])
        assert image.dtype == torch.uint8
    assert source.names[17] == "shapes/train/17"


def test_sides_aspects_and_object_scales_fill_their_ranges(train: ShapesSource) -> None:
    aspect = train.sizes[:, 0] / train.sizes[:, 1]
    assert 48 <= train.sizes.min() <= 50
    assert 190 <= train.sizes.max() <= 200
    assert 0.5 <= aspect.min() < 0.55
    assert 1.8 < aspect.max() <= 2
    assert abs(np.log(aspect).mean()) < 0.05
    assert 0.35 <= train.object_scale.min() < 0.36
    assert 0.88 < train.object_scale.max() <= 0.9
    # Log-uniform: as many below the geometric middle as above it, for small images and large ones, in every class.
    small = train.object_scale < (0.35 * 0.9) ** 0.5
    assert abs(small.mean() - 0.5) < 0.05
    assert abs(np.corrcoef(train.sizes.min(1), train.object_scale)[0, 1]) < 0.1
    assert all(0.3 < small[train.targets == target].mean() < 0.7 for target in range(12))


@settings(max_examples=15, deadline=None)
@given(st.sampled_from(SPLITS), st.integers(0, 2**40), st.integers(0, 29), st.integers(30, 60))
def test_an_image_depends_on_seed_split_and_index_alone(split: str, seed: int, index: int, size: int) -> None:
    few, many = ShapesSource(split, 30, seed), ShapesSource(split, size, seed)
    assert few.targets[index] == many.targets[index]
    assert few.object_scale[index] == many.object_scale[index]
    many.read((index + 1) % 30)
    assert torch.equal(few.read(index), many.read(index))


def test_an_image_that_was_kept_is_the_one_that_was_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shapes, "KEPT", 3)
    source, drawn = ShapesSource("val", 12), []
    monkeypatch.setattr(source, "_drawn", lambda index: drawn.append(index) or ShapesSource._drawn(source, index))
    for index in (0, 1, 2, 0, 3, 0, 1):
        got = source.read(index)
        assert torch.equal(got, ShapesSource("val", 12).read(index))
        got.zero_()  # is the caller's own
    assert drawn == [0, 1, 2, 3, 1]  # 1 was the oldest when 3 came


def test_splits_and_seeds_share_no_image() -> None:
    sources = [ShapesSource(split, 24, seed) for split in SPLITS for seed in (0, 1)]
    images = {source.read(index).numpy().tobytes() for source in sources for index in range(24)}
    assert len(images) == 24 * len(sources)


def test_the_object_is_whole_and_as_large_as_stated(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"NOISE": (0, 0), "CLUTTER": (0, 0), "LUMA": (128, 128)}.items():
        monkeypatch.setattr(shapes, name, value)
    monkeypatch.setattr(shapes, "_background", lambda _rng, h, w, _luma: Image.new("RGB", (w, h), (128, 128, 128)))
    source = ShapesSource("test", 120)
    for index, target in enumerate(source.targets):
        rows, columns = np.nonzero((source.read(index) != 128).any(0).numpy())
        extent = 1 + max(np.ptp(rows), np.ptp(columns))
        diameter = round(source.object_scale[index] * source.sizes[index].min())
        assert 0.6 * diameter < extent <= diameter
        if source.classes[target] == "ring":
            assert extent == diameter


@given(st.floats(*LUMA), st.integers(0, 999))
def test_contrast_is_guaranteed(luma: float, seed: int) -> None:
    colour = np.array(_contrasting(np.random.default_rng(seed), luma))
    step = abs(float(colour @ (0.299, 0.587, 0.114)) - luma)
    assert step > CONTRAST[0] - 31
    assert 0 <= colour.min() <= colour.max() <= 255


def test_outlines_fill_alike_and_differ_when_small() -> None:
    masks = np.stack([np.asarray(_mask(name, 16, 0.0), dtype=np.float64) / 255 for name in _OUTLINES])
    fill = masks.mean((1, 2)) / (np.pi / 4)
    assert 0.3 < fill.min() <= fill.max() < 0.65
    gaps = np.abs(masks[:, None] - masks[None]).mean((2, 3)) + np.eye(len(masks))
    assert gaps.min() > 0.1, "two classes coincide at 16 pixels"


def test_a_shallow_look_does_not_solve_it(train: ShapesSource) -> None:
    """A linear model of thumbnails, colours or global facts stays far below a half (a tenth is near chance)."""
    images = [train.read(index) for index in range(1200)]
    looks = {"thumbnail": 0.4, "histogram": 0.2, "facts": 0.2}
    for look, most in looks.items():
        features = torch.stack([_look(look, image) for image in images]).double()
        assert _linear_accuracy(features, torch.from_numpy(train.targets)) < most, look


def _look(name: str, image: torch.Tensor) -> torch.Tensor:
    pixels = image.float() / 255
    if name == "thumbnail":
        return interpolate(pixels[None], (8, 8), mode="bilinear", antialias=True).flatten()
    if name == "histogram":
        return torch.cat([torch.histc(channel, 8, 0, 1) / channel.numel() for channel in pixels])
    return torch.cat([pixels.mean((1, 2)), pixels.std((1, 2)), torch.tensor(image.shape[1:]) / 200])


def _linear_accuracy(features: torch.Tensor, targets: torch.Tensor) -> float:
    """Ridge regression on one-hot targets, the best of three strengths: trained on 900 images, tested on the rest."""
    features = torch.cat([(features - features.mean(0)) / (features.std(0) + 1e-6), torch.ones(len(features), 1)], 1)
    x, y = features[:900], torch.eye(12, dtype=features.dtype)[targets[:900]]
    best = 0.0
    for strength in (1.0, 100.0, 1000.0):
        weights = torch.linalg.solve(x.T @ x + strength * torch.eye(x.shape[1]), x.T @ y)
        best = max(best, ((features[900:] @ weights).argmax(1) == targets[900:]).double().mean().item())
    return best


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("vall", 60), "unknown split 'vall'; did you mean 'val'"),
        (("val", 11), "got 11 val images, allowed: at least 12"),
        (("val", 60, -1), "got seed -1, allowed: 0 or more"),
    ],
)
def test_shapes_refuses(arguments: tuple[str, int, int], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ShapesSource(*arguments)


@given(st.integers(1, 70), st.integers(1, 70), st.sampled_from(("batch", "group")))
@settings(max_examples=25, deadline=None)
def test_tiny_has_stride_8_at_any_size(height: int, width: int, norm: str) -> None:
    trunk = tiny(0.25, norm).eval()
    with torch.no_grad():
        assert trunk(torch.zeros(2, 3, height, width)).shape == (2, 32, -(-height // 8), -(-width // 8))


def test_tiny_every_weight_learns() -> None:
    trunk = tiny(norm="batch")
    trunk(torch.randn(2, 3, 32, 40)).square().sum().backward()
    assert all(weight.grad is not None and weight.grad.abs().sum() > 0 for weight in trunk.parameters())
    assert sum(weight.numel() for weight in trunk.parameters()) < 250_000


@pytest.mark.parametrize(
    ("arguments", "message"),
    [((1.0, "batsh"), "unknown norm 'batsh'; did you mean 'batch'"), ((0.0,), "got width 0.0, allowed")],
)
def test_tiny_refuses(arguments: tuple[float, str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        tiny(*arguments)
