"""One thread a test process: the tests' tensors are small, and threads that wait for each other are slow."""

import sys

import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _cache_of_its_own(tmp_path_factory, monkeypatch):
    """Keep what a test caches out of the user's cache folder."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.fixture
def train(monkeypatch, tmp_path):
    """Run train.py's main in an empty folder and return its exit status."""
    from sppcls import app

    monkeypatch.chdir(tmp_path)

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["train.py", *arguments])
        with pytest.raises(SystemExit) as end:
            app.main()
        return end.value.code

    return call


@pytest.fixture(scope="session")
def save_model():
    """Return a function that writes a checkpoint of a random network whose answers differ from image to image."""
    from sppcls.build import build_classifier
    from sppcls.model_files import KEY, describe
    from sppcls.settings import ModelSpec

    def save(path, **settings):
        torch.manual_seed(0)
        network = build_classifier(ModelSpec(**settings), ("cat", "dog", "emu"), (40,)).eval()
        for name, value in network.named_parameters():
            if name.startswith("head") and value.ndim == 2:
                value.data *= 5
        described = describe(network, metrics={"val_acc1": 0.25})
        state = {f"network.{name}": tensor for name, tensor in network.state_dict().items()}
        torch.save({"state_dict": state, KEY: described}, path)
        return path

    return save


@pytest.fixture(scope="session")
def exported(tmp_path_factory, save_model):
    """Return the folder of a small network in every format; its checkpoint is beside it, as a.ckpt."""
    from sppcls.deploy.export import export

    model = save_model(tmp_path_factory.mktemp("exported") / "a.ckpt")
    return export(str(model), ["safetensors", "onnx", "pt2"])
