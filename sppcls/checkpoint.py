"""A checkpoint as data: tensors and plain values, rebuilt from names, safe to load from a stranger."""

import pickle
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from sppcls.errors import ConfigError, SppclsError
from sppcls.models.classifier import SppClassifier
from sppcls.spec import Spec, parse

KEY = "sppcls"
SCHEMA = 1


def describe(spec: Spec, classes: Sequence[str]) -> dict[str, Any]:
    """Return the plain values that a checkpoint carries beside its tensors."""
    return {"schema": SCHEMA, "version": _version(), "classes": list(classes), "spec": spec.model_dump(mode="json")}


def _version() -> str:
    from importlib.metadata import version

    return version("sppcls")


def checkpoint_path(path: str | Path) -> Path:
    """Return the checkpoint that a run folder or a file name means; a run means its last one."""
    given = Path(path)
    if given.is_file():
        return given
    if not given.exists():
        raise ConfigError(f"no run or checkpoint at {given}; name a run folder or a .ckpt file")
    last = given / "checkpoints" / "last.ckpt"
    if not last.is_file():
        raise ConfigError(f"{given} has no checkpoints/last.ckpt; it is not a run folder, or has saved nothing yet")
    return last


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """Load a checkpoint's tensors and plain values, running no code that came with it; any Lightning checkpoint."""
    file = checkpoint_path(path)
    try:
        loaded = torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        line = re.sub(r"\x1b\[[0-9;]*m", "", str(error)).splitlines()[0].split(". ")[0]
        raise SppclsError(f"{file} is refused: it holds more than tensors and plain values ({line})") from None
    except Exception as error:
        # A damaged archive fails in whichever class its damage meets first: struct, zip, pickle, key, run-time.
        raise SppclsError(f"{file} is damaged or no checkpoint ({type(error).__name__})") from None
    if not isinstance(loaded, dict) or "state_dict" not in loaded:
        raise SppclsError(f"{file} is no checkpoint: it has no 'state_dict' entry")
    return loaded


def _description(loaded: dict[str, Any], path: str | Path) -> dict[str, Any]:
    described = loaded.get(KEY)
    if not isinstance(described, dict):
        raise SppclsError(f"{path} is no checkpoint of this package: it has no {KEY!r} entry")
    if described.get("schema") != SCHEMA:
        got = described.get("schema")
        raise SppclsError(f"{path} has schema {got}, this version reads {SCHEMA}; use the version that wrote it")
    return described


def load_model(path: str | Path) -> SppClassifier:
    """Return the classifier of a run folder or a checkpoint, in eval mode; see `load_run`."""
    return load_run(path)[0]


def load_run(path: str | Path) -> tuple[SppClassifier, Spec]:
    """Return the classifier of a run folder or a checkpoint, in eval mode, and the spec that it was trained by.

    The network is rebuilt from names and its weights are loaded with ``weights_only=True``.

    Raises:
        ConfigError: There is nothing at ``path``.
        SppclsError: The file is no checkpoint of this package, or its weights contradict its description.
    """
    from sppcls.build import build_classifier

    loaded = read_checkpoint(path)
    described = _description(loaded, path)
    spec = parse(described["spec"])
    network = build_classifier(spec.model, described["classes"], spec.schedule.scales, pretrained=False)
    prefix = "network."
    weights = {
        name.replace("_orig_mod.", "").removeprefix(prefix): tensor
        for name, tensor in loaded["state_dict"].items()
        if name.startswith(prefix)
    }
    try:
        network.load_state_dict(weights)
    except RuntimeError as error:
        raise SppclsError(f"{path}: weights contradict the description: {' '.join(str(error).split())[:300]}") from None
    return network.eval(), spec
