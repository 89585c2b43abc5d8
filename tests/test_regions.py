"""Regions of a map: the cells of a box, their pyramid bit for bit, the classifier on them, and what is measured."""

import math
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import sppcls
from sppcls import SppClassifier, region_pyramid_pool2d
from sppcls.bench import pooling as bench
from sppcls.ops import bins, region_cells, spatial_pyramid_pool2d

LEVELS = (4, 2, 1)


def slow_cells(box, stride, map_size, image_size=None, touched=False):
    """The cells of a box in exact fractions, an axis at a time."""
    starts, ends = [], []
    for low, high, size, length in zip(box[1::-1], box[:1:-1], map_size, image_size or (None, None), strict=True):
        low, high = Fraction(low) / stride, Fraction(high) / stride
        start, end = (math.floor(low), math.ceil(high)) if touched else (math.ceil(low), math.floor(high))
        if math.ceil(high) >= size if length is None else high * stride >= length:
            end = size
        if start >= end:
            start = math.floor((low + high) / 2)
        starts.append(min(start, size - 1))
        ends.append(max(min(end, size), starts[-1] + 1))
    return [*starts, *ends]


def slow_regions(features, boxes, levels, stride, mode="max", image_size=None):
    """The definition: the pyramid of each slice of the map."""
    rows = [features.new_empty(0, features.shape[1] * bins(levels))]
    for image, some in zip(features.split(1), boxes, strict=True):
        for box in some.tolist():
            top, left, bottom, right = slow_cells(box, stride, features.shape[2:], image_size)
            rows.append(spatial_pyramid_pool2d(image[..., top:bottom, left:right], levels, mode))
    return torch.cat(rows)


def random_boxes(count, size, dtype=torch.float32):
    """Boxes of any size, some twice, some to an edge of the image."""
    corners = torch.rand(count, 2, 2).mul(torch.tensor(size[::-1])).sort(1).values
    boxes = torch.cat([corners[:, 0].floor(), corners[:, 1].ceil().maximum(corners[:, 0].floor() + 1)], 1)
    return torch.cat([boxes, boxes[:2], torch.tensor([[0.0, 0, *size[::-1]]])]).to(dtype)


@st.composite
def places(draw):
    stride, height, width = draw(st.integers(1, 40)), draw(st.integers(1, 30)), draw(st.integers(1, 30))
    # Images whose map is larger or smaller than their size over the stride, as networks pad or do not.
    size = tuple(max(1, cells * stride + draw(st.integers(-2 * stride, 2 * stride))) for cells in (height, width))
    box = []
    for length in reversed(size):
        number = st.one_of(
            st.integers(0, length), st.floats(0, length), st.integers(0, 3).map(lambda k, n=length: min(k * stride, n))
        )
        ends = sorted(draw(st.tuples(number, number).filter(lambda pair: pair[0] != pair[1])))
        box.append(ends)
    return stride, (height, width), size, [box[0][0], box[1][0], box[0][1], box[1][1]]


@settings(deadline=None, max_examples=150)
@given(places(), st.booleans(), st.booleans())
def test_cells_equal_exact_arithmetic_and_are_never_none(place, known, touched):
    stride, map_size, size, box = place
    image_size = size if known else None
    cells = region_cells(torch.tensor([box], dtype=torch.float64), stride, map_size, image_size, touched=touched)
    assert cells.tolist() == [slow_cells(box, stride, map_size, image_size, touched)]
    top, left, bottom, right = cells[0].tolist()
    assert 0 <= top < bottom <= map_size[0]
    assert 0 <= left < right <= map_size[1]
    whole = torch.tensor([[0, 0, *size[::-1]]])
    assert region_cells(whole, stride, map_size, size, touched=touched).tolist() == [[0, 0, *map_size]]


def test_an_image_that_ends_in_the_last_cell_is_the_whole_map_though_its_size_is_unknown():
    for cells in range(1, 20):
        for stride in (1, 4, 16):
            for length in range((cells - 1) * stride + 1, cells * stride + 1):
                assert region_cells(torch.tensor([[0, 0, length, length]]), stride, (cells, cells)).tolist() == [
                    [0, 0, cells, cells]
                ]


def test_the_nearest_number_to_a_cells_edge_is_on_its_own_side():
    for stride, k in ((3, 1), (7, 5), (32, 11), (49, 3)):
        edge = float(k * stride)
        below, above = math.nextafter(edge, 0), math.nextafter(edge, math.inf)
        boxes = torch.tensor(
            [[0, lo, 2, hi] for lo, hi in ((edge, 1e3), (above, 1e3), (0, edge), (0, below))], dtype=torch.float64
        )
        cells = region_cells(boxes, stride, (10**4, 1))
        assert cells[:2, 0].tolist() == [k, k + 1]
        assert cells[2:, 2].tolist() == [k, max(1, k - 1)]


@pytest.mark.parametrize("mode", ["max", "avg"])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("levels", [(4, 2, 1), (6, 3, 2, 1), (1, 5, 1)])
def test_each_region_is_the_pyramid_of_its_cells_bit_for_bit(levels, dtype, layout, mode):
    torch.manual_seed(0)
    for height, width, stride in ((13, 10, 16), (1, 7, 8), (33, 2, 4)):
        features = torch.randn(3, 5, height, width).to(dtype).contiguous(memory_format=layout)
        size = (height * stride - stride // 2, width * stride + 3)
        boxes = [random_boxes(9, size), torch.empty(0, 4), random_boxes(4, size, torch.int32)]
        for image_size in (None, size):
            want = slow_regions(features, boxes, levels, stride, mode, image_size)
            got = region_pyramid_pool2d(features, boxes, levels, stride, mode, image_size)
            assert torch.equal(got, want)
            with torch.inference_mode():
                again = region_pyramid_pool2d(features, boxes, levels, stride, mode, image_size)
            assert torch.equal(again, want)
            traced = region_pyramid_pool2d(features.requires_grad_(), boxes, levels, stride, mode, image_size)
            assert torch.equal(traced, want)
            assert traced.requires_grad
            features = features.detach()


@settings(deadline=None, max_examples=40)
@given(places(), st.lists(st.integers(1, 7), min_size=1, max_size=4), st.integers(0, 2**31))
def test_any_map_and_levels_against_slices(place, levels, seed):
    stride, map_size, size, box = place
    features = torch.randn(1, 2, *map_size, generator=torch.Generator().manual_seed(seed))
    boxes = [torch.tensor([box, [0, 0, *size[::-1]]], dtype=torch.float64)]
    got = region_pyramid_pool2d(features, boxes, levels, stride, image_size=size)
    assert torch.equal(got, slow_regions(features, boxes, levels, stride, image_size=size))
    assert torch.equal(got[1:], spatial_pyramid_pool2d(features, levels))


@pytest.mark.parametrize("mode", ["max", "avg"])
@pytest.mark.parametrize("ties", [False, True])
def test_gradients_are_those_of_the_slices(ties, mode):
    torch.manual_seed(0)
    boxes = [random_boxes(6, (96, 128)), torch.empty(0, 4), random_boxes(1, (96, 128))]
    values = (
        torch.randint(2, (3, 2, 12, 16)).double()
        if ties
        else torch.randperm(3 * 2 * 12 * 16).view(3, 2, 12, 16).double()
    )
    grads = []
    for pool in (region_pyramid_pool2d, slow_regions):
        x = values.clone().requires_grad_()
        out = pool(x, boxes, LEVELS, 8, mode)
        weight = torch.arange(out.numel()).view_as(out) % 64
        out.backward(weight.double())
        grads.append(x.grad)
    # Whole numbers in "max": sums come out the same in any order.
    assert torch.equal(*grads) if mode == "max" else torch.allclose(*grads)
    small = [torch.tensor([[0, 0, 24, 16], [8, 8, 24, 24]]), torch.empty(0, 4)]
    x = torch.randn(2, 1, 3, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda t: region_pyramid_pool2d(t, small, (2, 1), 8, mode), x)


def test_no_boxes_at_all():
    features = torch.randn(2, 3, 5, 6, requires_grad=True)
    for x in (features, features.detach(), features.detach()[:0]):
        out = region_pyramid_pool2d(x, [torch.empty(0, 4)] * len(x), LEVELS, 8)
        assert out.shape == (0, 63)
        assert out.requires_grad == x.requires_grad
    out = region_pyramid_pool2d(features, [torch.empty(0, 4, dtype=torch.int64)] * 2, LEVELS, 8)
    out.sum().backward()
    assert not features.grad.any()


def test_nan_and_infinity_pass_and_the_map_stays_as_it_was():
    features = torch.randn(1, 4, 9, 11)
    features[0, 0, 4, 5], features[0, 1, 0, 0], features[0, 2] = math.nan, math.inf, -math.inf
    before, boxes = features.clone(), [random_boxes(20, (72, 88))]
    got = region_pyramid_pool2d(features, boxes, LEVELS, 8)
    torch.testing.assert_close(got, slow_regions(features, boxes, LEVELS, 8), rtol=0, atol=0, equal_nan=True)
    torch.testing.assert_close(features, before, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize(
    ("boxes", "message"),
    [
        ([torch.ones(1, 4)], r"boxes: got 1 tensors for features \[2, 3, 4, 5\]; expected one per image"),
        ([torch.empty(0, 4)] * 3, "boxes: got 3 tensors"),
        (
            [torch.empty(0, 4), torch.empty(0)],
            r"boxes: image 1 has shape \[0\]; expected \[K, 4\], also with K=0",
        ),
        ([torch.ones(2, 5), torch.empty(0, 4)], r"boxes: image 0 has shape \[2, 5\]"),
        ([torch.ones(4), torch.empty(0, 4)], r"boxes: image 0 has shape \[4\]"),
    ],
)
def test_boxes_of_a_wrong_shape_or_number_are_refused(boxes, message):
    with pytest.raises(ValueError, match=message):
        region_pyramid_pool2d(torch.zeros(2, 3, 4, 5), boxes, LEVELS, 8)


@pytest.mark.parametrize(
    "box",
    [[5, 0, 5, 9], [6, 0, 5, 9], [0, 9, 9, 9], [0, 9, 9, 8], [-1, 0, 9, 9], [0, -0.1, 9, 9]]
    + [[value if i == k else i for i in range(4)] for k in range(4) for value in (math.nan, math.inf, -math.inf)],
)
@pytest.mark.parametrize("image_size", [None, (32, 40)])
def test_a_box_that_is_none_is_named(box, image_size):
    boxes = [torch.empty(0, 4), torch.tensor([[0, 0, 8, 8], box])]
    with pytest.raises(
        ValueError, match=r"^boxes: image 1, box 1 is \[.*\], not 0 <= x1 < x2 .*finite; give x1 y1 x2 y2"
    ):
        region_pyramid_pool2d(torch.zeros(2, 3, 4, 5), boxes, LEVELS, 8, image_size=image_size)


@pytest.mark.parametrize("box", [[0, 0, 40.5, 32], [0, 0, 40, 33], [50, 2, 60, 9]])
def test_a_box_outside_its_image_is_refused_where_the_size_is_known(box):
    boxes = [torch.tensor([[0, 0, 40, 32], box])]
    with pytest.raises(ValueError, match=r"image 0, box 1 is \[.*\], outside the image of 32x40 \(H x W\); clip it"):
        region_pyramid_pool2d(torch.zeros(1, 3, 4, 5), boxes, LEVELS, 8, image_size=(32, 40))
    assert len(region_pyramid_pool2d(torch.zeros(1, 3, 4, 5), boxes, LEVELS, 8)) == 2


def test_maps_levels_and_modes_are_refused_as_by_the_pyramid():
    box = [torch.tensor([[0, 0, 8, 8]])]
    for wrong in ({"levels": (2, 0)}, {"mode": "mex"}, {"stride": 0}, {"features": torch.zeros(1, 3, 0, 4)}):
        with pytest.raises(ValueError, match=r"levels|mode|stride: got 0|at least 1"):
            region_pyramid_pool2d(
                **({"features": torch.zeros(1, 3, 4, 4), "boxes": box, "levels": LEVELS, "stride": 8} | wrong)
            )
    with pytest.raises(TypeError, match=r"got torch.int64"):
        region_pyramid_pool2d(torch.zeros(1, 3, 4, 4, dtype=torch.int64), box, LEVELS, 8)
    with pytest.raises(ValueError, match=r"features \[3, 4, 4\]"):
        region_pyramid_pool2d(torch.zeros(3, 4, 4), box, LEVELS, 8)


# Maps of 1 / 4 of the image, and one row and column more, or less, than that.
TRUNKS = {"same": (4, 0), "more": (4, 2), "fewer": (9, 0)}


def network(trunk="same", **options):
    torch.manual_seed(0)
    kernel, padding = TRUNKS[trunk]
    layers = nn.Sequential(nn.Conv2d(3, 8, kernel, stride=4, padding=padding), nn.ReLU())
    return SppClassifier(layers, ["a", "b", "c"], **options).eval()


@pytest.mark.parametrize("trunk", TRUNKS)
@pytest.mark.parametrize("options", [{}, {"pool": "gap"}, {"mode": "avg"}, {"head": "stack", "levels": (3, 1)}])
def test_the_box_of_the_whole_image_is_classified_as_the_image(trunk, options):
    model = network(trunk, **options)
    for height, width in ((40, 60), (41, 63), (13, 30)):
        for layout in (torch.contiguous_format, torch.channels_last):
            images = torch.randn(2, 3, height, width).contiguous(memory_format=layout)
            for context in (torch.enable_grad, torch.no_grad, torch.inference_mode):
                with context():
                    whole = model.classify_regions(images, [torch.tensor([[0, 0, width, height]])] * 2)
                    assert torch.equal(whole, model(images))


def test_regions_of_patches_that_do_not_overlap_are_classified_as_crops():
    model, images = network(), torch.randn(2, 3, 32, 48)
    boxes = [torch.tensor([[8, 4, 40, 32], [0, 0, 8, 8]]), torch.tensor([[16.0, 12, 20, 16]])]
    crops = [images[0, :, 4:32, 8:40], images[0, :, :8, :8], images[1, :, 12:16, 16:20]]
    got = model.classify_regions(images, boxes)
    torch.testing.assert_close(got, torch.cat([model(crop[None]) for crop in crops]))
    got.sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_no_regions_give_no_logits_and_a_fixed_network_takes_none():
    assert network().classify_regions(torch.randn(2, 3, 20, 20), [torch.empty(0, 4)] * 2).shape == (0, 3)
    with pytest.raises(ValueError, match=r"^pool='fixed' takes images of one size and no regions; "):
        network(pool="fixed", input_size=40).classify_regions(torch.zeros(1, 3, 40, 40), [torch.ones(0, 4)])
    with pytest.raises(ValueError, match=r"outside the image of 20x24 \(H x W\)"):
        network().classify_regions(torch.zeros(1, 3, 20, 24), [torch.tensor([[0, 0, 24, 21]])])
    assert sppcls.region_pyramid_pool2d is region_pyramid_pool2d


def test_the_bench_classifies_every_box_both_ways(monkeypatch):
    monkeypatch.setattr(bench, "SIZE", (64, 96))
    monkeypatch.setattr(bench, "SIDE", 32)
    boxes = bench.random_boxes(200)
    assert (boxes >= 0).all()
    assert (boxes[:, 2:] <= torch.tensor([96, 64])).all()
    assert (boxes[:, 2:] - boxes[:, :2]).min() >= 8 - 1e-3
    report = bench.regions(backbone="tiny", boxes=70, repeats=1)
    assert len(report.rows[0]) == len(report.columns)
    assert report.rows[0][:2] == ("tiny", 70.0)
    assert report.summary["ratio"] > 0
