"""Batch norm a scale: as separate networks of one size each, in training, files and exports."""

import copy
import json

import pytest
import torch
from torch import nn

from sppcls import SppClassifier, load_model
from sppcls.build import build_classifier, build_network
from sppcls.data.shapes import ShapesSource
from sppcls.deploy.export import export
from sppcls.errors import ConfigError, SppclsError
from sppcls.measure.scales import Evaluation
from sppcls.measure.views import calibrated, recalibrate_bn
from sppcls.model_files import KEY, describe
from sppcls.models.backbones import build_trunk
from sppcls.models.norm import ScaleNorm2d, Seen, norm_per_scale
from sppcls.models.parts import Parts, joint
from sppcls.settings import ModelSpec
from sppcls.spec import parse
from sppcls.training.optim import parameter_groups
from sppcls.training_settings import OptimSpec

SCALES = (16, 24, 48)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def nearest(side, scales=SCALES):
    """Return the scale nearest in ratio, the smaller of two that are equally near."""
    return min(scales, key=lambda scale: (max(side / scale, scale / side), scale))


def pair(net, scales=SCALES):
    """Return a network with sets of norms, and a copy of the plain one for each scale."""
    apart = {scale: copy.deepcopy(net) for scale in scales}
    return Sized(net, norm_per_scale(net, scales)), apart


class Sized(nn.Module):
    def __init__(self, net, seen):
        super().__init__()
        self.net, self.seen = net, seen

    def forward(self, x):
        self.seen.look(x)
        return self.net(x)


def norms(net):
    return [layer for layer in net.modules() if isinstance(layer, ScaleNorm2d)]


@pytest.mark.parametrize("momentum", [0.1, None])
def test_sets_are_bit_for_bit_as_many_networks_in_training_and_after(momentum):
    plain = nn.Sequential(nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5, eps=1e-3, momentum=momentum), nn.Conv2d(5, 2, 1))
    one, many = pair(plain)
    for side in (16, 50, 24, 15, 19, 20, 33, 34, 100, 24):
        x, own = torch.randn(4, 3, side, side + 7), many[nearest(side)]
        one.zero_grad(), own.zero_grad()
        for net in (one, own):
            net.train()(x).square().sum().backward()
        row = SCALES.index(nearest(side))
        assert torch.equal(one.net[1].weight.grad[row], own[1].weight.grad)
        assert torch.equal(one.net[1].bias.grad[row], own[1].bias.grad)
        assert not one.net[1].weight.grad[[i for i in range(3) if i != row]].any()
    for row, scale in enumerate(SCALES):
        for name in ("running_mean", "running_var", "num_batches_tracked"):
            assert torch.equal(getattr(one.net[1], name)[row], getattr(many[scale][1], name)), (scale, name)
        x = torch.randn(2, 3, scale, scale)
        assert torch.equal(one.eval()(x), many[scale].eval()(x))


def test_every_side_has_the_scale_nearest_in_ratio():
    norm = ScaleNorm2d(nn.BatchNorm2d(1), (16, 24, 54, 100), Seen())
    found = [norm.scales[norm.nearest(side)] for side in range(1, 200)]
    assert found == [nearest(side, norm.scales) for side in range(1, 200)]


def test_a_shared_affine_is_one():
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
    nn.init.normal_(net[1].weight)
    before = net[1].weight.detach().clone()
    seen = norm_per_scale(net, SCALES, apart=False)
    assert torch.equal(net[1].weight, before)
    assert [name for name, _ in net[1].named_parameters()] == ["weight", "bias"]
    model = Sized(net, seen).train()
    for side in (16, 48):
        model(torch.randn(2, 3, side, side)).sum().backward()
    assert net[1].weight.grad.shape == (4,)
    assert net[1].num_batches_tracked.tolist() == [1, 0, 1]


def test_a_scale_without_statistics_uses_the_nearest_that_was_trained():
    one, many = pair(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)))
    x = torch.randn(2, 3, 48, 48)
    assert torch.equal(one.eval()(x), many[48].eval()(x))  # none was trained: all are as they were
    for net in (one, many[16]):
        net.train()(torch.ones(2, 3, 16, 16).cumsum(2))
    assert torch.equal(one.eval()(x), many[16].eval()(x))
    again, _ = pair(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)))
    again.eval().load_state_dict(one.state_dict())
    assert torch.equal(again(x), one(x))
    one.train()(x)  # and in training its own
    assert one.net[1].num_batches_tracked.tolist() == [1, 0, 1]


def test_the_mode_may_be_set_without_a_call_as_trainers_do():
    one, _ = pair(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)))
    one.train()(torch.randn(2, 3, 16, 16))
    one.eval()
    for module in one.modules():
        module.training = True
    one(torch.randn(2, 3, 48, 48))
    assert one.net[1].num_batches_tracked.tolist() == [1, 0, 1]


def test_parts_are_as_one_batch_and_their_smallest_side_chooses():
    trunk = build_trunk("tiny", norm_scales=SCALES).train()
    other = copy.deepcopy(trunk)
    x = torch.randn(5, 3, 24, 36)
    got, want = torch.cat(joint(trunk, [x[:2], x[2:]])), other(x)
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)
    for one, two in zip(norms(trunk), norms(other), strict=True):
        torch.testing.assert_close(one.running_var, two.running_var)
        assert one.num_batches_tracked.tolist() == [0, 1, 0]
    joint(trunk, [torch.randn(2, 3, 90, 25), torch.randn(1, 3, 16, 99)])
    assert norms(trunk)[0].num_batches_tracked.tolist() == [1, 1, 0]
    trunk._seen.look(Parts([torch.zeros(1, 3, 50, 60), torch.zeros(1, 3, 70, 40)]))
    assert trunk._seen.size == (70, 40)


def trained(**settings):
    """Return a classifier whose sets differ."""
    network = build_classifier(ModelSpec(**settings), ("cat", "dog", "emu"), SCALES).train()
    with torch.no_grad():
        for layer in norms(network):
            layer.num_batches_tracked.fill_(3)
            for tensor in (layer.running_mean, *((layer.weight, layer.bias) if layer.apart else ())):
                tensor.add_(torch.randn_like(tensor) * 0.3)
            layer.running_var.mul_(torch.rand_like(layer.running_var) + 0.5)
    return network.eval()


def saved(network, path):
    state = {f"network.{name}": tensor for name, tensor in network.state_dict().items()}
    torch.save({"state_dict": state, KEY: describe(network)}, path)
    return path


def test_batch_mates_change_nothing_in_eval_mode():
    network = trained(norm_per_scale=True)
    small, large = torch.randn(1, 3, 16, 40), torch.randn(2, 3, 64, 50)
    with torch.no_grad():
        together, alone = network([small, large]), torch.cat([network(small), network(large)])
    torch.testing.assert_close(together, alone)
    assert not torch.equal(network(large)[:1], network(large[:1, :, :30, :30]))


@pytest.mark.parametrize(
    "settings",
    [
        {"norm_per_scale": True},
        {"norm_per_scale": [20, 40], "norm_affine": "shared"},
        pytest.param({"norm_per_scale": True, "backbone": "resnet18", "blur_pool": True}, marks=pytest.mark.slow),
    ],
)
def test_files_and_exports_answer_as_the_network(tmp_path, settings):
    network = trained(**settings)
    folder = export(str(saved(network, tmp_path / "a.ckpt")), ["safetensors", "onnx", "pt2"], str(tmp_path / "out"))
    proofs = json.loads((folder / "parity.json").read_text())["formats"]
    scales = norms(network)[0].scales
    for found in proofs.values():
        assert found["largest_difference"] <= 1e-4
        sides = {min(row["height"], row["width"]) for row in found["sizes"]}
        assert {nearest(side, scales) for side in sides} == set(scales)
        assert set(scales) <= sides
    for path in (tmp_path / "a.ckpt", folder):
        again = load_model(path)
        assert norms(again)[0].scales == scales
        for side in (16, 24, 31, 48, 70):
            x = torch.randn(1, 3, side, side + 5)
            assert torch.equal(again(x), network(x))


def test_a_graph_that_took_one_set_for_all_is_caught(tmp_path, monkeypatch):
    file = saved(trained(norm_per_scale=True), tmp_path / "a.ckpt")

    def first(self, input):
        return nn.functional.batch_norm(input, self.running_mean[0], self.running_var[0], self.weight[0], self.bias[0])

    monkeypatch.setattr(ScaleNorm2d, "_of_any_size", first)
    with pytest.raises(SppclsError, match=r"output differs from the checkpoint's.* x 3 x .*nothing was written"):
        export(str(file), ["pt2"], str(tmp_path / "out"))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"norm_per_scale": []}, "model.norm_per_scale"),
        ({"norm_per_scale": False}, "the weights do not match the description"),
        ({"norm_per_scale": [16, 24]}, "the weights do not match the description"),
        ({"norm_per_scale": list(range(8, 200))}, "got 192 scales; allowed: 1 to 64"),
        ({"norm_per_scale": ["a"]}, "model.norm_per_scale"),
    ],
)
def test_a_file_without_its_scales_is_refused_in_one_line(tmp_path, change, said):
    loaded = torch.load(saved(trained(norm_per_scale=True), tmp_path / "a.ckpt"))
    loaded[KEY]["model"] = loaded[KEY]["model"] | change
    torch.save(loaded, tmp_path / "b.ckpt")
    with pytest.raises(SppclsError) as caught:
        load_model(tmp_path / "b.ckpt")
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_with_no_scales_at_all_is_refused(tmp_path):
    loaded = torch.load(saved(trained(norm_per_scale=True), tmp_path / "a.ckpt"))
    loaded[KEY]["model"] |= {"norm_per_scale": True}
    loaded[KEY]["signature"]["scales"] = ()
    torch.save(loaded, tmp_path / "b.ckpt")
    with pytest.raises(SppclsError, match=r"model.norm_per_scale=true has no scales here; name them"):
        load_model(tmp_path / "b.ckpt")


@pytest.mark.parametrize("settings", [{"norm": "group"}, {"backbone": "zf5"}, {"backbone": "squeezenet1_1"}])
def test_a_trunk_without_batch_norm_is_refused(settings):
    with pytest.raises(ConfigError, match=r"^model.norm_per_scale: model.backbone=\w+ has no batch norm; leave it out"):
        build_classifier(ModelSpec(norm_per_scale=True, **settings), ("a", "b"), SCALES)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"model": {"norm_per_scale": True, "pool": "fixed"}}, "model: pool=fixed takes images of one size"),
        ({"model": {"norm_per_scale": True}, "trainer": {"compile": True}, "data": {"mix": 0}}, "trainer.compile=true"),
        ({"model": {"norm_per_scale": []}}, "model.norm_per_scale"),
        ({"model": {"norm_per_scale": [4]}}, "model.norm_per_scale"),
        ({"model": {"norm_affine": "own"}}, "model.norm_affine='own'"),
    ],
)
def test_wrong_settings_are_one_line(values, said):
    with pytest.raises(ConfigError) as caught:
        parse(values)
    assert str(caught.value).startswith(said)
    assert "\n" not in str(caught.value)


def test_true_stands_for_every_scale_that_is_drawn():
    spec = parse({"model": {"norm_per_scale": True}, "schedule": {"kind": "random", "scales": [32, 70], "step": 16}})
    assert {layer.scales for layer in norms(build_network(spec, ("a", "b")))} == {(32, 48, 64)}


@pytest.mark.parametrize(
    ("values", "sets"),
    [
        ({}, (32, 48, 64, 96, 128)),
        ({"schedule": {"scales": [64, 32, 64]}}, (32, 64)),
        ({"schedule": {"kind": "all", "scales": [32, 64]}}, (32, 64)),
        ({"schedule": {"scales": [64]}}, None),
        ({"schedule": {"kind": "alternate", "scales": [32, 64]}}, None),
        ({"model": {"norm": "group"}}, None),
        ({"model": {"backbone": "zf5"}}, None),
        ({"model": {"freeze": "backbone"}}, None),
        ({"model": {"norm_per_scale": False}}, None),
        ({"trainer": {"compile": True}, "data": {"mix": 0}}, None),
        ({"model": {"pool": "fixed"}, "data": {"fit": "warp"}, "schedule": {"scales": [64]}}, None),
    ],
)
def test_by_default_drawn_scales_have_norms_of_their_own_where_the_trunk_has_any(tmp_path, values, sets):
    spec = parse(values | {"model": {"width": 0.25} | values.get("model", {})})
    network = build_network(spec, ("a", "b"))
    assert {layer.scales for layer in norms(network)} == ({sets} if sets else set())
    described = {"state_dict": {f"network.{k}": v for k, v in network.state_dict().items()}}
    torch.save(described | {KEY: describe(network, spec)}, tmp_path / "a.ckpt")
    assert {layer.scales for layer in norms(load_model(tmp_path / "a.ckpt"))} == ({sets} if sets else set())


def test_a_frozen_trunk_keeps_its_statistics():
    network = trained(norm_per_scale=True)
    network.freeze_trunk()
    before = copy.deepcopy(network.trunk.state_dict())
    network.train()([torch.randn(2, 3, 24, 30), torch.randn(2, 3, 30, 24)]).sum().backward()
    torch.testing.assert_close(network.trunk.state_dict(), before, rtol=0, atol=0)


def test_no_weight_decay_on_weights_of_sets():
    network = trained(norm_per_scale=True)
    decayed = [p for group in parameter_groups(network, OptimSpec()) if group["weight_decay"] for p in group["params"]]
    assert not {id(p) for p in decayed} & {id(p) for layer in norms(network) for p in layer.parameters()}


def test_recalibration_is_of_the_set_at_that_scale():
    source = ShapesSource("train", 24)
    network = SppClassifier(build_trunk("tiny", width=0.25, norm_scales=(16, 64)), source.classes)
    network.train()(torch.randn(2, 3, 16, 16))
    look = Evaluation(source, batch_size=12, fit="warp")
    renewed = recalibrate_bn(network.eval(), 64, look)  # of which 16 alone was trained
    assert norms(renewed)[0].num_batches_tracked.tolist() == [2, 0]
    network.train()(torch.randn(2, 3, 64, 64))
    assert norms(recalibrate_bn(network.eval(), 64, look))[0].num_batches_tracked.tolist() == [0, 2]


@pytest.mark.parametrize("settings", [{}, {"norm_per_scale": [16, 64]}])
def test_calibrated_is_the_recalibrated_network_of_each_scale_in_one(tmp_path, settings):
    source = ShapesSource("train", 24)
    network = build_classifier(ModelSpec(width=0.25, **settings), source.classes, (32,)).eval()
    look = Evaluation(source, batch_size=12, fit="warp")
    one = calibrated(network, (16, 32, 48), look)
    again = load_model(saved(one, tmp_path / "a.ckpt"))
    for scale in (16, 32, 48):
        x, own = torch.randn(2, 3, scale, scale), recalibrate_bn(network, scale, look)
        with torch.no_grad():
            torch.testing.assert_close(one(x), own(x))
            assert torch.equal(again(x), one(x))
    assert not norms(network) or norms(network)[0].scales == (16, 64)


def test_sets_of_shared_weights_may_become_sets_of_their_own():
    network = build_classifier(ModelSpec(width=0.25, norm_per_scale=[16, 64], norm_affine="shared"), ("a", "b"), ())
    x = torch.randn(2, 3, 32, 32)
    before = network.eval()(x)
    network.trunk.norm_per_scale((16, 32, 64), "apart")
    assert norms(network)[0].weight.shape[0] == 3
    torch.testing.assert_close(network.eval()(x), before)
