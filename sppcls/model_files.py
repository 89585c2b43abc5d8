"""Model files: tensors and plain values, from which the network is rebuilt by name; safe to load from strangers."""

import json
import pickle
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from sppcls.checkpoints import BEST, CALIBRATED, is_whole, last_whole
from sppcls.errors import ConfigError, SppclsError
from sppcls.files import checked_path
from sppcls.models.classifier import SppClassifier
from sppcls.models.weights import fault_of, load_plain
from sppcls.signature import Signature, read_signature
from sppcls.spec import Spec, parse_model, parse_stored
from sppcls.terminal import printable

KEY = "sppcls"
SCHEMA = 2
WEIGHTS = "model.safetensors"
_PREFIX = "network."


@dataclass(frozen=True)
class Model:
    """A loaded model: the network in eval mode, and what is known about its training.

    Attributes:
        spec: The settings of `train.py`; None for networks that were trained in another way.
        metrics: Metrics of the epoch it was saved at, by name.
        file: The file it was loaded from.
        epoch: The epoch it was saved at, from 1; None if the file does not record it.
    """

    network: SppClassifier
    spec: Spec | None
    metrics: dict[str, float]
    file: Path
    epoch: int | None = None

    def __str__(self) -> str:
        """Describe the loaded weights in one line."""
        epoch = f"epoch {self.epoch}, " if self.epoch else ""
        return f"{self.file}, {epoch}all {len(self.network.state_dict())} tensors loaded"


def describe(
    network: SppClassifier,
    spec: Spec | None = None,
    metrics: Mapping[str, float] | None = None,
    signature: Signature | None = None,
) -> dict[str, Any]:
    """Return the plain values that a checkpoint or an export stores with its tensors.

    ``signature`` is that of an export, which may differ from the network's.
    """
    from importlib.metadata import version

    return {
        "schema": SCHEMA,
        "version": version("sppcls"),
        "model": network.recipe,
        "signature": (signature or network.signature).as_values(),
        "spec": spec.model_dump(mode="json") if spec else None,
        "metrics": dict(metrics or {}),
    }


def checkpoint_path(path: str | Path, which: str | None = None) -> Path:
    """Return the weights file of a run folder, an exported folder or a file name.

    ``which`` selects ``last``, ``best`` or ``calibrated`` of a run; by default calibrated if there is one, else last.
    """
    given = checked_path(path, "model")
    if not given.exists():
        raise ConfigError(f"no model at {given}; name a run folder, a .ckpt file or an exported folder")
    if which and not (given / "checkpoints").is_dir():
        raise ConfigError(f"--checkpoint {which} is for a run folder, and {given} is not one; leave it out")
    if given.is_file():
        return given
    calibrated = given / "checkpoints" / CALIBRATED
    if which == "calibrated" or (which is None and calibrated.is_file()):
        return _whole(calibrated)
    if which == "best":
        return _whole(given / "checkpoints" / BEST)
    found = last_whole(given / "checkpoints")
    if found is None and (given / WEIGHTS).is_file():
        return given / WEIGHTS
    if found is None and any((given / name).is_file() for name in ("model.onnx", "model.pt2")):
        raise ConfigError(f"{given} has only a graph, which `sppcls predict` runs; export safetensors too")
    if found is None:
        raise ConfigError(
            f"{given} has no checkpoints/last.ckpt and no {WEIGHTS}; it is not a run or export, or has no checkpoint"
        )
    return found


def _whole(file: Path) -> Path:
    if not file.is_file():
        raise ConfigError(f"{file} does not exist; use --checkpoint last")
    if not is_whole(file):
        raise SppclsError(f"{file} is damaged (checksum mismatch); use --checkpoint last")
    return file


def resumable(run: str | Path) -> Path:
    """Return the checkpoint that a run is resumed from, which is never the calibrated one."""
    return checkpoint_path(run, "last" if (Path(run) / "checkpoints").is_dir() else None)


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """Load tensors and plain values of any Lightning checkpoint, without running code from it."""
    file = checkpoint_path(path)
    try:
        loaded = load_plain(file)
    except pickle.UnpicklingError as error:
        raise SppclsError(f"{file} is refused: it has more than tensors and plain values ({_line(error)})") from None
    except Exception:
        # A damaged archive can raise struct, zip, pickle, key or runtime errors.
        raise SppclsError(f"{file} is not a checkpoint or is damaged; use a run folder, .ckpt or export") from None
    if not isinstance(loaded, dict) or not isinstance(loaded.get("state_dict"), dict):
        raise SppclsError(f"{file} is not a checkpoint: it has no 'state_dict' entry")
    _refuse_faults(loaded["state_dict"], file)
    return loaded


def _refuse_faults(weights: Mapping[str, object], file: Path) -> None:
    if fault := fault_of({str(name): tensor for name, tensor in weights.items()}):
        raise SppclsError(f"{file}: {printable(fault)}; use another checkpoint")


def load_model(path: str | Path) -> SppClassifier:
    """Return the classifier of a run folder, a checkpoint or an exported folder, in eval mode; see `load`."""
    return load(path).network


def load(path: str | Path, which: str | None = None) -> Model:
    """Load a model; the network is rebuilt from names, and its weights are read with ``weights_only=True``.

    ``which`` is as in `checkpoint_path`.

    Raises:
        ConfigError: There is nothing at ``path``.
        SppclsError: The file is not a model of this package, or its weights do not match its description.
    """
    file, epoch = checkpoint_path(path, which), None
    if file.suffix == ".safetensors":
        described, weights = _read_safetensors(file)
        _refuse_faults(weights, file)
    elif file.suffix in (".onnx", ".pt2"):
        raise ConfigError(f"{file} is a graph, which `sppcls predict` runs; a network comes from a run or {WEIGHTS}")
    else:
        loaded = read_checkpoint(file)
        described, weights, epoch = loaded.get(KEY), loaded["state_dict"], loaded.get("epoch")
        weights = {k.removeprefix(_PREFIX): v for k, v in weights.items() if str(k).startswith(_PREFIX)}
    return replace(_rebuilt(described, weights, file), epoch=epoch + 1 if isinstance(epoch, int) else None)


def _read_safetensors(file: Path) -> tuple[object, dict[str, Tensor]]:
    import safetensors
    from safetensors.torch import load_file

    try:
        with safetensors.safe_open(file, "pt") as opened:
            text = (opened.metadata() or {}).get(KEY)
        return json.loads(text) if text else None, load_file(file)
    except (OSError, ValueError, KeyError, RecursionError, safetensors.SafetensorError):
        raise SppclsError(f"{file} is not a safetensors file or is damaged; export it again") from None


def _rebuilt(described: object, weights: Mapping[str, Tensor], file: Path) -> Model:
    if not isinstance(described, dict):
        raise SppclsError(f"{file} is not a model of this package: it has no {KEY!r} entry")
    if described.get("schema") != SCHEMA:
        got = described.get("schema")
        raise SppclsError(f"{file} has schema {got}, this version reads {SCHEMA}; use the version that wrote it")
    known = read_signature(described.get("signature"), str(file))
    try:
        spec = parse_stored(described["spec"]) if described.get("spec") else None
        with _no_larger_than(file.stat().st_size, len(weights)):
            network = _network(described, known, spec)
        network.load_state_dict({name.replace("_orig_mod.", ""): tensor for name, tensor in weights.items()})
    except SppclsError as error:
        raise SppclsError(f"{file}: {_line(error)}") from None
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise SppclsError(f"{file}: the weights do not match the description: {_line(error)}") from None
    network.mean, network.std, network.fit, network.max_aspect = known.mean, known.std, known.fit, known.max_aspect
    metrics = described.get("metrics")
    numbers = {str(k): v for k, v in metrics.items() if isinstance(v, float)} if isinstance(metrics, dict) else {}
    return Model(network.eval(), spec, numbers, file)


def _line(error: Exception) -> str:
    return printable(" ".join(str(error).split()))[:300]


@contextmanager
def _no_larger_than(elements: int, tensors: int) -> Iterator[None]:
    """Abort building a network with far more weights than its file: a few bytes can describe any network.

    What torchvision networks have and a trunk lacks, at most a VGG's 124 million weights, is allowed on top.
    """
    left = [elements + (150 << 20), tensors + 1000]

    def count(_module: nn.Module, _name: str, parameter: object) -> None:
        left[:] = left[0] - (parameter.numel() if isinstance(parameter, Tensor) else 0), left[1] - 1
        if min(left) < 0:
            raise ValueError("the network described is larger than the file")

    handle = register_module_parameter_registration_hook(count)
    try:
        yield
    finally:
        handle.remove()


def _network(described: Mapping[str, Any], known: Signature, spec: Spec | None) -> SppClassifier:
    from sppcls.build import build_classifier

    if spec is not None:
        # The recipe is what was built: it has the scales that norm_per_scale stood for.
        model = parse_model(spec.model.model_dump() | {"norm_per_scale": False} | dict(described.get("model") or {}))
    elif described["model"] is not None:
        recipe = described["model"]
        model = parse_model({"norm_per_scale": False, **recipe} if isinstance(recipe, Mapping) else recipe)
    else:
        raise SppclsError("its trunk was not built by name; build the SppClassifier yourself and load its state_dict")
    return build_classifier(
        model, known.classes, known.scales, known.align, pretrained=False, input_size=known.input_size
    )
