"""Programs of PyTorch in files: torch.export writes them; they are read here, as data, as its own reader can run code.

A program is a list of operators on tensors. What else a file may hold (guards, symbolic sizes, signatures of calls,
pickles, libraries) torch.export.load evaluates or opens; no answer needs it, and nothing of it is looked at.
"""

import io
import json
import operator
import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram

from sppcls.errors import ConfigError, SppclsError
from sppcls.files import to_json, write_bytes

_TEXT_LIMIT = 16 << 20  # Inception has 1 MB; parsed, text takes some twenty times its size
# What convolutional networks use, in place too; nothing that reads files, packed weights or memory that nobody wrote.
_TENSOR_OPERATOR = re.compile(
    r"""(?x)torch\.ops\.aten\.((?:__and__|__or__|_assert_tensor_metadata|abs|adaptive_avg_pool2d|adaptive_max_pool2d|add
    |addcmul|amax|amin|arange|avg_pool2d|avg_pool3d|batch_norm|bitwise_and|bitwise_not|bitwise_or|bmm|cat|chunk|clamp
    |clamp_max|clamp_min|clone|contiguous|conv1d|conv2d|cos|cumsum|detach|div|dropout|elu|exp|expand|expand_as|flatten
    |full|ge|gelu|group_norm|gt|hardsigmoid|hardswish|hardtanh|layer_norm|le|leaky_relu|lift_fresh_copy
    |linalg_vector_norm|linear|log|lt|masked_fill|matmul|max_pool2d|maximum|mean|minimum|mish|mm|mul|neg|ones|pad
    |permute|pixel_shuffle|pow|prelu|relu|relu6|repeat|reshape|reshape_as|rsqrt|select|selu|sigmoid|silu|sin|slice
    |softmax|split|split_with_sizes|sqrt|std|squeeze|stack|sub|sum|sym_size|tanh|to|transpose|unbind|unsqueeze
    |upsample_bilinear2d|upsample_nearest2d|var|view|where|zeros)_?)\.(\w+)"""
)
_DTYPES = {1: torch.uint8, 4: torch.int32, 5: torch.int64, 6: torch.half, 7: torch.float, 12: torch.bool}
_DTYPES |= {8: torch.double, 13: torch.bfloat16}
_SIZES = {f"_operator.{name}": getattr(operator, name) for name in ("add", "sub", "mul", "floordiv", "mod", "neg")}
_SIZES |= {"torch.sym_max": max, "torch.sym_min": min}
# What an operator is given: the name of a value as a tuple of one, which no setting is.
_ARGUMENTS: dict[str, Callable[[Any], Any]] = {
    "as_none": lambda _: None,
    "as_tensor": lambda value: (value["name"],),
    "as_name": lambda value: (value,),
    **{f"as_{plain.__name__}": plain for plain in (int, float, bool)},
    "as_string": str,
    "as_sym_int": lambda value: _argument(value),
    "as_scalar_type": lambda value: _DTYPES[value],
    "as_layout": lambda _: torch.strided,
    "as_device": lambda _: torch.device("cpu"),
}


def save_pt2(program: ExportedProgram, description: dict[str, Any], path: Path) -> None:
    """Write a program, and take out of it where it was made; raises ``ConfigError`` where torch cannot write it."""
    program._example_inputs = None
    for node in program.graph.nodes:
        node.meta = {key: known for key, known in node.meta.items() if key == "val"}
    try:
        torch.export.save(program, content := io.BytesIO(), extra_files={"sppcls.json": to_json(description)})
    except Exception as error:  # an operator on sizes that torch has no words for
        line = str(error).partition("\n")[0]
        raise ConfigError(f"torch cannot write this network ({line}); use --format safetensors") from error
    write_bytes(path, content.getvalue())


def load_pt2(path: Path) -> tuple[Callable[[Tensor], Tensor], dict[str, Any]]:
    """Return what answers, on the CPU, and the description; raises ``SppclsError`` for more than tensor operators."""
    try:
        with path.open("rb") as file:
            file.seek(-98, io.SEEK_END)  # torch ends an archive with records of 56, 20 and 22 bytes
            if int.from_bytes(file.read()[40:48], "little") > _TEXT_LIMIT // 4:
                raise SppclsError("it lists more members than any network has weights; export it again")
            with zipfile.ZipFile(file) as archive:
                return _read(_members(archive, path.stat().st_size), path)
    except SppclsError as error:
        raise SppclsError(f"{path} is refused: {error}") from None
    except Exception as error:  # damage shows first in a zip, JSON, a key, a type or a tensor
        said = " ".join(f"{type(error).__name__}: {error}".split())
        raise SppclsError(f"{path} is damaged or no program of `sppcls export` ({said[:100]})") from None


def _members(archive: zipfile.ZipFile, size: int) -> dict[str, bytearray]:
    members = archive.infolist()
    if "archive/extra/sppcls.json" not in archive.namelist():
        raise SppclsError("it does not say how to use it; export the model with `sppcls export`")
    longest = max(m.file_size for m in members if m.filename.endswith(".json"))
    if sum(m.file_size for m in members) > size or longest > _TEXT_LIMIT or any(m.compress_type for m in members):
        raise SppclsError("its members overlap, are compressed or describe more than any network; export it again")
    return {member.filename: bytearray(archive.read(member)) for member in members}


def _read(held: dict[str, bytearray], path: Path) -> tuple[Callable[[Tensor], Tensor], dict[str, Any]]:
    description, model = (json.loads(held[f"archive/{name}.json"]) for name in ("extra/sppcls", "models/model"))
    if model["schema_version"]["major"] != 8:
        raise SppclsError(f"torch {model['torch_version'][:20]!r} wrote it, in another schema than 8; export it again")
    weights = _tensors(held, "weights") | _tensors(held, "constants")
    graph, signature = model["graph_module"]["graph"], model["graph_module"]["signature"]
    inputs = [pair for spec in signature["input_specs"] for pair in spec.items()]
    tensors = {spec["arg"]["name"]: weights[spec[f"{kind}_name"]] for kind, spec in inputs if kind != "user_input"}
    ((images,),) = (_argument(spec["arg"]) for kind, spec in inputs if kind == "user_input")
    ((answer,),) = (_argument(spec["user_output"]["arg"]) for spec in signature["output_specs"])
    return _program(path, tensors, images, _steps(graph["nodes"], answer), answer), {**description}


def _program(path: Path, tensors: dict[str, Tensor], given: str, steps: list[Any], answer: str) -> Any:
    def run(images: Tensor) -> Tensor:
        values: dict[str, Any] = {**tensors, given: images}
        try:
            for call, inputs, results, spent in steps:
                made = call(**{name: _filled(value, values) for name, value in inputs.items()})
                values.update(zip(results, made if isinstance(made, list | tuple) else [made], strict=False))
                for name in spent:
                    del values[name]
            return torch.as_tensor(values[answer])
        except Exception as error:  # each operator raises its own
            got, said = f"{list(images.shape)} of {images.dtype}", " ".join(f"{type(error).__name__}: {error}".split())
            raise SppclsError(f"{path} does not take images {got} ({said[:200]})") from None

    return run


def _tensors(held: dict[str, bytearray], kind: str) -> dict[str, Tensor]:
    config, found = json.loads(held[f"archive/data/{kind}/model_{kind}_config.json"])["config"], {}
    for name, entry in config.items():
        if entry["use_pickle"]:
            raise SppclsError(f"it keeps {name[:60]!r} as a pickle, which can run code; numbers are allowed")
        meta = entry["tensor_meta"]
        sizes, strides = ([int(number["as_int"]) for number in meta[key]] for key in ("sizes", "strides"))
        flat = torch.frombuffer(held[f"archive/data/{kind}/{entry['path_name']}"], dtype=_DTYPES[meta["dtype"]])
        found[name] = flat.as_strided(sizes, strides, int(meta["storage_offset"]["as_int"]))
    return found


def _steps(nodes: list[dict[str, Any]], answer: str) -> list[Any]:
    steps, later = [], {answer}
    for node in reversed(nodes):  # from the end, so that each value is let go after its last use
        inputs = {given["name"]: _argument(given["arg"]) for given in node["inputs"]}
        made = _names([_argument(given) for given in node["outputs"]])
        here = {*_names([*inputs.values()]), *made}
        steps.append((_operator(node["target"]), inputs, made, here - later))
        later |= here
    return steps[::-1]


def _operator(target: str) -> Any:
    if target in _SIZES:  # by way of floats: exact for any size, and no product of them fills the memory
        return lambda **sizes: int(_SIZES[target](*map(float, sizes.values())))
    match = _TENSOR_OPERATOR.fullmatch(target)
    if match and match[2] in (packet := getattr(torch.ops.aten, match[1])).overloads():
        return getattr(packet, match[2])
    raise SppclsError(f"it calls {target[:60]!r}; a .pt2 of `sppcls export` calls tensor operators only")


def _argument(given: dict[str, Any]) -> Any:
    ((kind, value),) = given.items()
    one = _ARGUMENTS[kind.removesuffix("s")]
    return [one(part) for part in value] if kind.endswith("s") else one(value)


def _names(value: Any) -> list[str]:
    if isinstance(value, list):
        return [name for part in value for name in _names(part)]
    return [*value] if isinstance(value, tuple) else []


def _filled(value: Any, values: dict[str, Any]) -> Any:
    if isinstance(value, list):
        return [_filled(part, values) for part in value]
    return values[value[0]] if isinstance(value, tuple) else value
