"""Training on regions: what is on a canvas, the loss of its regions, and what a run makes of it."""

import json
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from sppcls import SppClassifier
from sppcls.build import build_network
from sppcls.errors import ConfigError
from sppcls.models.norm import ScaleNorm2d
from sppcls.spec import parse
from sppcls.training.module import LitSppClassifier
from sppcls.training.optim import image_losses
from sppcls.training.regions import canvas, region_losses
from sppcls.training.run import run


def network(stride=1):
    torch.manual_seed(0)
    trunk = nn.Sequential(nn.Conv2d(3, 6, stride, stride), nn.ReLU())
    return SppClassifier(trunk, ["a", "b", "c"], levels=(2, 1), dropout=0.0)


@given(st.integers(1, 40), st.integers(1, 9), st.integers(1, 9), st.integers(1, 9), st.integers(0, 99))
def test_each_box_shows_its_image_from_the_upper_left_corner(count, height, width, stride, seed):
    torch.manual_seed(seed)
    images = torch.arange(count * 3 * height * width).view(count, 3, height, width)
    stride = min(stride, height, width)  # as trunks have it
    whole, places, boxes = canvas(images, stride)
    rows = math.isqrt(count)
    assert whole.shape == (1, 3, rows * height, count // rows * width)
    assert len({*places.tolist()}) == len(places) == len(boxes) == rows * (count // rows)
    assert count - len(places) < rows
    for place, (x1, y1, x2, y2) in zip(places.tolist(), boxes.tolist(), strict=True):
        seen = whole[0, :, y1:y2, x1:x2]
        assert height - (y2 - y1) < stride
        assert width - (x2 - x1) < stride
        assert torch.equal(seen, images[place, :, : y2 - y1, : x2 - x1])


def test_the_loss_is_that_of_each_region_and_the_divergence_from_the_image_alone():
    net, batches = network(), [torch.rand(5, 3, 6, 7), torch.rand(2, 3, 6, 4)]
    logits, targets = torch.randn(7, 3, requires_grad=True), torch.arange(7) % 3
    losses = region_losses(net, batches, targets, logits, image_losses)
    # A trunk that sees no neighbours gives a region what it gives the image.
    alone = net(batches)
    each = torch.stack([
        F.cross_entropy(one, target) + F.kl_div(one.log_softmax(0), want.softmax(0), reduction="sum")
        for one, target, want in zip(alone, targets, logits, strict=True)
    ])  # fmt: skip
    on_canvas = losses != 0
    assert on_canvas.tolist().count(True) == 6  # 2 x 2 of 5, 1 x 2 of 2
    assert bool(on_canvas[5:].all())
    torch.testing.assert_close(losses[on_canvas], each[on_canvas])
    losses.sum().backward()
    assert logits.grad is None
    assert net.trunk.net[0].weight.grad.abs().sum() > 0


def test_an_image_that_fills_the_canvas_has_its_own_loss():
    net, image, target = network(), torch.rand(1, 3, 6, 7), torch.tensor([1])
    alone = net(image)
    found = region_losses(net, [image], target, alone, image_losses)
    torch.testing.assert_close(found, image_losses(alone, target))


def test_regions_of_several_tensors_are_those_of_each():
    net, tensors = network(stride=2).eval(), [torch.rand(2, 3, 8, 8), torch.rand(1, 3, 8, 12)]
    boxes = [torch.tensor([[0, 0, 4, 8]]), torch.tensor([[2, 2, 8, 8], [0, 0, 8, 8]]), torch.tensor([[4, 0, 12, 6]])]
    both = net.classify_regions(tensors, boxes)
    each = [net.classify_regions(tensors[0], boxes[:2]), net.classify_regions(tensors[1], boxes[2:])]
    torch.testing.assert_close(both, torch.cat(each))
    for wrong in (boxes[:2], [*boxes, boxes[0]]):
        with pytest.raises(ValueError, match="expected one per image"):
            net.classify_regions(tensors, wrong)


def test_a_run_on_regions_says_what_it_costs(tmp_path):
    def trained(regions):
        values = {
            "data": {"train_size": 48, "val_size": 24, "batch_size": 12, "num_workers": 0},
            "model": {"width": 0.125, "levels": [2, 1]},
            "schedule": {"scales": [24, 32]},
            "optim": {"regions": regions},
            "trainer": {"max_epochs": 1, "accelerator": "cpu"},
            "metrics": {"gap_images": 0, "test_scales": [32]},
            "run_dir": str(tmp_path / f"{regions}"),
        }
        assert run(parse(values)) == 0
        return json.loads((tmp_path / f"{regions}" / "summary.json").read_text())

    plain, regional = trained(0.0), trained(0.5)
    assert regional["train_megapixels"] == pytest.approx(2 * plain["train_megapixels"], abs=0.002)


def test_a_network_trained_on_regions_has_one_batch_norm():
    spec = parse({"schedule": {"scales": [24, 32]}, "optim": {"regions": 1.0}})
    assert not any(isinstance(layer, ScaleNorm2d) for layer in build_network(spec, ["a", "b"]).modules())
    assert LitSppClassifier(network(), regions=1.0).optim.passes == 2


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"optim": {"regions": -1}}, "optim.regions=-1: input should be greater than or equal to 0"),
        ({"optim": {"regions": 1.0}, "model": {"norm_per_scale": True}}, "without model.norm_per_scale"),
        (
            {
                "optim": {"regions": 1.0},
                "model": {"pool": "fixed"},
                "data": {"fit": "warp"},
                "schedule": {"kind": "single", "scales": [64]},
            },
            "takes whole images only",
        ),
    ],
)
def test_regions_that_cannot_be_are_refused(values, says):
    with pytest.raises(ConfigError, match=says):
        parse(values)
