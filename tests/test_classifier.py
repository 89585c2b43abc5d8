import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from sppcls.data.cut import bucket_size
from sppcls.errors import ConfigError
from sppcls.models.classifier import SppClassifier

CLASSES = ("cat", "dog", "owl")


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(threads)


def trunk():
    return nn.Sequential(nn.Conv2d(3, 6, 3, stride=2), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 8, 3, stride=2))


def classifier(**options):
    return SppClassifier(trunk(), CLASSES, **options)


def naive_bins(features, levels, mode):
    pool = {"max": F.adaptive_max_pool2d, "avg": F.adaptive_avg_pool2d}[mode]
    return [pool(features, level).flatten(1) for level in levels]


@pytest.mark.parametrize("mode", ["max", "avg"])
@pytest.mark.parametrize("levels", [(4, 2, 1), (3, 2, 1), (5,)])
def test_the_default_head_averages_a_normalised_classifier_a_level(levels, mode):
    model = classifier(levels=levels, mode=mode).eval()
    images = torch.randn(2, 3, 40, 57)
    logits = torch.zeros(2, 3)
    for bins, (norm, _, (linear,)) in zip(
        naive_bins(model.features(images), levels, mode), model.head.levels, strict=True
    ):
        mean, variance = bins.mean(1, keepdim=True), bins.var(1, unbiased=False, keepdim=True)
        scaled = (bins - mean) / (variance + norm.eps).sqrt() * norm.weight + norm.bias
        logits += (scaled @ linear.weight.T + linear.bias) / len(levels)
    torch.testing.assert_close(model(images), logits)


@pytest.mark.parametrize("hidden", [(), (16,), (16, 12)])
def test_the_stack_head_is_the_papers_layers_on_all_bins(hidden):
    model = classifier(head="stack", hidden=hidden, dropout=0.5, levels=(6, 3, 2, 1)).eval()
    images = torch.randn(2, 3, 50, 61)
    x = torch.cat(naive_bins(model.features(images), (6, 3, 2, 1), "max"), 1)
    linears = [layer for layer in model.head.layers if isinstance(layer, nn.Linear)]
    assert [layer.out_features for layer in linears] == [*hidden, 3]
    assert sum(isinstance(layer, nn.Dropout) for layer in model.head.layers) == len(hidden)
    for layer in linears[:-1]:
        x = layer(x).relu()
    torch.testing.assert_close(model(images), linears[-1](x))


def test_gap_is_the_mean_over_the_map():
    model = classifier(pool="gap", head="stack").eval()
    images = torch.randn(2, 3, 33, 48)
    assert model.levels == (1,)
    torch.testing.assert_close(model(images), model.head.layers(model.features(images).mean((2, 3))))


@pytest.mark.parametrize(("size", "takes"), [(64, (64, 64)), ((48, 80), (48, 80))])
def test_fixed_pools_to_six_by_six_and_takes_one_size(size, takes):
    model = classifier(pool="fixed", head="stack", input_size=size).eval()
    images = torch.randn(2, 3, *takes)
    expected = model.head.layers(F.adaptive_max_pool2d(model.features(images), 6).flatten(1))
    torch.testing.assert_close(model(images), expected)
    with pytest.raises(ValueError, match=rf"takes images of {takes[0]}x{takes[1]} pixels \(H x W\) only, got 64x96$"):
        model(torch.zeros(1, 3, 64, 96))


@given(st.integers(7, 70), st.integers(7, 70), st.sampled_from(["spp", "gap"]), st.sampled_from(["levels", "stack"]))
@settings(max_examples=25, deadline=None)
def test_images_of_every_size_are_labelled(height, width, pool, head):
    model = classifier(pool=pool, head=head).eval()
    assert model.smallest == 7
    assert model(torch.randn(2, 3, height, width)).shape == (2, 3)


def test_logits_do_not_depend_on_batch_mates():
    model = classifier().eval()
    images = torch.randn(5, 3, 30, 44)
    with torch.no_grad():
        alone = torch.cat([model(image[None]) for image in images])
        torch.testing.assert_close(model(images), alone, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("images", "error", "message"),
    [
        (torch.zeros(1, 3, 6, 40), ValueError, r"images are 6x40 pixels \(H x W\); the smallest side .* is 7$"),
        (torch.zeros(1, 3, 40, 6), ValueError, r"images are 40x6 pixels \(H x W\); the smallest side .* is 7$"),
        (torch.zeros(1, 1, 40, 40), ValueError, r"images are \[1, 1, 40, 40\]; expected \[N, 3, H, W\]"),
        (torch.zeros(3, 40, 40), ValueError, r"images are \[3, 40, 40\]; expected"),
        (torch.zeros(1, 3, 40, 40, dtype=torch.uint8), TypeError, "images are torch.uint8; scale them to 0..1"),
    ],
)
def test_images_that_do_not_fit_are_refused(images, error, message):
    with pytest.raises(error, match=message):
        classifier()(images)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"classes": ["cat"]}, r"classes are \['cat'\]; expected at least two names"),
        ({"classes": "abc"}, "classes are 'abc'; expected at least two names"),
        ({"classes": ["cat", ""]}, "none of them empty"),
        ({"classes": ["cat", 3]}, "expected at least two names"),
        ({"classes": ["cat", "dog", "cat"]}, "class 'cat' occurs 2 times; names must differ"),
        ({"pool": "sppp"}, r"pool is 'sppp'; did you mean 'spp'\?"),
        ({"head": "level"}, r"head is 'level'; did you mean 'levels'\?"),
        ({"pool": "fixed"}, "input_size is None with pool='fixed'; pool='fixed' needs one"),
        ({"input_size": 224}, "input_size is 224 with pool='spp'"),
        ({"levels": ()}, "level"),
        ({"levels": (2, 0)}, "level"),
        ({"mode": "mean"}, "mode"),
        ({"dropout": 1.5}, "dropout"),
    ],
)
def test_wrong_arguments_are_refused_when_made(options, message):
    with pytest.raises(ValueError, match=message):
        SppClassifier(trunk(), **({"classes": CLASSES} | options))


def test_facts_are_those_of_the_trunk():
    model = SppClassifier("efficientnet_lite0", list(CLASSES), scales=[64, 96])
    assert (model.classes, model.levels, model.scales) == (CLASSES, (4, 2, 1), (64, 96))
    assert (model.mean, model.std, model.smallest) == (model.trunk.mean, model.trunk.std, 32)
    with pytest.raises(ConfigError, match="did you mean 'resnet18'"):
        SppClassifier("resnet81", CLASSES)


def test_normalize_brings_bytes_to_the_trunks_mean_and_deviation():
    model = classifier()
    pixels = torch.randint(0, 256, (2, 3, 9, 7), dtype=torch.uint8)
    expected = [(pixels[:, c] / 255 - model.mean[c]) / model.std[c] for c in range(3)]
    torch.testing.assert_close(model.normalize(pixels), torch.stack(expected, 1))


def test_a_frozen_trunk_stays_as_it_was_while_the_head_learns():
    model = classifier()
    model.freeze_trunk()
    before = copy.deepcopy(model.state_dict())
    optimiser = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(2):
        model.train()
        F.cross_entropy(model(torch.randn(6, 3, 32, 40)), torch.tensor([0, 1, 2, 0, 1, 2])).backward()
        optimiser.step()
    changed = {name for name, tensor in model.state_dict().items() if not torch.equal(before[name], tensor)}
    assert changed == {name for name, _ in model.head.named_parameters(prefix="head")}
    assert model.frozen
    assert model.head.training
    assert not any(module.training for module in model.trunk.modules())


def test_an_unfrozen_trunk_learns():
    model = classifier().train()
    model(torch.randn(6, 3, 32, 40)).sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_copies_and_state_dicts_give_the_same_logits():
    model = classifier(hidden=(10,)).eval()
    images = torch.randn(2, 3, 41, 29)
    other = classifier(hidden=(10,)).eval()
    assert not torch.allclose(other(images), model(images))
    other.load_state_dict(model.state_dict())
    for twin in (copy.deepcopy(model), other):
        torch.testing.assert_close(twin.state_dict(), model.state_dict(), rtol=0, atol=0)
    for twin in (copy.deepcopy(model), other, model.to(memory_format=torch.channels_last)):
        # Not equal to the bit: a kernel may sum in another order where the weights lie at another address.
        torch.testing.assert_close(twin(images), model(images), rtol=0, atol=1e-6)
    half = copy.deepcopy(model).to(torch.bfloat16)
    assert half(images.bfloat16()).dtype == torch.bfloat16


def test_channels_last_gives_the_same_logits():
    model = classifier().eval()
    images = torch.randn(2, 3, 41, 29)
    expected = model(images)
    last = copy.deepcopy(model).to(memory_format=torch.channels_last)
    torch.testing.assert_close(last(images.to(memory_format=torch.channels_last)), expected, rtol=0, atol=1e-5)


# --- alignment --------------------------------------------------------------------------------------------------------


def test_padding_to_the_stride_repeats_the_edge_and_leaves_aligned_images_alone():
    torch.manual_seed(0)
    plain = SppClassifier("tiny", ["a", "b"]).eval()
    padded = SppClassifier("tiny", ["a", "b"], align="pad").eval()
    padded.load_state_dict(plain.state_dict())
    images = torch.randn(2, 3, 33, 46)
    rows, columns = (torch.arange(length).clamp(max=last) for length, last in ((40, 32), (48, 45)))
    with torch.no_grad():
        assert torch.equal(padded(images), plain(images[:, :, rows][:, :, :, columns]))
        assert torch.equal(padded(images[:, :, :32, :40]), plain(images[:, :, :32, :40]))


def test_an_unknown_alignment_is_refused():
    with pytest.raises(ValueError, match="align is 'strech'; did you mean 'stretch'"):
        SppClassifier("tiny", ["a", "b"], align="strech")
    assert SppClassifier("tiny", ["a", "b"], align="stretch").multiple == 8
    assert SppClassifier("tiny", ["a", "b"], align="pad").multiple == 1


@pytest.mark.parametrize("backbone", ["squeezenet1_1", "tiny"])
@pytest.mark.parametrize("align", ["stretch", "none"])
def test_the_smallest_scale_gives_a_tensor_that_the_trunk_takes_and_none_below_does(backbone, align):
    network = SppClassifier(backbone, ["a", "b"], align=align)
    smallest = network.signature.smallest_scale
    takes = [min(bucket_size(0, 0, scale, network.multiple)) >= network.smallest for scale in range(1, 64)]
    assert takes == [scale >= smallest for scale in range(1, 64)]
