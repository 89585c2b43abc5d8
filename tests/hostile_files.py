"""Hostile checkpoints, weights and exports, and hostile values in them."""

import json
import os
import struct
import warnings
import zipfile

import onnx
import torch
from hostile_pickles import DEMANDS, HUGE, OPCODES, REFUSED, archive, old, state, tar
from safetensors.torch import save_file
from test_strange_files import CONSTANTS, PICKLE, add_node, changed, edited, external, pickled, write_pt2

from sppcls.model_files import KEY

DIGITS = "1" * 27_000
OBJ = OPCODES["OBJ"]


def written(content):
    """Return a maker of a file of this content."""
    return lambda path, canary: path.write_bytes(content.replace(b"CANARY", str(canary).encode())) and None


def pickles(corpus):
    for name, make in OPCODES.items():
        corpus.add(f"{name} in an archive", "load", lambda p, c, m=make: archive(p, m(c)), REFUSED)
    for name in ("GLOBAL and REDUCE", "EXT"):
        make = OPCODES[name]
        bare = lambda p, c, m=make: p.write_bytes(m(c)) and None  # noqa: E731
        corpus.add(f"{name} bare", "predict", bare, REFUSED, corpus.image)
        corpus.add(f"{name} of old torch", "weights", lambda p, c, m=make: old(p, m(c)), REFUSED, file="a.pth")
    corpus.add("legacy tar", "load", lambda p, c: tar(p, OBJ(c)), "is damaged|is not a checkpoint")
    for name, says in (
        ("constants.pkl", REFUSED),
        ("byteorder", "is damaged|is not a checkpoint"),
        ("DATA.PKL", REFUSED),
    ):
        corpus.add(f"pickle as {name}", "load", lambda p, c, n=name: archive(p, state(), **{n: OBJ(c)}), says)
    corpus.add("file in a file", "load", lambda p, c: torch.save({"state_dict": {}, KEY: OBJ(c)}, p), REFUSED)
    for name, (content, says) in DEMANDS.items():
        make = lambda p, _, d=content: archive(p, d, **{"data/0": bytes(4)})  # noqa: E731
        corpus.add(f"{name} in an archive", "load", make, says)
    make = lambda p, _: archive(p, DEMANDS["set of views"][0], **{"data/0": bytes(4)})  # noqa: E731
    corpus.add("set of views as weights", "weights", make, REFUSED, file="a.pth")


def _script(path, _):
    with warnings.catch_warnings(action="ignore"):
        torch.jit.save(torch.jit.script(torch.nn.ReLU()), path)


def _bomb(path, _):
    with (
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as file,
        file.open("a/data.pkl", "w") as member,
    ):
        for _ in range(128):
            member.write(bytes(8 << 20))


def _bomb_of_torch(path, _):
    _bomb(path, _)
    data = path.read_bytes()
    length, start = struct.unpack("<II", data[-10:-2])
    whole = struct.pack("<4sQ2H2I4Q", b"PK\6\6", 44, 45, 45, 0, 0, 1, 1, length, start)
    path.write_bytes(data[:-22] + whole + struct.pack("<4sIQI", b"PK\6\7", 0, start + length, 1) + data[-22:])


def _lying(at):
    """Return a maker of a good file of torch of which a number at its end lies."""

    def make(path, _):
        torch.save({"state_dict": {"network.x": torch.zeros(4)}}, path)
        data = bytearray(path.read_bytes())
        data[at : at + 8] = struct.pack("<Q", HUGE)
        path.write_bytes(data)

    return make


def archives(corpus):
    corpus.add("TorchScript", "load", _script, REFUSED)
    corpus.add("zip bomb", "load", _bomb, "is damaged|is not a checkpoint")
    corpus.add("zip bomb that ends as torch's files", "load", _bomb_of_torch, "compressed")
    for name, at in (("directory", -50), ("records", -66)):
        corpus.add(f"lying {name}", "load", _lying(at), "is refused|is damaged|is not a checkpoint")
    corpus.add("endless device", "load", lambda p, _: p.symlink_to("/dev/zero"), "no checkpoints")
    corpus.add("pipe", "evaluate", lambda p, _: os.mkfifo(p), "no checkpoints", "--data", corpus.root)
    corpus.add("loop of links", "load", lambda p, _: p.symlink_to(p), "no model at")


def _header(values, length=None):
    content = values if isinstance(values, bytes) else json.dumps(values).encode()
    return struct.pack("<Q", len(content) if length is None else length) + content


def _tensor(start, end, shape=(1,), kind="F32"):
    return {"dtype": kind, "shape": list(shape), "data_offsets": [start, end]}


SAFETENSORS = {
    "header of 4 EB": _header(b"{}", 1 << 62),
    "header of 90 MB": _header(b" " * 10, 90 << 20),
    "end beyond the file": _header({"a": _tensor(0, HUGE, (HUGE // 4,))}) + bytes(4),
    "product of sizes": _header({"a": _tensor(0, 4, (1 << 62, 1 << 62))}) + bytes(4),
    "deep header": _header(b"[" * 100_000),
    "pickle": OBJ("CANARY"),
}


def safetensors(corpus):
    for name, content in SAFETENSORS.items():
        corpus.add(f"safetensors, {name}", "load", written(content), "not a safetensors", file="a.safetensors")
    content = SAFETENSORS["header of 4 EB"]
    corpus.add("safetensors as weights", "weights", written(content), "not a valid", file="a.safetensors")
    for name, said in {"deep": "[" * 100_000, "digits": f'{{"schema": {DIGITS}}}'}.items():
        make = lambda p, _, s=said: save_file({"a": torch.zeros(1)}, p, {KEY: s})  # noqa: E731
        corpus.add(f"safetensors, {name} as metadata", "load", make, "not a safetensors", file="a.safetensors")


MODELS = (
    ("hidden", {"hidden": [10**12]}, "hidden.*65536"),
    ("hidden layers", {"hidden": [50_000] * 2}, "do not match"),
    ("many hidden layers", {"hidden": [1] * 10**6}, "hidden"),
    ("width", {"backbone": "overfeat7", "width": 8}, "do not match"),
    ("module path", {"backbone": "torchvision.models.resnet18"}, "unknown"),
    ("hub", {"backbone": "timm:hf-hub:evil/evil"}, "unknown to timm"),
    ("long name", {"backbone": "x" * 10**7}, "backbone"),
    ("lines", {"back\n\x1b[2Jbone": 1}, "unknown key"),
    ("_target_", {"_target_": "os.mkdir", "path": "canary"}, "_target_"),
)
RUNNING = {
    "_instantiator": "os.mkdir",
    "_class_path": "os.mkdir",
    "path": "CANARY",
    "_target_": "os.mkdir",
}
HYPER = {
    "hyper_parameters": RUNNING,
    "datamodule_hyper_parameters": RUNNING,
    "hparams_name": "eval",
    "hparams_type": "os",
}


def _hyper(model, canary):
    return model | json.loads(json.dumps(HYPER).replace("CANARY", str(canary)))


def descriptions(corpus):
    model, known = (corpus.model[KEY][name] for name in ("model", "signature"))
    for name, changes, says in MODELS:
        corpus.add(f"described {name}", "load", corpus.described(model=model | changes), says)
    for key, value in (("classes", list(map(str, range(10**5)))), ("scales", [10**5000])):
        corpus.add(f"described {key}", "predict", corpus.described(signature=known | {key: value}), "", corpus.image)
    far = {"name": "cifar10", "root": str(corpus.canaries / "download"), "download": True}
    make = corpus.described(spec={"data": far})
    corpus.add("spec that downloads", "evaluate", make, "no such folder", names="data.root")
    for name, data in (("size", {"train_size": HUGE}), ("_target_", {"_target_": "os.mkdir"})):
        corpus.add(f"spec, {name}", "evaluate", corpus.described(spec={"data": data}), "data[.](train_size|_target_)")
    why = "hyper-parameters are not read"
    corpus.add("hyper-parameters", "load", lambda p, c: torch.save(_hyper(corpus.model, c), p), harmless=why)
    names = ["\x1b[2J", "<script>alert(1)</script>", "a\nb"]
    make = corpus.described(signature=known | {"classes": names})
    corpus.add("class names", "predict", make, "", corpus.image, harmless="names are shown without what commands")


def _secret(place):
    def make(path, model):
        (path.parent / "secret").write_bytes(bytes(1 << 20))
        return changed(path, model, lambda m: external(m.graph.initializer[0], place))

    return make


ONNX = {
    "external data": (_secret("secret"), "external data"),
    "external data above": (_secret("../../secret"), "external data"),
    "external data anywhere": (_secret("/etc/passwd"), "external data"),
    "external data in memory": (_secret("*/_ORT_MEM_ADDR_/*"), "external data"),
    "custom operator": (lambda p, m: changed(p, m, add_node("Relu", domain="com.evil")), "calls b'com.evil'"),
    "long text": (lambda p, m: changed(p, m, lambda m: setattr(m, "doc_string", "x" * (5 << 20))), "more than 4 MB"),
}


def _pickled(path, canary, members):
    """Write a program with a constant that makes a folder when it is unpickled."""
    evil = members | {"data/constants/opaque_obj_0": pickled(canary)}
    write_pt2(path, edited(evil, CONSTANTS, lambda values: values["config"].update(x=PICKLE)))


def exports(corpus):
    model = onnx.load(corpus.exported / "model.onnx")
    for name, (make, says) in ONNX.items():
        maker = lambda p, _, m=make: m(p, model)  # noqa: E731
        corpus.add(f"ONNX, {name}", "predict", maker, says, corpus.image, file="a.onnx")
    with zipfile.ZipFile(corpus.exported / "model.pt2") as file:
        members = {name.removeprefix("archive/"): file.read(name) for name in file.namelist()}
    maker = lambda path, canary: _pickled(path, canary, members)  # noqa: E731
    corpus.add("program, pickled constant", "predict", maker, "can run code", corpus.image, file="a.pt2")
