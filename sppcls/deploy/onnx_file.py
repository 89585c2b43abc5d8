"""Opens untrusted ONNX files without reading other files and without computing anything.

onnxruntime reads the files that a model names, computes its constants of any size, and takes formats other than ONNX.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sppcls.errors import SppclsError, missing_extra

_TEXT_LIMIT = 4 << 20  # of everything but weights; DenseNet-121 has 0.5 MB; much more takes minutes to open
# Fields of the messages of onnx.proto: settings, and messages. External data, subgraphs and functions are not included.
_FIELDS: dict[str, tuple[set[int], dict[int, str]]] = {
    "Model": ({1, 2, 3, 4, 5, 6, 8, 14}, {7: "Graph"}),
    "Graph": ({2, 10, 11, 12, 13, 16}, {1: "Node", 5: "Tensor"}),
    "Node": ({1, 2, 3, 4, 6, 7, 9}, {5: "Attribute"}),
    "Attribute": ({1, 2, 3, 4, 7, 8, 13, 20}, {}),
    "Tensor": ({1, 2, 8, 9, 12, 16}, {}),
    "StringStringEntry": ({1, 2}, {}),
}
_WORDS = {("Tensor", 13): "external data", ("Model", 25): "functions", ("Attribute", 6): "a subgraph"}
_OPERATOR = re.compile(
    rb"(Average|Max|MaxRoi|GlobalAverage|GlobalMax)Pool|(Batch|Group|Layer)Normalization|(Hard)?(Sigmoid|Swish)"
    rb"|(Less|Greater)(OrEqual)?|(Leaky|P)?Relu|Abs|Add|And|Cast|Ceil|Clip|Concat|Constant(OfShape)?|Conv|Cos|CumSum"
    rb"|DequantizeLinear|Div|Dropout|Elu|Equal|Erf|Exp|Expand|Flatten|Floor|Gather|Gelu|Gemm|Identity|LRN|Log|MatMul|Max|Min|Mish|Mod"
    rb"|Mul|Neg|Not|Or|Pad|Pow|QuantizeLinear|Range|Reciprocal|Reduce(L2|Max|Mean|Min|Sum)|Reshape|Resize|Selu|Shape|Sin|Slice|Softmax"
    rb"|Split|Sqrt|Squeeze|Sub|Sum|Tanh|Tile|Transpose|Unsqueeze|Where"
)
_INPUTS = (["images"], ["images", "boxes", "image"])
_KNOWN = {("Node", 4): _OPERATOR, ("Node", 7): re.compile(rb"(ai\.onnx)?")}


def open_onnx(path: Path) -> tuple[Any, dict[str, object]]:
    """Return an ``InferenceSession`` on the CPU that takes ``images``, and the description.

    Raises:
        ConfigError: onnxruntime is not installed.
        SppclsError: The file is damaged, not from this package, or needs more than operators on tensors.
    """
    try:
        import onnxruntime  # type: ignore[import-untyped]
    except ImportError:
        raise missing_extra(str(path), "onnx") from None
    onnxruntime.set_default_logger_severity(4)  # errors are reported as one line here
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.load_model_format", "ONNX")  # or it guesses from the bytes
    settings = {"providers": ["CPUExecutionProvider"], "disabled_optimizers": ["ConstantFolding"], "enable_fallback": 0}
    try:
        if path.stat().st_size >> 31:
            raise SppclsError("it is larger than 2 GB; export it as safetensors")
        description = _description(memoryview(content := path.read_bytes()))
        session = onnxruntime.InferenceSession(content, options, **settings)
        if [given.name for given in session.get_inputs()] not in _INPUTS or len(session.get_outputs()) != 1:
            raise SppclsError("its inputs or outputs are not images and one answer; use `sppcls export`")
    except SppclsError as error:
        raise SppclsError(f"{path} is refused: {error}") from None
    except Exception as error:  # damage can show in a length, JSON or one of onnxruntime's checks
        said = " ".join(f"{type(error).__name__}: {error}".split())
        raise SppclsError(f"{path} is damaged or not written by `sppcls export` ({said[:200]})") from None
    return session, description


def _description(model: memoryview) -> dict[str, object]:
    found, spent = dict[bytes, bytes](), 0
    for message, number, content in _walk(model, "Model"):
        spent += 16 if (message, number) in (("Model", 7), ("Graph", 5), ("Tensor", 9)) else 16 + len(content)
        if spent > _TEXT_LIMIT:
            raise SppclsError(f"it has more than {_TEXT_LIMIT >> 20} MB besides weights; export it again")
        if (message, number) in _KNOWN and not _KNOWN[message, number].fullmatch(content):
            raise SppclsError(f"it calls {bytes(content[:60])!r}; `sppcls export` writes only tensor operators of ONNX")
        if (message, number) == ("Model", 14):
            entry = {part: bytes(text) for _, part, text in _walk(content, "StringStringEntry")}
            found[entry[1]] = entry[2]
    if b"sppcls" not in found:
        raise SppclsError("it has no usage metadata; export the model with `sppcls export`")
    return {**json.loads(found[b"sppcls"])}


def _walk(data: memoryview, message: str) -> Iterator[tuple[str, int, memoryview]]:
    settings, messages = _FIELDS[message]
    at = 0
    while at < len(data):
        key, start = _varint(data, at)
        number, wire = divmod(key, 8)
        if number not in settings and number not in messages:
            what = _WORDS.get((message, number), f"field {number} of {message}Proto")
            raise SppclsError(f"it contains {what}; `sppcls export` writes only weights and tensor operators of ONNX")
        if wire == 2:
            length, start = _varint(data, start)
        else:
            length = {1: 8, 5: 4}[wire] if wire else _varint(data, start)[1] - start
        at = start + length
        if at > len(data):
            raise EOFError("a field ends after its message")
        yield message, number, data[start:at]
        if number in messages:
            yield from _walk(data[start:at], messages[number])


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 64, 7):
        value |= (data[at] & 127) << shift
        at += 1
        if data[at - 1] < 128:
            return value, at
    raise ValueError("a number of more than 64 bits")
