"""``sppcls quantize``: quantize an ONNX export to 8 bits and compare its accuracy with the original's."""

import logging
import tempfile
from argparse import ArgumentParser, Namespace
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from rich.table import Table

from sppcls.commands.arguments import at_least, path_text, writing
from sppcls.data.catalog import load_splits
from sppcls.data.source import Source
from sppcls.deploy.predict import predict
from sppcls.deploy.runtime import Floats, Images, Runtime, open_model
from sppcls.errors import ConfigError, SppclsError, missing_extra
from sppcls.files import checked_path
from sppcls.terminal import show, table

if TYPE_CHECKING:
    from sppcls.measure.evaluate import Evaluated

_LAYERS = ["Conv", "Gemm", "MatMul"]


def run(given: Namespace) -> int:
    """Write the 8-bit file, and show both accuracies on the validation images.

    Raises:
        ConfigError: Not an ONNX export, or an ``--out`` that already exists.
        DataError: Images that cannot be read, or that have other classes.
        SppclsError: The graph cannot be quantised.
    """
    from sppcls.measure.evaluate import Options, evaluate, mapped

    file = checked_path(given.model, "model")
    if file.suffix != ".onnx" or not file.is_file():
        raise ConfigError(f"{file} is not an ONNX file; write one with sppcls export MODEL --format onnx")
    small = checked_path(given.out, "--out") if given.out else file.with_name(f"{file.stem}-int8.onnx")
    if small.suffix != ".onnx":
        raise ConfigError(f"--out {small}: the name must end in .onnx")
    if small.exists():
        raise ConfigError(f"{small} already exists; remove it, or name another file with --out")
    opened = open_model(file)
    splits = load_splits("table" if Path(given.data).is_file() else "folder", given.data, on_error="skip")
    source = mapped(splits.train, opened.signature.classes, given.data)
    logging.getLogger().setLevel(logging.ERROR)  # hides onnxruntime's advice to preprocess the graph, which is done
    quantize(opened, file, small, source, given.images)
    options = Options(scales=(opened.signature.scale,), data=given.data, split="val")
    found = {path: evaluate(str(path), options) for path in (file, small)}
    images = min(given.images, len(source.targets))
    calibrated = f"calibrated on {images} training images, measured on the validation images"
    show(_comparison(found), calibrated, f"written: {small}")
    return 0


def quantize(opened: Runtime, file: Path, small: Path, source: Source, images: int) -> None:
    """Write ``small``, the graph in ``file`` with its convolutions and linear layers in 8 bits.

    The ranges of the activations are those of ``images`` images of ``source``, evenly spaced, at the model's scale.
    """
    try:
        from onnxruntime import quantization  # type: ignore[import-untyped]
    except ImportError:
        raise missing_extra("sppcls quantize", "onnx") from None
    batches = iter(_calibration(opened, source, images))

    class Reader(quantization.CalibrationDataReader):  # type: ignore[misc]
        def get_next(self) -> dict[str, Floats] | None:
            return next(({"images": batch} for batch in batches), None)

    try:
        with writing("--out", small), tempfile.TemporaryDirectory(dir=small.parent) as place:
            prepared, made = Path(place, "prepared.onnx"), Path(place, "made.onnx")
            quantization.quant_pre_process(file, prepared, skip_symbolic_shape=True)
            quantization.quantize_static(
                prepared,
                made,
                Reader(),
                op_types_to_quantize=_LAYERS,
                per_channel=True,
                reduce_range=True,
                activation_type=quantization.QuantType.QUInt8,
            )
            _store_raw(made)
            open_model(made)  # rejects anything but tensor operators
            made.replace(small)
    except SppclsError:
        raise
    except Exception as error:  # whatever onnxruntime raises
        raise SppclsError(f"{file} cannot be quantized: {' '.join(str(error).split())[:200]}") from None


def _store_raw(file: Path) -> None:
    """Store every constant as raw bytes, the only form used in exports."""
    import onnx

    graph = onnx.load(file)
    for tensor in graph.graph.initializer:
        tensor.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(tensor), tensor.name))
    onnx.save(graph, file)


def _calibration(opened: Runtime, source: Source, images: int) -> Iterator[Floats]:
    """Yield inputs of the graph: images as `predict` fits them."""
    batches: list[Floats] = []

    def kept(pixels: Images) -> Floats:
        batches.append(opened.signature.prepared(pixels))
        return opened.run(pixels)

    chosen = np.unique(np.linspace(0, len(source.targets) - 1, images).astype(int)).tolist()
    scale = opened.signature.scale
    arrays = (source.read(index, scale).permute(1, 2, 0).numpy() for index in chosen)
    for _ in predict(replace(opened, run=kept), arrays, (scale,), batch_size=8):
        yield from batches
        batches.clear()


def _comparison(found: dict[Path, "Evaluated"]) -> Table:
    """Return a table with one row per file."""
    first = next(iter(found.values()))
    rows = []
    for path, measured in found.items():
        row = measured.found["scales"][0]
        same = (measured.answers.predicted[0] == first.answers.predicted[0]).mean()
        between = f"{row['acc1_low']:.1%} to {row['acc1_high']:.1%}"
        speed, size = f"{row['images_per_s']:.0f}", f"{path.stat().st_size / 1e6:.2f}"
        rows.append([path.name, size, f"{row['acc1']:.1%}", between, f"{same:.1%}", speed])
    columns = ["file", "MB", "top-1", "95 % interval", "same predictions", "images/s"]
    return table(f"At scale {first.found['scales'][0]['scale']}", columns, rows)


def options(verb: ArgumentParser) -> None:
    """Add the options of the verb."""
    add = verb.add_argument
    add("model", type=path_text, metavar="MODEL.onnx", help="a file written by sppcls export --format onnx")
    add(
        "--data",
        type=path_text,
        required=True,
        metavar="DIR",
        help="the training data: class folders, train/ and val/, or a table",
    )
    add("--images", type=at_least(1, 10_000), default=200, metavar="N", help="training images to calibrate on (200)")
    add("--out", type=path_text, metavar="FILE.onnx", help="output file, must not exist (MODEL-int8.onnx)")
