"""Files from strangers: nothing in them runs, and what is wrong with them is said in one line."""

import contextlib
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

from sppcls.deploy.onnx_file import open_onnx
from sppcls.deploy.pt2_file import load_pt2, save_pt2
from sppcls.errors import ConfigError, SppclsError

MODEL, WEIGHTS = "models/model.json", "data/weights/model_weights_config.json"
CONSTANTS = "data/constants/model_constants_config.json"
PICKLE = {"path_name": "opaque_obj_0", "is_param": False, "use_pickle": True, "tensor_meta": None}
RELU = "torch.ops.aten.relu.default"
IMAGES = torch.randn(3, 3, 33, 64, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def canary(tmp_path):
    """A folder that code in a file would make."""
    yield tmp_path / "canary"
    assert not (tmp_path / "canary").exists()


@pytest.fixture(scope="module")
def members(exported):
    with zipfile.ZipFile(exported / "model.pt2") as archive:
        return {name.removeprefix("archive/"): archive.read(name) for name in archive.namelist()}


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


def test_a_program_answers_as_torchs_own_reader_says(exported):
    program, description = load_pt2(exported / "model.pt2")
    whole = torch.export.load(exported / "model.pt2").module()
    assert description["signature"]["classes"] == ["cat", "dog", "emu"]
    for images in (IMAGES, IMAGES[:1], torch.zeros(2, 3, 96, 40)):
        assert torch.equal(program(images), whole(images))


def test_a_program_says_nothing_of_where_it_was_made(members):
    nodes = json.loads(members[MODEL])["graph_module"]["graph"]["nodes"]
    assert all(node["metadata"] == {} for node in nodes)
    assert members["data/sample_inputs/model.pt"] == b""
    assert not any(str(word).encode() in members[MODEL] for word in (sys.prefix, ".py", Path.cwd()))


def call(target, *given):
    """Return a change: the first operator is another, with these arguments."""

    def change(model):
        node = model["graph_module"]["graph"]["nodes"][0]
        node["target"] = target
        node["inputs"] = [{"name": str(n), "arg": arg, "kind": 1} for n, arg in enumerate(given)]

    return change


def weight(**values):
    def change(weights):
        next(iter(weights["config"].values())).update(values)

    return change


def meta(key, value):
    def change(weights):
        next(iter(weights["config"].values()))["tensor_meta"][key] = value

    return change


def spec(kind, place="input_specs"):
    def change(model):
        strange = {"arg": {"name": "x", "class_fqn": "y"}, f"{kind}_name": "z"}
        model["graph_module"]["signature"][place][0] = {kind: strange}

    return change


CALLS = [
    ("torch.load", {"as_string": "{canary}"}),
    ("torch.hub.load", {"as_string": "{canary}"}),
    ("torch.ops.aten.from_file.default", {"as_string": "{canary}"}),
    ("torch.ops.aten.set_.source_Storage", {"as_none": True}),
    ("torch.ops.aten.empty.memory_format", {"as_ints": [9]}),
    ("torch.ops.aten.add.__class__", {"as_int": 1}),
    ("torch.ops.aten.add.Tensor.__class__", {"as_int": 1}),
    ("torch.ops.higher_order.cond", {"as_bool": True}),
    ("torch.ops.mkldnn._linear_pointwise.default", {"as_none": True}),
    ("_operator.methodcaller", {"as_string": "mkdir"}),
    ("_operator.__builtins__.exec", {"as_string": "import os"}),
    ("math.__loader__.load_module", {"as_string": "os"}),
    ("#custom:op", {"as_none": True}),
    ("", {"as_none": True}),
]


@pytest.mark.parametrize(("target", "given"), CALLS, ids=[target for target, _ in CALLS])
def test_a_program_calls_tensor_operators_only(tmp_path, canary, members, target, given):
    given = json.loads(json.dumps(given).replace("{canary}", str(canary)))
    path = write_pt2(tmp_path / "a.pt2", edited(members, MODEL, call(target, given)))
    refused(load_pt2, path, "; a .pt2 of `sppcls export` calls tensor operators only")


FORMS = {
    "outside": (WEIGHTS, weight(path_name="../../models/model.json"), "damaged"),
    "nothing": (WEIGHTS, weight(path_name="weight_999"), "damaged"),
    "larger": (WEIGHTS, meta("sizes", [{"as_int": 1 << 40}] * 4), "damaged"),
    "negative": (WEIGHTS, meta("strides", [{"as_int": -1}] * 4), "damaged"),
    "beyond": (WEIGHTS, meta("storage_offset", {"as_int": 1 << 40}), "damaged"),
    "lists": (WEIGHTS, meta("sizes", [{"as_int": [0]}, {"as_int": 1 << 40}]), "damaged"),
    "symbolic": (WEIGHTS, meta("sizes", [{"as_expr": {"expr_str": "print(1)"}}]), "damaged"),
    "dtype": (WEIGHTS, meta("dtype", 99), "damaged"),
    "object": (MODEL, call(RELU, {"as_custom_obj": {"name": "x", "class_fqn": "y"}}), "as_custom_obj"),
    "operator": (MODEL, call(RELU, {"as_operator": "torch.load"}), "as_operator"),
    "graph": (MODEL, call(RELU, {"as_graph": {"name": "x", "graph": {}}}), "as_graph"),
    "object input": (MODEL, spec("custom_obj"), "damaged"),
    "token input": (MODEL, spec("token"), "damaged"),
    "mutation": (MODEL, spec("buffer_mutation", "output_specs"), "damaged"),
    "schema": (MODEL, lambda model: model["schema_version"].update(major=9), "another schema than 8; export it again"),
    "empty": (MODEL, lambda model: model.clear(), "damaged"),
}


@pytest.mark.parametrize(("name", "change", "says"), FORMS.values(), ids=FORMS)
def test_a_program_of_another_form_is_refused(tmp_path, members, name, change, says):
    refused(load_pt2, write_pt2(tmp_path / "a.pt2", edited(members, name, change)), says)


def test_a_pickle_is_refused_that_torchs_own_reader_runs(tmp_path, canary, members):
    path = tmp_path / "a.pt2"
    evil = members | {"data/constants/opaque_obj_0": pickled(canary)}
    write_pt2(path, edited(evil, CONSTANTS, lambda values: values["config"].update(x=PICKLE)))
    refused(load_pt2, path, "as a pickle, which can run code")
    write_pt2(path, edited(members, WEIGHTS, weight(use_pickle=True)) | {"data/weights/weight_0": pickled(canary)})
    refused(load_pt2, path, "as a pickle, which can run code")
    assert not canary.exists()
    with contextlib.suppress(Exception):
        torch.export.load(path)
    canary.rmdir()


UNREAD = {
    "expression": (lambda code: lambda model: first_size(model)["as_expr"].update(expr_str=code), True),
    "guard": (lambda code: lambda model: model.update(guards_code=[code]), False),
    "origin": (lambda code: lambda model: model["graph_module"].update(metadata={"custom": code}), False),
    "ranges": (
        lambda code: lambda model: model["range_constraints"].update({code: {"min_val": 10**9, "max_val": 0}}),
        False,
    ),
    "call": (lambda code: lambda model: model["graph_module"].update(module_call_graph=[{"fqn": code}]), False),
}


def first_size(model):
    return next(iter(model["graph_module"]["graph"]["sym_int_values"].values()))


@pytest.mark.parametrize(("change", "runs"), UNREAD.values(), ids=UNREAD)
def test_what_no_answer_needs_is_not_read(tmp_path, canary, exported, members, change, runs):
    code = f"__import__('os').mkdir({str(canary)!r})"
    path = write_pt2(tmp_path / "a.pt2", edited(members, MODEL, change(code)))
    program, _ = load_pt2(path)
    assert torch.equal(program(IMAGES), load_pt2(exported / "model.pt2")[0](IMAGES))
    assert not canary.exists()
    if runs:  # the attack is one
        with contextlib.suppress(Exception):
            torch.export.load(path)
        canary.rmdir()


def test_members_that_a_program_does_not_name_are_not_opened(tmp_path, canary, members):
    names = ("weights/model.pt", "constants/model.pt", "sample_inputs/model.pt", "aotinductor/model/a.so")
    more = {f"data/{name}": pickled(canary) for name in names}
    program, _ = load_pt2(write_pt2(tmp_path / "a.pt2", members | more))
    assert program(IMAGES).shape == (3, 3)


def test_sizes_that_an_archive_lies_about_are_refused(tmp_path, exported):
    good = (exported / "model.pt2").read_bytes()
    entry = good.rindex(b"archive/data/weights/weight_0") - 46
    path = tmp_path / "a.pt2"
    for place, value, says in (
        (entry + 10, (8).to_bytes(2, "little"), "compressed"),
        (entry + 24, (1 << 31).to_bytes(4, "little"), "overlap"),
        (len(good) - 58, (1 << 40).to_bytes(8, "little"), "more members"),
    ):
        path.write_bytes(good[:place] + value + good[place + len(value) :])
        refused(load_pt2, path, says)


def test_text_of_any_length_is_refused_before_it_is_parsed(tmp_path, members):
    path = write_pt2(tmp_path / "a.pt2", members | {MODEL: b"[" * (17 << 20)})
    refused(load_pt2, path, "describe more than any network")
    refused(load_pt2, write_pt2(path, members | {MODEL: b"[" * (1 << 20)}), "RecursionError")


def test_products_of_sizes_do_not_fill_the_memory(tmp_path, members):
    def squares(model):
        nodes = model["graph_module"]["graph"]["nodes"]
        for n in range(64):
            factor = {"as_sym_int": {"as_name": f"p{n - 1}"}} if n else {"as_int": 1 << 60}
            inputs = [{"name": name, "arg": factor, "kind": 1} for name in ("a", "b")]
            made = [{"as_sym_int": {"as_name": f"p{n}"}}]
            nodes.insert(n, {"target": "_operator.mul", "inputs": inputs, "outputs": made})

    program, _ = load_pt2(write_pt2(tmp_path / "a.pt2", edited(members, MODEL, squares)))
    refused(lambda _: program(IMAGES), tmp_path / "a.pt2", "OverflowError")


def test_a_foreign_program_is_refused(tmp_path):
    program = torch.export.export(torch.nn.Flatten(), (IMAGES,))
    torch.export.save(program, tmp_path / "a.pt2")
    refused(load_pt2, tmp_path / "a.pt2", "does not say how to use it; export the model with `sppcls export`")


def test_a_program_that_torch_cannot_write_is_one_line(tmp_path):
    class Halves(torch.nn.Module):
        def forward(self, images):
            return images.new_zeros(math.ceil(images.shape[2] / 2))

    program = torch.export.export(Halves(), (IMAGES,), dynamic_shapes=({2: torch.export.Dim.DYNAMIC},))
    with pytest.raises(ConfigError, match=r"^torch cannot write this network \(.*ceil.*\); use --format safetensors$"):
        save_pt2(program, {}, tmp_path / "a.pt2")
    assert not list(tmp_path.iterdir())


def test_images_that_a_program_does_not_take_are_one_line(exported):
    path = exported / "model.pt2"
    program, _ = load_pt2(path)
    for images in (torch.zeros(1, 4, 33, 33), torch.zeros(1, 3, 33, 33, dtype=torch.uint8), torch.zeros(3)):
        refused(lambda _, images=images: program(images), path, f"does not take images {list(images.shape)}")


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
    "foreign": (lambda model: model.ClearField("metadata_props"), "does not say how to use it"),
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
@pytest.mark.parametrize("load", [load_pt2, open_onnx])
def test_what_is_no_model_is_one_line(tmp_path, load, content):
    (tmp_path / "a").write_bytes(content)
    refused(load, tmp_path / "a")


@pytest.mark.parametrize("name", ["model.pt2", "model.onnx"])
def test_cut_files_are_one_line(tmp_path, exported, name):
    good, rng = (exported / name).read_bytes(), random.Random(0)
    for length in (1, 97, 98, len(good) - 99, len(good) - 1, *(rng.randrange(len(good)) for _ in range(20))):
        (tmp_path / name).write_bytes(good[:length])
        refused(load_pt2 if name == "model.pt2" else open_onnx, tmp_path / name)


def test_a_program_of_flipped_bytes_answers_or_says_one_line(tmp_path, members):
    rng, path, outcomes = random.Random(0), tmp_path / "a.pt2", set()
    for _ in range(100):
        name = rng.choice([MODEL, MODEL, WEIGHTS])
        data = bytearray(members[name])
        data[rng.randrange(len(data))] = rng.choice(b'0123456789{}[]",:xa_\x00\xff')
        write_pt2(path, members | {name: bytes(data)})
        try:
            load_pt2(path)[0](IMAGES)
            outcomes.add("answers")
        except SppclsError as error:
            outcomes.add(str(error).removeprefix(str(path)))
    assert "answers" in outcomes
    assert len(outcomes) > 9
    assert not any("\n" in said for said in outcomes)


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
