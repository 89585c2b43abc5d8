"""What can be wrong with a run before anything heavy is imported: absent extras, files, images and devices."""

from importlib.util import find_spec
from pathlib import Path

from sppcls.build import build_splits
from sppcls.data.catalog import Splits
from sppcls.errors import ConfigError, missing_extra
from sppcls.plugins import plugin
from sppcls.settings import OPTIMIZERS
from sppcls.spec import Spec
from sppcls.training.world import joined_rank, local_ranks


def precheck(spec: Spec) -> Splits:
    """Return the data of a run; the first fault of a spec that does not take a network to see ends it here.

    Raises:
        ConfigError: An extra is not installed, a file of weights is not there, or there is no such device.
        DataError: The images are missing or cannot be read.
    """
    _check_extras(spec)
    for name in spec.trainer.callbacks:
        plugin("callbacks", name, "trainer.callbacks")
    if spec.optim.name not in OPTIMIZERS:
        plugin("optimizers", spec.optim.name, "optim.name", OPTIMIZERS)
    if spec.optim.lr == "auto" and (joined_rank() is not None or local_ranks(spec) > 1):
        raise ConfigError("optim.lr=auto tries rates in one process; run it with trainer.devices=1 and name the rate")
    weights = spec.model.weights
    if weights not in (None, "pretrained") and not Path(weights).is_file() and not spec.resume:
        raise ConfigError(f"model.weights={weights}: no such file; name a .safetensors or .pth file, or pretrained")
    splits = build_splits(spec.data)
    if spec.trainer.accelerator in ("gpu", "cuda"):
        _check_gpu(spec.trainer.accelerator)
    return splits


def _check_extras(spec: Spec) -> None:
    if (name := spec.logger.name) != "none" and not find_spec(name):
        raise missing_extra(f"logger={name}", name)
    if spec.model.backbone.startswith("timm:") and not find_spec("timm"):
        raise missing_extra(f"model.backbone={spec.model.backbone}", "timm")


def _check_gpu(name: str) -> None:
    import torch

    if not torch.cuda.is_available():
        raise ConfigError(f"trainer.accelerator={name}: no GPU here; use trainer.accelerator=cpu")
