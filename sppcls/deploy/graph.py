"""A network as a graph of tensor operators that takes any batch and any size."""

import io
import math
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from sppcls.data.cut import BUCKETS_PER_OCTAVE, EDGE
from sppcls.data.geometry import to_multiple
from sppcls.errors import ConfigError
from sppcls.files import to_json, write_bytes
from sppcls.model_files import KEY
from sppcls.models.classifier import SppClassifier
from sppcls.signature import Signature

OPSET = 20
# MaxRoiPool computes bins in float32. For these n, and sizes of 1 to 199 cells, they were all verified to equal the
# integers of `sppcls.ops.bins`; 7, 11, 13 and 14 are off by a cell for some.
EXACT_LEVELS = (1, 2, 3, 4, 5, 6, 8, 9, 10, 12)


class Graph(nn.Module):
    """A classifier wrapped as its signature says: normalisation before, probabilities after."""

    def __init__(self, network: SppClassifier, signature: Signature) -> None:
        super().__init__()
        self.network, self.signature = network, signature
        self.mean: Tensor
        self.std: Tensor
        unit = 255 if signature.input == "uint8" else 1
        for name, values in (("mean", signature.mean), ("std", signature.std)):
            self.register_buffer(name, torch.tensor(values).view(3, 1, 1) * unit)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits or probabilities [N, K], float32."""
        return self._answer(self.network(self._pixels(images)))

    def _pixels(self, images: Tensor) -> Tensor:
        if self.signature.input != "normalized":
            images = (images.float() - self.mean) / self.std
        return images.to(next(self.network.parameters()).dtype)

    def _answer(self, logits: Tensor) -> Tensor:
        return logits.float().softmax(1) if self.signature.probabilities else logits.float()


class RegionGraph(Graph):
    """The same with boxes [K, 4], x1 y1 x2 y2 in pixels, and the image index [K] of each; for ONNX only."""

    def forward(self, images: Tensor, boxes: Tensor, image: Tensor) -> Tensor:  # type: ignore[override]
        """Return logits or probabilities [K, classes], float32, as `SppClassifier.classify_regions` gives them."""
        features, levels = self.network.features(self._pixels(images)), self.network.levels
        x1, y1, x2, y2 = boxes.double().unbind(1)
        left, right = self._cells(x1, x2, images.shape[3], features.shape[3])
        top, bottom = self._cells(y1, y2, images.shape[2], features.shape[2])
        rois = torch.stack([image.double(), left, top, right - 1, bottom - 1], 1).float()
        pooled = [self._pooled(features, rois, n).flatten(1) for n in levels]
        return self._answer(self.network.head(pooled))

    def _cells(self, low: Tensor, high: Tensor, pixels: int, cells: int) -> tuple[Tensor, Tensor]:
        # The rule of `sppcls.ops.region_cells`, in operators that exporters support; verification compares them.
        stride = self.network.trunk.stride
        start, end = (low / stride).ceil(), torch.where(high >= pixels, cells, (high / stride).floor())
        start = torch.where(start < end, start, ((low + high) / (2 * stride)).floor()).clamp(max=cells - 1)
        return start, torch.maximum(end.clamp(max=cells), start + 1)

    @staticmethod
    def _pooled(features: Tensor, rois: Tensor, n: int) -> Tensor:
        shape = (rois.shape[0], features.shape[1], n, n)
        return torch.onnx.ops.symbolic(
            "MaxRoiPool",
            (features, rois),
            {"pooled_shape": [n, n], "spatial_scale": 1.0},
            dtype=features.dtype,
            shape=shape,
        )


def check_regions(network: SppClassifier, signature: Signature) -> None:
    """Raise ``ConfigError`` if a graph with boxes would not be exact."""
    inexact = [n for n in network.levels if n not in EXACT_LEVELS]
    if network.mode != "max" or network.pool == "fixed" or signature.half or inexact:
        what = f"levels={list(network.levels)}, mode={network.mode}, pool={network.pool}, half={signature.half}"
        raise ConfigError(
            f"--regions: got {what}; supported are max-pooled levels of {', '.join(map(str, EXACT_LEVELS))} in float32"
        )


def trace(network: SppClassifier, signature: Signature) -> ExportedProgram:
    """Return the program of a network in eval mode; batch, height and width are free; with ``fixed`` only the batch.

    Raises:
        ConfigError: The network's trunk does something that cannot be exported.
    """
    from torch.fx.experimental import _config as config

    images = torch.zeros(2, 3, *traced_size(signature))
    examples = [images.to(torch.uint8) if signature.input == "uint8" else images]
    free = [dict.fromkeys(axes_of(signature), Dim.DYNAMIC)]
    if signature.regions:
        examples += [torch.tensor([[0.0, 0, 9, 9]] * 3), torch.tensor([0, 1, 1])]
        free += [{0: Dim.DYNAMIC}] * 2
    graph = (RegionGraph if signature.regions else Graph)(network, signature).eval()
    try:
        # Without this, a size at which some layer's map has one cell would need another program than a larger one.
        with config.patch(backed_size_oblivious=True), torch.no_grad():  # type: ignore[attr-defined]
            return torch.export.export(graph, tuple(examples), dynamic_shapes=tuple(free))
    except Exception as error:  # the tracer can raise any error of the traced code
        line = str(error).strip().partition("\n")[0]
        raise ConfigError(f"this network cannot be exported as a graph ({line}); use --format safetensors") from error


def axes_of(signature: Signature) -> dict[int, str]:
    """Return the free axes of the images and their names."""
    return {0: "batch"} if signature.input_size else {0: "batch", 2: "height", 3: "width"}


def proof_side(signature: Signature) -> int:
    """Return the side around which a file is traced and verified: the scale, if affordable."""
    return max(min(signature.scale, 1024), signature.smallest)


def traced_size(signature: Signature) -> tuple[int, int]:
    """Return the (H, W) that a graph is traced at: one that is unlikely in use."""
    side = proof_side(signature)
    return signature.input_size or (side + 5, side + side // 3 + 7)


def write_onnx(program: ExportedProgram, signature: Signature, description: Mapping[str, object], path: Path) -> None:
    """Write one ONNX file, opset 20, with the description as JSON and `instructions` in its metadata."""
    made = torch.onnx.export(
        program,
        dynamo=True,
        verbose=False,
        opset_version=OPSET,
        input_names=["images", *(["boxes", "image"] if signature.regions else [])],
        output_names=["probabilities" if signature.probabilities else "logits"],
        dynamic_shapes=(axes_of(signature), *([{0: "regions"}, {0: Dim.DYNAMIC}] if signature.regions else [])),
    )
    if made is None:
        raise ConfigError("the ONNX exporter returned nothing; use another --format")
    for node in made.model.graph:
        node.metadata_props.clear()  # remove source lines and paths of this machine
    made.model.metadata_props.clear()
    made.model.metadata_props.update({KEY: to_json(description), **instructions(signature)})
    made.save(str(path), external_data=False)


_SIZES = {
    "keep": "One of H and W is {scale}; the other is {scale} too for a square image, else {scale} * {edge} * "
    "2 ** (k / {octave}) to the nearest multiple of {multiple}, k = ceil({octave} * log2(longer side / shorter side / "
    "{edge})), at least 1 and at most {most}. Resize by one factor so that the image just fits into H x W, its other "
    "side to the nearest multiple of {multiple}; pad on the right or at the bottom with the colour pad.",
    "crop": "Cut out the largest centred part with the aspect of {size} and resize it to {size}.",
    "warp": "Resize the image to {size}, each side by its own factor.",
}
_VALUES = {
    "normalized": "Divide by 255, subtract mean, divide by std.",
    "float": "Divide by 255.",
    "uint8": "Leave the values as they are, 0 to 255.",
}


def instructions(signature: Signature) -> dict[str, str]:
    """Return how to use a graph without this package: texts, and values in JSON, by name."""
    scale = to_multiple(signature.scale, signature.multiple)
    height, width = signature.input_size or (scale, scale)
    most = math.ceil(BUCKETS_PER_OCTAVE * math.log2(signature.max_aspect))
    names = {"scale": scale, "multiple": signature.multiple, "size": f"{height} x {width} (H x W)", "most": most}
    sized = _SIZES[signature.fit].format(edge=EDGE, octave=BUCKETS_PER_OCTAVE, **names)
    steps = [
        "Decode to 8-bit RGB, apply the EXIF orientation, composite transparent parts on white.",
        f"{sized} The resize is bilinear with antialiasing, as Pillow's BILINEAR.",
        _VALUES[signature.input],
    ]
    kind = "uint8" if signature.input == "uint8" else "float32"
    answers = "probabilities" if signature.probabilities else "logits; their softmax gives probabilities"
    values = {"mean": signature.mean, "std": signature.std, "pad": signature.pad, "scale": scale}
    values |= {"multiple": signature.multiple, "classes": signature.classes, "longest": most}
    return {
        "preprocessing": " ".join(f"{number}. {step}" for number, step in enumerate(steps, 1)),
        "input": f"images [N, 3, H, W], {kind}, RGB",
        "output": f"[N, {len(signature.classes)}] {answers}, in the order of classes",
    } | {name: to_json(value) for name, value in values.items()}


def save_pt2(program: ExportedProgram, description: Mapping[str, object], path: Path) -> None:
    """Write a program without the paths of this machine; raises ``ConfigError`` if torch cannot write it."""
    program._example_inputs = None
    for node in program.graph.nodes:
        node.meta = {key: known for key, known in node.meta.items() if key == "val"}
    try:
        torch.export.save(program, content := io.BytesIO(), extra_files={"sppcls.json": to_json(description)})
    except Exception as error:  # an operator on sizes that torch cannot serialise
        line = str(error).partition("\n")[0]
        raise ConfigError(f"torch cannot write this network ({line}); use --format safetensors") from error
    write_bytes(path, content.getvalue())
