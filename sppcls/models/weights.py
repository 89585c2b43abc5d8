"""Reads weights from untrusted files without running their code or filling memory, and matches them by name."""

import io
import json
import pickle
import pickletools
import re
import warnings
import zipfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor, nn

from sppcls.errors import ConfigError
from sppcls.files import checked_path

_ARCHIVE_END = b"PK\6\6", b"PK\6\7", b"PK\5\6"
# The names that tensors need. torch allows more, such as bytearray(16 << 30), which takes memory.
_NAMES = re.compile(
    r"collections OrderedDict|torch\._utils _rebuild_(tensor(_v2)?|parameter)"
    r"|torch ([A-Z]\w+Storage|b?float\d+|u?int\d+|bool)"
)
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


def fault_of(tensors: Mapping[str, object]) -> str | None:
    """Return why tensors cannot be weights, or None: complex numbers, or values that are not finite in float32."""
    for name, tensor in tensors.items():
        if isinstance(tensor, Tensor):
            if tensor.is_complex():
                return f"{name[:80]} is {tensor.dtype}; weights must be real numbers"
            if tensor.is_floating_point() and not tensor.float().isfinite().all():
                return f"{name[:80]} has non-finite values; the training diverged or the file is damaged"
    return None


def _read_safetensors(path: Path) -> object:
    import safetensors.torch

    try:
        return safetensors.torch.load_file(path)
    except (safetensors.SafetensorError, OSError, KeyError, ValueError) as error:
        raise ConfigError(f"model.weights={path} is not a valid safetensors file: {error}") from error


def _read_pickle(path: Path) -> object:
    try:
        return load_plain(path)
    except pickle.UnpicklingError as error:
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


def load_plain(path: Path) -> Any:
    """Return the tensors, on the CPU, and plain values that `torch.save` wrote.

    ``weights_only=True`` runs no code, but allocates what a file asks for: any amount of memory, from a few bytes. So
    the names that the pickle calls are checked before, and the sizes that it claims after.

    Raises:
        UnpicklingError: It has more than that, or claims more than its size.
        Exception: It is damaged; the class depends on the damage.
    """
    size = path.stat().st_size
    with warnings.catch_warnings(action="ignore"), path.open("rb") as file:  # of old formats
        if file.read(4) == b"PK\3\4":
            _check_archive(file, size)
            _check_calls(io.BytesIO(torch._C.PyTorchFileReader(str(path)).get_record("data.pkl")))
        else:  # before torch 1.6: five pickles, then the numbers
            file.seek(0)
            for _ in range(5):
                _check_calls(file)
        try:
            values = torch.load(path, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError as error:  # torch's message mostly explains how to load it anyway
            raise pickle.UnpicklingError(str(error).rpartition("error: ")[2].strip().splitlines()[0]) from None
    _check_claims(values, size)
    return values


def _check_archive(file: IO[bytes], size: int) -> None:
    """Reject what torch does not write: compressed or overlapping members, and ends that readers parse differently."""
    file.seek(-98, io.SEEK_END)  # records of 56, 20 and 22 bytes
    end = file.read()
    start, length, second = (int.from_bytes(end[at : at + 8], "little") for at in (48, 40, 64))
    if (end[:4], end[56:60], end[76:80]) != _ARCHIVE_END or end[96:] != b"\0\0":
        raise EOFError("the archive does not end the way torch ends one")
    if not start + length == second == size - 98:
        raise EOFError("the archive's directory is not where torch writes it")
    with zipfile.ZipFile(file) as archive:
        members = archive.infolist()
    if any(m.compress_type for m in members) or sum(m.file_size for m in members) > size:
        raise pickle.UnpicklingError("its members are compressed or overlap")


def _check_calls(file: IO[bytes]) -> None:
    """Reject a pickle that calls more than tensors need; it is read as data, up to its end."""
    recent = ("", "", "", "")
    for opcode, argument, _ in pickletools.genops(file):
        name = opcode.name
        if "PUT" in name:
            continue
        if name == "GLOBAL" and not _NAMES.fullmatch(str(argument)):
            raise pickle.UnpicklingError(f"it references {str(argument).replace(' ', '.')[:80]}")
        if name in ("NEWOBJ", "NEWOBJ_EX", "OBJ", "INST", "STACK_GLOBAL"):
            raise pickle.UnpicklingError("it creates objects of its own")
        # The last argument is a tuple or a list (strides; the pairs of a dictionary, as Python 2 wrote it) or an
        # OrderedDict of nothing. So no call expands a view that repeats one number.
        made = recent[1:3] == ("EMPTY_TUPLE", "REDUCE") or recent[:3] == ("EMPTY_LIST", "TUPLE1", "REDUCE")
        plain = recent[2].startswith("TUPLE") or recent[2] in ("EMPTY_LIST", "APPEND", "APPENDS")
        if name == "REDUCE" and recent[3] != "EMPTY_TUPLE" and not (recent[3].startswith("TUPLE") and (made or plain)):
            raise pickle.UnpicklingError("it calls something with other arguments than torch does")
        if name == "BUILD" and recent[3] not in ("EMPTY_DICT", "SETITEM", "SETITEMS"):
            raise pickle.UnpicklingError("it sets more than the attributes of a dictionary")
        recent = (*recent[1:], name)


def _check_claims(values: object, size: int) -> None:
    """Reject tensors larger than the file, and values that are endless as text.

    A list that repeats one list is small in the file and in memory, but endless when printed.
    """
    stored: dict[int, int] = {}

    def check(value: object) -> None:
        if isinstance(value, Tensor):
            storage = value.untyped_storage()
            stored[storage.data_ptr()] = storage.nbytes()
            if value.numel() * value.element_size() > storage.nbytes():
                raise pickle.UnpicklingError(
                    f"a tensor of {[*value.shape][:9]} is larger than its {storage.nbytes()} bytes"
                )
            if sum(stored.values()) > size:
                raise pickle.UnpicklingError("its tensors claim more bytes than the file has")

    left = (4 << 20) + 8 * size
    for part in json.JSONEncoder(default=check).iterencode(values):
        left -= len(part) + 4
        if left < 0:
            raise pickle.UnpicklingError("its values expand far beyond the file's size")
