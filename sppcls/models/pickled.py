"""Reads untrusted `torch.save` files: checked as data before torch reads them, so that no code runs.

``weights_only=True`` runs no code, but allocates what a file asks for: any amount of memory, from a few bytes.
"""

import io
import json
import math
import pickle
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, ClassVar, NamedTuple

import torch

_MAGIC = 0x1950A86A20F9469CFC6C  # of the format before torch 1.6
_END = b"PK\6\6", b"PK\6\7", b"PK\5\6"


def load_plain(path: Path) -> Any:
    """Return the tensors, on the CPU, and plain values that `torch.save` wrote.

    Raises:
        UnpicklingError: It has more than that, or claims more than its size.
        Exception: It is damaged; the class depends on the damage.
    """
    with warnings.catch_warnings(action="ignore"), path.open("rb") as file:  # of old formats
        _check(file, path)
        try:
            return torch.load(path, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError as error:  # torch's message mostly explains how to load it anyway
            raise pickle.UnpicklingError(str(error).rpartition("error: ")[2].strip().splitlines()[0]) from None


def _check(file: BinaryIO, path: Path) -> None:
    size = path.stat().st_size
    if file.read(4) == b"PK\3\4":
        _check_archive(file, size)
        content = io.BytesIO(torch._C.PyTorchFileReader(str(path)).get_record("data.pkl"))
        values = _DryRun(content, size).load()
    else:
        file.seek(0)
        if not _is_magic(file, size):
            raise EOFError("not a file of torch.save")
        _protocol, _system, values = (_DryRun(file, size).load() for _ in range(3))
    _check_plain(values, (4 << 20) + 8 * size)


def _is_magic(file: BinaryIO, size: int) -> bool:
    try:
        return bool(_DryRun(file, size).load() == _MAGIC)
    except Exception:  # an unpickler's errors on text or other formats do not help
        return False


def _check_archive(file: BinaryIO, size: int) -> None:
    """Reject what torch does not write: compressed or overlapping members, and ends that readers parse differently."""
    file.seek(-98, io.SEEK_END)
    end = file.read()
    start, length, second = (int.from_bytes(end[at : at + 8], "little") for at in (48, 40, 64))
    if (end[:4], end[56:60], end[76:80]) != _END or end[96:] != b"\0\0" or not start + length == second == size - 98:
        raise EOFError("the archive does not end the way torch ends one")
    with zipfile.ZipFile(file) as archive:
        members = archive.infolist()
    if any(m.compress_type for m in members) or sum(m.file_size for m in members) > size:
        raise pickle.UnpicklingError("its members are compressed or overlap")
    if any(m.filename.endswith("/constants.pkl") for m in members):
        raise pickle.UnpicklingError("it is a TorchScript program")


def _check_plain(values: Any, limit: int) -> None:
    # As text: a list that repeats one list is small in the file and in memory, but endless when printed.
    for part in json.JSONEncoder(default=lambda _: None).iterencode(values):
        limit -= len(part) + 4
        if limit < 0:
            raise pickle.UnpicklingError("its values expand far beyond the file's size")


class _Storage(NamedTuple):
    size: int
    item: int


class _Tensor:
    """Stands for a tensor."""


def _tensor(storage: _Storage, _offset: int, size: tuple[int, ...], *_: Any) -> _Tensor:
    sides = [_whole(side) for side in size]
    if len(sides) > 64 or math.prod(sides) * storage.item > storage.size:
        raise pickle.UnpicklingError(f"a tensor of {sides[:9]} is larger than its {storage.size} bytes")
    return _Tensor()


def _whole(number: Any) -> int:
    if type(number) is not int or not 0 <= number < 1 << 50:
        raise pickle.UnpicklingError(f"{str(number)[:40]} is not a size")
    return number


def _same(tensor: _Tensor, *_: Any) -> _Tensor:
    if not isinstance(tensor, _Tensor):
        raise pickle.UnpicklingError("a parameter is not a tensor")
    return tensor


def _plain(kind: type) -> Callable[..., Any]:
    def make(*given: Any) -> Any:
        if not all(type(value) in (list, tuple, str) for value in given):
            raise pickle.UnpicklingError(f"a {kind.__name__} contains more than plain values")
        return kind(*given)

    return make


_MAKERS: dict[str, Any] = {
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_tensor_v3": _tensor,
    "torch._utils._rebuild_parameter": _same,
    "collections.OrderedDict": _plain(OrderedDict),
    "builtins.set": _plain(set),
    "__builtin__.set": _plain(set),
    "torch.Size": _plain(tuple),
    "torch.device": _plain(str),
}


class _DryRun(pickle._Unpickler):
    """Builds what a pickle describes from stand-ins without memory; the C class would allocate any amount."""

    stack: list[Any]

    def __init__(self, file: Any, size: int) -> None:
        super().__init__(file)
        self.left = size
        self.storages: set[Any] = set()

    def find_class(self, module: str, name: str) -> Any:
        """Return the stand-in for a name; a dozen names are allowed."""
        full = f"{module}.{name}"
        if full in _MAKERS:
            return _MAKERS[full]
        found = getattr(torch, name, None) if module in ("torch", "torch.storage") else None
        if isinstance(found, type) and name.endswith("Storage"):
            found = torch.uint8 if name == "UntypedStorage" else getattr(found, "dtype", None)
        if isinstance(found, torch.dtype):
            return found
        raise pickle.UnpicklingError(f"it references {full[:80]}")

    def persistent_load(self, given: Any) -> _Storage:
        """Return the stand-in for a storage."""
        kind, dtype, key, _, count, *_ = given
        if kind not in ("storage", b"storage") or not isinstance(dtype, torch.dtype):
            raise pickle.UnpicklingError("it refers to something other than numbers")
        stored = _Storage(_whole(count) * dtype.itemsize, dtype.itemsize)
        self.left -= 0 if (key, stored) in self.storages else stored.size
        self.storages.add((key, stored))
        if self.left < 0:
            raise pickle.UnpicklingError("its tensors claim more bytes than the file has")
        return stored

    def _build(self) -> None:
        self.stack.pop()
        if type(self.stack[-1]) is not OrderedDict:
            raise pickle.UnpicklingError("it sets more than the attributes of a dictionary")

    def _call(self) -> None:
        if not callable(self.stack[-2]):
            raise pickle.UnpicklingError("it creates its own storage")
        super().load_reduce()  # type: ignore[misc]

    def _refuse(self) -> None:
        raise pickle.UnpicklingError("it creates objects of its own")

    dispatch: ClassVar[Any] = pickle._Unpickler.dispatch | {pickle.BUILD[0]: _build, pickle.REDUCE[0]: _call}
    for _code in (pickle.NEWOBJ, pickle.NEWOBJ_EX, pickle.OBJ, pickle.INST, pickle.BYTEARRAY8, pickle.NEXT_BUFFER):
        dispatch[_code[0]] = _refuse
