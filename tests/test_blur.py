"""Anti-aliased striding: what the loops say, at the sizes and with the weights of the plain network."""

import json

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from sppcls import SppClassifier, load_model
from sppcls.deploy.export import export
from sppcls.errors import ConfigError
from sppcls.models.backbones import build_trunk
from sppcls.models.blur import BlurredConv2d, BlurredMaxPool2d, blur_strides
from sppcls.models.parts import joint


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def blurred(x, stride):
    """Blur [H, W] at stride 1, one cell at a time: neighbours weigh 1 - distance / stride, edges are replicated."""
    height, width = x.shape
    out = torch.zeros_like(x)
    for i in range(height):
        for j in range(width):
            for a in range(1 - stride, stride):
                for b in range(1 - stride, stride):
                    weight = (stride - abs(a)) * (stride - abs(b)) / stride**4
                    out[i, j] += weight * x[min(max(i + a, 0), height - 1), min(max(j + b, 0), width - 1)]
    return out


def of_maps(function, x):
    return torch.stack([torch.stack([function(plane) for plane in image]) for image in x])


@pytest.mark.parametrize(("kernel", "stride", "padding"), [(3, 2, 1), (1, 2, 0), (5, 3, 2), (7, 4, 3), (2, 2, 0)])
def test_a_convolution_is_that_of_the_blurred_map(kernel, stride, padding):
    conv = nn.Conv2d(3, 4, kernel, stride, padding)
    x = torch.randn(2, 3, 11, 8)
    want = conv(of_maps(lambda plane: blurred(plane, stride), x))
    blur_strides(net := nn.Sequential(conv))
    assert type(net[0]) is BlurredConv2d
    torch.testing.assert_close(net(x), want)


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize(("kernel", "stride", "padding"), [(3, 2, 1), (3, 2, 0), (2, 2, 0), (3, 3, 0)])
@pytest.mark.parametrize(("height", "width"), [(11, 8), (12, 9), (7, 10)])
def test_a_max_pool_is_blurred_and_then_strided(kernel, stride, padding, height, width, whole):
    pool, x = nn.MaxPool2d(kernel, stride, padding, ceil_mode=whole), torch.randn(2, 3, height, width)
    cells = pool(x).shape
    dense = F.max_pool2d(x, kernel, 1, padding)
    # Past the last cell of the dense map, where only a pool that rounds up looks, is the replicated edge.
    dense = F.pad(dense, (0, stride, 0, stride), mode="replicate")
    want = of_maps(lambda plane: blurred(plane, stride), dense)[:, :, ::stride, ::stride]
    blur_strides(net := nn.Sequential(pool))
    assert type(net[0]) is BlurredMaxPool2d
    assert net(x).shape == cells
    torch.testing.assert_close(net(x), want[:, :, : cells[2], : cells[3]])


def test_a_constant_stays_constant_up_to_the_edge():
    blur_strides(net := nn.Sequential(nn.Conv2d(1, 1, 1, 2, bias=False), nn.MaxPool2d(3, 2)))
    out = net(torch.ones(1, 1, 33, 46))
    torch.testing.assert_close(out, net[0].weight.expand_as(out))


@pytest.mark.parametrize("stride", [2, 3, 4])
def test_the_finest_pattern_of_a_stride_is_gone(stride):
    blur_strides(net := nn.Sequential(nn.Conv2d(1, 1, 1, stride, bias=False)))
    stripes = (torch.arange(48) % stride == 0).float().expand(1, 1, 48, 48)
    out = net(stripes)[..., 2:-2] / net[0].weight
    torch.testing.assert_close(out, torch.full_like(out, 1 / stride))  # wherever the stripes begin


PLAIN = ["tiny", "zf5", "convnet5", "overfeat5", "efficientnet_lite0", "resnet18", "mobilenet_v3_small"]


@pytest.mark.parametrize("name", [*PLAIN, "squeezenet1_1"])
def test_sizes_and_weights_are_those_of_the_plain_trunk(name):
    plain, soft = build_trunk(name).eval(), build_trunk(name, blur_pool=True).eval()
    assert soft.recipe == plain.recipe | {"blur_pool": True}
    assert (soft.channels, soft.stride) == (plain.channels, plain.stride)
    assert soft.smallest == plain.smallest if name in PLAIN else soft.smallest > plain.smallest
    assert list(soft.state_dict()) == list(plain.state_dict())
    soft.load_state_dict(plain.state_dict())
    x = torch.randn(1, 3, soft.smallest + 30, soft.smallest + 41)
    assert soft(x).shape == plain(x).shape
    assert not torch.equal(soft(x), plain(x))


def test_a_shift_by_a_pixel_changes_less():
    plain, soft = build_trunk("resnet18").eval(), build_trunk("resnet18", blur_pool=True).eval()
    soft.load_state_dict(plain.state_dict())
    x = torch.nn.functional.interpolate(torch.randn(4, 3, 40, 40), size=161, mode="bilinear")

    def change(trunk):
        with torch.no_grad():
            a, b = trunk(x[..., :160, :160]), trunk(x[..., 1:, 1:])
        return float((a - b).norm() / a.norm())

    assert change(soft) < 0.75 * change(plain)


def test_weights_of_a_plain_file_load(tmp_path):
    torch.save(build_trunk("resnet18").net.state_dict(), tmp_path / "a.pth")
    soft = build_trunk("resnet18", blur_pool=True, weights=str(tmp_path / "a.pth"))
    torch.testing.assert_close(soft.net.state_dict(), torch.load(tmp_path / "a.pth"))


@pytest.mark.parametrize("name", ["tiny", "resnet18"])
def test_parts_are_as_one_batch(name):
    trunk = build_trunk(name, blur_pool=True).train()
    x = torch.randn(6, 3, 40, 52)
    want = trunk(x)
    got = torch.cat(joint(trunk, [x[:2], x[2:3], x[3:]]))
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)
    assert [tuple(y.shape[2:]) for y in joint(trunk, [x, x[..., :33, :41]])] == [
        tuple(trunk(x).shape[2:]),
        tuple(trunk(x[..., :33, :41]).shape[2:]),
    ]


class _Own(nn.Conv2d):
    pass


@pytest.mark.parametrize(
    ("net", "said"),
    [
        (nn.Conv2d(3, 8, 3), "has no strided convolution or max pool"),
        (nn.Sequential(nn.Conv2d(3, 8, 3), nn.AvgPool2d(2)), "has no strided convolution or max pool"),
        (_Own(3, 8, 3, 2), r"is strided by _Own\(3, 8.*which cannot be blurred"),
        (nn.MaxPool2d(3, 3, 1, ceil_mode=True), "is strided by MaxPool2d.*which cannot be blurred"),
    ],
)
def test_what_cannot_be_blurred_is_refused_in_one_line_and_unchanged(net, said):
    kind = type(net)
    with pytest.raises(ConfigError, match=f"^model.blur_pool=true: theirs {said}.*; leave it out$"):
        blur_strides(net, "theirs")
    assert type(net) is kind
    assert not list(net.buffers())


def test_a_trunk_that_pads_by_function_is_named():
    pytest.importorskip("timm")
    name = "timm:tf_mobilenetv3_small_minimal_100"
    with pytest.raises(ConfigError, match=f"^model.blur_pool=true: model.backbone={name} is strided by Conv2dSame"):
        build_trunk(name, blur_pool=True)


@pytest.mark.parametrize("backbone", ["tiny", pytest.param("squeezenet1_1", marks=pytest.mark.slow)])
def test_exports_answer_as_the_checkpoint(tmp_path, save_model, backbone):
    file = save_model(tmp_path / "a.ckpt", backbone=backbone, blur_pool=True)
    folder = export(str(file), ["safetensors", "onnx", "pt2"], str(tmp_path / "out"))
    proofs = json.loads((folder / "parity.json").read_text())["formats"]
    assert all(found["largest_difference"] <= 1e-4 for found in proofs.values())
    again, known = load_model(folder), load_model(file)
    assert any(isinstance(layer, BlurredConv2d) for layer in again.modules())
    x = torch.randn(1, 3, 61, 45)
    assert torch.equal(again(x), known(x))


def test_the_classifier_learns_through_it():
    network = SppClassifier(build_trunk("tiny", blur_pool=True), ["cat", "dog"])
    network([torch.randn(2, 3, 33, 40), torch.randn(1, 3, 40, 33)]).square().sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in network.trunk.parameters() if p.ndim == 4)
