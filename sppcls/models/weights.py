"""Loads weights from a local file into a network, by name, without running code from the file."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

from torch import Tensor, nn

from sppcls.errors import ConfigError
from sppcls.files import checked_path
from sppcls.models.pickled import load_plain

_SUFFIXES = (".safetensors", ".pth", ".pt", ".ckpt", ".bin")  # all but the first are torch pickles


def load_weights(net: nn.Module, path: str | Path) -> None:
    """Copy every tensor of ``net`` from a local file, in place.

    The file (.safetensors, or a torch pickle of tensors: .pth, .pt, .ckpt, .bin) holds a state dict, bare or under
    ``state_dict`` or ``model``. Its names may have a prefix such as ``module.`` or ``_orig_mod.backbone.``: the one
    that most names of ``net`` have there. Tensors that ``net`` does not have, such as a classifier, are ignored.

    Raises:
        ConfigError: no such file, not a file of weights, code in it, or tensors of ``net`` missing or of another shape;
            ``net`` is then unchanged.
    """
    path = checked_path(path, "model.weights")
    wanted = net.state_dict()
    found = _match(wanted, read_weights(path))
    # Files from before torch 0.4.1 do not count batches, and nothing here reads that count.
    missing = [name for name in wanted if name not in found and not name.endswith("num_batches_tracked")]
    wrong = [
        f"{name} {list(found[name].shape)} for {list(tensor.shape)}"
        for name, tensor in wanted.items()
        if name in found and found[name].shape != tensor.shape
    ]
    if missing or wrong:
        problems = [f"{what}: {_few(names)}" for what, names in (("missing", missing), ("shape", wrong)) if names]
        raise ConfigError(
            f"model.weights={path} does not match {len(missing) + len(wrong)} of {len(wanted)} tensors of the trunk: "
            f"{'; '.join(problems)}; use the weights of the same model.backbone and model.width"
        )
    net.load_state_dict(found, strict=False)


def read_weights(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a file's state dict by name, on the CPU; raises ``ConfigError`` if it has none."""
    if not path.is_file():
        raise ConfigError(f"model.weights={path} is not a file; allowed: null, pretrained, {', '.join(_SUFFIXES)}")
    if path.suffix not in _SUFFIXES:
        raise ConfigError(f"model.weights={path} ends in {path.suffix!r}; allowed: {', '.join(_SUFFIXES)}")
    state = _read_safetensors(path) if path.suffix == ".safetensors" else _read_pickle(path)
    for key in ("state_dict", "model"):
        if isinstance(state, Mapping) and isinstance(state.get(key), Mapping):
            state = state[key]
    tensors = {k: v for k, v in state.items() if isinstance(v, Tensor)} if isinstance(state, Mapping) else {}
    if not tensors:
        raise ConfigError(f"model.weights={path} has no named tensors at top level or under 'state_dict' or 'model'")
    if fault := fault_of(tensors):
        raise ConfigError(f"model.weights={path}: {fault}; use other weights")
    return tensors


def fault_of(tensors: Mapping[str, Any]) -> str | None:
    """Return why tensors cannot be weights, or None: complex numbers, or values that are not finite in float32."""
    for name, tensor in tensors.items():
        if isinstance(tensor, Tensor):
            if tensor.is_complex():
                return f"{name[:80]} is {tensor.dtype}; weights must be real numbers"
            if tensor.is_floating_point() and not tensor.float().isfinite().all():
                return f"{name[:80]} has non-finite values; the training diverged or the file is damaged"
    return None


def _read_safetensors(path: Path) -> Any:
    import safetensors.torch

    try:
        return safetensors.torch.load_file(path)
    except (safetensors.SafetensorError, OSError, KeyError, ValueError) as error:
        raise ConfigError(f"model.weights={path} is not a valid safetensors file: {error}") from error


def _read_pickle(path: Path) -> Any:
    try:
        return load_plain(path)
    except UnpicklingError as error:
        raise ConfigError(
            f"model.weights={path} is refused: it is not plain tensors and may run code ({reason(error)}); "
            "save its state_dict() as .safetensors"
        ) from error
    except Exception as error:  # torch.load fails in many ways on a file that is cut short or of another kind
        raise ConfigError(f"model.weights={path} cannot be read as a torch file: {reason(error)}") from error


def reason(error: Exception) -> str:
    """Return the first line of an error's message, or its class if it has none."""
    return str(error).splitlines()[0] if str(error) else type(error).__name__


def _match(wanted: Iterable[str], tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename the file's tensors to the network's names, for names in common."""
    names = {_plain(name): name for name in wanted}
    plain = {_plain(key): tensor for key, tensor in tensors.items()}
    depth = max((name.count(".") for name in names), default=0) + 1
    prefixes = Counter(key.removesuffix(tail) for key in plain for tail in _tails(key, depth) if tail in names)
    prefix = prefixes.most_common(1)[0][0] if prefixes else ""
    return {name: plain[prefix + tail] for tail, name in names.items() if prefix + tail in plain}


def _plain(key: str) -> str:
    """Drop leading underscores, which efficientnet-lite-pytorch puts before every module's name."""
    return ".".join(part.lstrip("_") for part in key.split("."))


def _tails(key: str, most: int) -> Iterator[str]:
    """Yield the endings of a dotted key with at most ``most`` parts, longest first; a key may have a million parts."""
    parts = key.rsplit(".", most)[-most:]
    return (".".join(parts[at:]) for at in range(len(parts)))


def _few(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
