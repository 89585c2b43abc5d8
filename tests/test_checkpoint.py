"""Checkpoints as data: what is in them, what they are rebuilt from, and what is refused."""

import json

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from torch import nn

from sppcls import LitSppClassifier, MultiScaleDataModule, SppClassifier, load_model
from sppcls.build import build_classifier
from sppcls.data.shapes import ShapesSource
from sppcls.errors import ConfigError, SppclsError
from sppcls.model_files import KEY, describe, load
from sppcls.models.backbones import build_trunk
from sppcls.settings import ModelSpec
from sppcls.signature import read_signature

CLASSES = ("cat", "dog", "emu")


def classifier(**settings):
    torch.manual_seed(0)
    return build_classifier(ModelSpec(**settings), CLASSES, (48, 32)).eval()


def write(path, network, prefix="network.", **changes):
    described = describe(network, metrics={"val_acc1": 0.5})
    state = {f"{prefix}{name}": tensor for name, tensor in network.state_dict().items()}
    torch.save({"state_dict": state, KEY: described | changes}, path)
    return path


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"pool": "gap"},
        {"pool": "fixed"},
        {"levels": (3, 1), "head": "stack", "hidden": (7,), "mode": "avg"},
        {"backbone": "zf5", "width": 0.05, "norm": "batch"},
        {"width": 0.5, "norm": "group"},
    ],
)
def test_a_network_is_rebuilt_from_names_and_numbers(tmp_path, settings):
    network = classifier(**settings)
    found = load(write(tmp_path / "a.ckpt", network, prefix="network._orig_mod."))
    assert (found.network.classes, found.network.scales) == (CLASSES, (48, 32))
    assert found.network.signature == network.signature
    assert (found.metrics, found.spec) == ({"val_acc1": 0.5}, None)
    images = torch.randn(2, 3, 48, 48)
    assert torch.equal(found.network(images), network(images))


def test_everything_in_it_is_a_tensor_or_a_plain_value(tmp_path):
    loaded = torch.load(write(tmp_path / "a.ckpt", classifier()), weights_only=True)
    assert json.loads(json.dumps(loaded[KEY])) == json.loads(json.dumps(describe_again(loaded[KEY])))
    assert set(loaded[KEY]) == {"schema", "version", "model", "signature", "spec", "metrics"}


def describe_again(described):
    return {key: list(value) if isinstance(value, tuple) else value for key, value in described.items()}


def test_a_library_users_checkpoint_loads_too(tmp_path):
    source = ShapesSource("train", 24)
    data = MultiScaleDataModule(source, ShapesSource("val", 12), schedule=(24, 32), batch_size=12, max_aspect=2.0)
    network = SppClassifier(build_trunk("tiny", width=0.25), source.classes, levels=(2, 1), scales=(24, 32))
    quiet = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    trainer = pl.Trainer(max_epochs=1, accelerator="cpu", use_distributed_sampler=False, **quiet)
    trainer.fit(LitSppClassifier(network), datamodule=data)
    trainer.save_checkpoint(tmp_path / "mine.ckpt")
    found = load(tmp_path / "mine.ckpt")
    used = found.network.signature
    assert (used.fit, used.max_aspect, used.scale) == ("keep", 2.0, 32)
    assert 0 <= found.metrics["val_acc1"] <= 1
    images = torch.randn(2, 3, 30, 40)
    assert torch.equal(found.network(images), network.eval()(images))


def test_a_trunk_of_ones_own_is_told_how_to_load(tmp_path):
    network = SppClassifier(nn.Conv2d(3, 4, 3, stride=2), CLASSES, levels=(1,))
    with pytest.raises(SppclsError, match=r"a\.ckpt: its trunk was not built by name"):
        load(write(tmp_path / "a.ckpt", network))


WRONG = [
    ({"schema": 99}, "schema 99, this version reads 2"),
    ({"schema": 1}, "schema 1, this version reads 2"),
    ({"schema": None}, "schema None"),
    ({"model": {"backbone": "tiny", "levels": [3]}}, "do not match the description"),
    ({"model": {"backbone": "tiny", "levels": [65]}}, "model.levels"),
    ({"model": {"backbone": "os.system"}}, "unknown"),
    ({"model": {"backbone": "timm:hf-hub:x/y"}}, "unknown to timm"),
    ({"model": {"_target_": "os.system"}}, "unknown key model._target_"),
    ({"model": 5}, "model"),
    ({"spec": {"data": {"_target_": "os.system"}}}, "unknown key data._target_"),
    ({"signature": None}, "signature"),
    ({"signature": {}}, "signature is wrong or incomplete"),
]


@pytest.mark.parametrize(("changes", "said"), WRONG)
def test_a_description_that_is_wrong_is_one_line(tmp_path, changes, said):
    with pytest.raises(SppclsError, match=said) as error:
        load(write(tmp_path / "a.ckpt", classifier(), **changes))
    assert "a.ckpt" in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("classes", ["a", "a", "b"]),
        ("classes", "abc"),
        ("classes", ["a", "b"]),
        ("scales", ["64"]),
        ("mean", [1, 2]),
        ("mean", [float("nan")] * 3),
        ("std", [1, 0, 1]),
        ("max_aspect", 99),
        ("smallest", 0),
        ("stride", True),
        ("input", "pickle"),
        ("input_size", [8, 8]),
        ("fit", 3),
        ("half", "yes"),
    ],
)
def test_a_signature_that_is_wrong_is_one_line(tmp_path, key, value):
    network = classifier()
    signature = network.signature.as_values() | {key: value}
    with pytest.raises(SppclsError, match=r"a\.ckpt") as error:
        load(write(tmp_path / "a.ckpt", network, signature=signature))
    assert "\n" not in str(error.value)


def test_a_signature_prepares_images_as_the_network_does():
    network = classifier(backbone="efficientnet_lite0")
    signature = network.signature
    assert read_signature(json.loads(json.dumps(signature.as_values())), "it") == signature
    images = np.random.default_rng(0).integers(0, 256, (2, 3, 40, 33), dtype=np.uint8)
    assert np.array_equal(signature.prepared(images), network.normalize(torch.from_numpy(images)).numpy())


def test_what_is_no_model_says_what_would_be(tmp_path):
    with pytest.raises(ConfigError, match="no model at"):
        load_model(tmp_path / "none")
    with pytest.raises(ConfigError, match=r"no checkpoints/last\.ckpt and no model\.safetensors"):
        load_model(tmp_path)
    (tmp_path / "a.onnx").write_bytes(b"x")
    with pytest.raises(ConfigError, match="`sppcls predict` runs"):
        load_model(tmp_path / "a.onnx")
    (tmp_path / "a.safetensors").write_bytes(b"x" * 50)
    with pytest.raises(SppclsError, match="is not a safetensors file"):
        load_model(tmp_path / "a.safetensors")
