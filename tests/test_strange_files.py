"""Files from strangers: nothing in them runs, and what is wrong with them is said in one line."""

import io
import json
import math
import os
import random
import sys
import time
import zipfile
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper
from torch.export.pt2_archive import PT2ArchiveWriter

from sppcls.deploy.graph import save_pt2
from sppcls.deploy.onnx_file import open_onnx
from sppcls.deploy.runtime import open_model
from sppcls.errors import ConfigError, SppclsError

MODEL = "models/model.json"
CONSTANTS = "data/constants/model_constants_config.json"
PICKLE = {"path_name": "opaque_obj_0", "is_param": False, "use_pickle": True, "tensor_meta": None}
IMAGES = torch.randn(3, 3, 33, 64, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def model(exported):
    return onnx.load(exported / "model.onnx")


def write_pt2(path, members):
    with PT2ArchiveWriter(content := io.BytesIO()) as archive:
        for name, data in members.items():
            if not name.startswith(".data") and name != "byteorder":  # the writer's own
                archive.write_bytes(name, data)
    path.write_bytes(content.getvalue())
    return path


def edited(members, name, change):
    values = json.loads(members[name])
    change(values)
    return members | {name: json.dumps(values).encode()}


def refused(load, path, says=""):
    with pytest.raises(SppclsError) as error:
        load(path)
    line = str(error.value)
    assert line.startswith(str(path))
    assert says in line
    assert "\n" not in line
    assert len(line) < len(str(path)) + 300


class Evil:
    def __init__(self, folder):
        self.folder = str(folder)

    def __reduce__(self):
        return os.mkdir, (self.folder,)


def pickled(canary):
    torch.save(Evil(canary), content := io.BytesIO())
    return content.getvalue()


# --- programs of PyTorch


def trusted(path):
    return open_model(path, trust=True)


def test_a_program_is_refused_that_nobody_vouches_for(exported):
    refused(open_model, exported / "model.pt2", "opening a .pt2 file can run code that it holds; use the safetensors")


def test_a_trusted_program_answers_as_torchs_own_reader_says(exported):
    opened = trusted(exported / "model.pt2")
    whole = torch.export.load(exported / "model.pt2").module()
    images = torch.randint(0, 256, (3, 3, 33, 64), dtype=torch.uint8).numpy()
    with torch.inference_mode():
        want = whole(torch.from_numpy(opened.signature.prepared(images)))
    assert torch.equal(torch.from_numpy(opened.run(images)), want)


def test_a_program_says_nothing_of_where_it_was_made(exported):
    with zipfile.ZipFile(exported / "model.pt2") as archive:
        model, samples = (archive.read(f"archive/{name}") for name in (MODEL, "data/sample_inputs/model.pt"))
    assert all(node["metadata"] == {} for node in json.loads(model)["graph_module"]["graph"]["nodes"])
    assert samples == b""
    assert not any(str(word).encode() in model for word in (sys.prefix, ".py", Path.cwd()))


def test_a_foreign_program_is_refused(tmp_path):
    torch.export.save(torch.export.export(torch.nn.ReLU(), (IMAGES,)), tmp_path / "a.pt2")
    refused(trusted, tmp_path / "a.pt2", "is damaged or not a program of `sppcls export`")


def test_a_program_that_torch_cannot_write_is_one_line(tmp_path):
    class Halves(torch.nn.Module):
        def forward(self, images):
            return images.new_zeros(math.ceil(images.shape[2] / 2))

    program = torch.export.export(Halves(), (IMAGES,), dynamic_shapes=({2: torch.export.Dim.DYNAMIC},))
    with pytest.raises(ConfigError, match=r"^torch cannot write this network \(.*ceil.*\); use --format safetensors$"):
        save_pt2(program, {}, tmp_path / "a.pt2")
    assert not list(tmp_path.iterdir())


def test_images_that_a_program_does_not_take_are_one_line(exported):
    opened = trusted(exported / "model.pt2")
    refused(lambda _: opened.run(np.zeros((1, 3, 0, 8), np.uint8)), exported / "model.pt2", "does not take images")


# --- ONNX


def changed(path, model, change):
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    change(copy)
    path.write_bytes(copy.SerializeToString())
    return path


def external(tensor, place):
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=place)


def add_node(operator, domain="", **attributes):
    node = helper.make_node(operator, ["images"], ["x"], domain=domain, **attributes)
    return lambda model: model.graph.node.append(node)


BRANCH = helper.make_graph([helper.make_node("Identity", ["images"], ["y"])], "b", [], [])
SECRET = helper.make_tensor("t", TensorProto.FLOAT, [1], [1.0])
external(SECRET, "secret")


def _described(model):
    return next(entry for entry in model.metadata_props if entry.key == "sppcls")


STRANGE = {
    "file": (lambda model: external(model.graph.initializer[0], "secret"), "external data"),
    "absolute": (lambda model: external(model.graph.initializer[0], "/etc/hostname"), "external data"),
    "memory": (lambda model: external(model.graph.initializer[0], "*/_ORT_MEM_ADDR_/*"), "external data"),
    "location": (lambda model: setattr(model.graph.initializer[0], "data_location", 1), "field 14 of TensorProto"),
    "attribute": (add_node("Constant", value=SECRET), "field 5 of AttributeProto"),
    "sparse": (lambda model: model.graph.sparse_initializer.add(), "field 15 of GraphProto"),
    "function": (lambda model: model.functions.add(name="f", domain="d"), "functions"),
    "training": (lambda model: model.training_info.add(), "field 20 of ModelProto"),
    "branch": (add_node("If", then_branch=BRANCH, else_branch=BRANCH), "calls b'If'"),
    "subgraph": (add_node("Relu", body=BRANCH), "a subgraph"),
    "loop": (add_node("Loop"), "calls b'Loop'"),
    "decoder": (add_node("ImageDecoder"), "calls b'ImageDecoder'"),
    "custom": (add_node("Relu", domain="com.microsoft"), "calls b'com.microsoft'"),
    "context": (add_node("EPContext", domain="com.microsoft", ep_cache_context="secret"), "calls b'EPContext'"),
    "strings": (lambda model: model.graph.initializer.add(string_data=[b"x"]), "field 6 of TensorProto"),
    "text": (lambda model: setattr(model, "doc_string", "x" * (5 << 20)), "more than 4 MB besides weights"),
    "many": (lambda model: model.graph.node.extend([helper.make_node("Relu", [""], [""])] * 10**5), "more than 4 MB"),
    "foreign": (lambda model: model.ClearField("metadata_props"), "has no usage metadata"),
    "no JSON": (lambda model: setattr(_described(model), "value", "{"), "JSONDecodeError"),
    "list": (lambda model: setattr(_described(model), "value", "[]"), "damaged"),
    "deep JSON": (lambda model: setattr(_described(model), "value", "[" * 10**6), "RecursionError"),
    "shape": (lambda model: model.graph.initializer[0].dims.append(1 << 28), "damaged"),
    "input": (lambda model: setattr(model.graph.input[0], "name", "x"), "damaged"),
    "no graph": (lambda model: model.ClearField("graph"), "damaged"),
}


@pytest.mark.parametrize(("change", "says"), STRANGE.values(), ids=STRANGE)
def test_a_model_holds_weights_and_tensor_operators_only(tmp_path, monkeypatch, capfd, model, change, says):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "secret").write_bytes(bytes(1 << 20))
    refused(open_onnx, changed(tmp_path / "a.onnx", model, change), says)
    assert capfd.readouterr() == ("", "")


def test_other_files_are_refused_that_onnxruntime_reads(tmp_path, monkeypatch):
    """Of a model that is given as bytes, too."""
    import onnxruntime

    monkeypatch.chdir(tmp_path)
    (tmp_path / "secret").write_bytes(np.full(256, 7, np.float32).tobytes())
    weights = onnx.numpy_helper.from_array(np.zeros(256, np.float32), "w")
    external(weights, "secret")
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [256]) for name in ("images", "y")]
    graph = helper.make_graph([helper.make_node("Add", ["images", "w"], ["y"])], "g", ends[:1], ends[1:], [weights])
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    (tmp_path / "a.onnx").write_bytes(made.SerializeToString())
    session = onnxruntime.InferenceSession(made.SerializeToString(), providers=["CPUExecutionProvider"])
    assert session.run(None, {"images": np.zeros(256, np.float32)})[0].max() == 7
    refused(open_onnx, tmp_path / "a.onnx", "external data")


def test_nothing_is_computed_while_a_model_is_opened(tmp_path, model):
    """Where constants are folded, this one takes 8 GB."""

    def fold(model):
        for name, value in (("from", 0), ("to", 1 << 30), ("step", 1)):
            model.graph.initializer.append(onnx.numpy_helper.from_array(np.array(value), name))
        model.graph.node.append(helper.make_node("Range", ["from", "to", "step"], ["many"]))
        model.graph.node.append(helper.make_node("ReduceSum", ["many"], ["sum"]))
        model.graph.output[0].CopyFrom(helper.make_tensor_value_info("sum", TensorProto.INT64, None))

    start = time.perf_counter()
    open_onnx(changed(tmp_path / "a.onnx", model, fold))
    assert time.perf_counter() - start < 5


def test_a_model_that_looks_like_another_format_is_read_as_onnx(tmp_path, exported):
    good = (exported / "model.onnx").read_bytes()
    (tmp_path / "a.onnx").write_bytes(b"\x12\x06xxORTM" + good)
    session, _ = open_onnx(tmp_path / "a.onnx")
    want = open_onnx(exported / "model.onnx")[0].run(None, {"images": IMAGES.numpy()})[0]
    np.testing.assert_array_equal(session.run(None, {"images": IMAGES.numpy()})[0], want)


@pytest.mark.parametrize(
    "content",
    [b"\xff" * 30, b"\x3a\xff\xff\xff\xff\x0f", b"\x3b", b"\x3c", b"\x3a\x01\x0a", b"\x3a" + b"\x80" * 9 + b"\x02"],
)
def test_damaged_numbers_and_lengths_are_one_line(tmp_path, content):
    (tmp_path / "a.onnx").write_bytes(content)
    refused(open_onnx, tmp_path / "a.onnx")


def test_without_onnxruntime_one_line_says_what_to_install(exported, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ConfigError, match="needs an extra: uv run --extra onnx "):
        open_onnx(exported / "model.onnx")


# --- both


@pytest.mark.parametrize("content", [b"", b"hello\n", b"PK\x03\x04", bytes(200), b"PK\x05\x06" + bytes(18)])
@pytest.mark.parametrize(("load", "name"), [(trusted, "a.pt2"), (open_onnx, "a")])
def test_what_is_no_model_is_one_line(tmp_path, load, name, content):
    (tmp_path / name).write_bytes(content)
    refused(load, tmp_path / name)


@pytest.mark.parametrize("name", ["model.pt2", "model.onnx"])
def test_cut_files_are_one_line(tmp_path, exported, name):
    good, rng = (exported / name).read_bytes(), random.Random(0)
    for length in (1, 97, 98, len(good) - 99, len(good) - 1, *(rng.randrange(len(good)) for _ in range(20))):
        (tmp_path / name).write_bytes(good[:length])
        refused(trusted if name == "model.pt2" else open_onnx, tmp_path / name)


def test_a_model_of_flipped_bytes_opens_or_says_one_line(tmp_path, exported, model, capfd):
    good, rng, path, outcomes = (exported / "model.onnx").read_bytes(), random.Random(0), tmp_path / "a.onnx", set()
    operators = good.index(model.graph.initializer[0].raw_data)
    for _ in range(100):
        data = bytearray(good)
        data[rng.choice([rng.randrange(operators), -1 - rng.randrange(3000)])] = rng.randrange(256)
        path.write_bytes(data)
        try:
            open_onnx(path)
            outcomes.add("opens")
        except SppclsError as error:
            outcomes.add(str(error).removeprefix(str(path)))
    assert "opens" in outcomes
    assert len(outcomes) > 9
    assert not any("\n" in said for said in outcomes)
    assert capfd.readouterr() == ("", "")
