"""One interface to run a model from any file: a run, a checkpoint, safetensors, ONNX or a program of PyTorch."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from sppcls.data.geometry import fit_array
from sppcls.errors import ConfigError, SppclsError
from sppcls.files import checked_path
from sppcls.signature import Signature, read_signature

if TYPE_CHECKING:
    from sppcls.models.classifier import SppClassifier

Images = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]
Boxes = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Runtime:
    """A model that can be run.

    Attributes:
        signature: How to use it.
        run: From uint8 images [N, 3, H, W] to logits or probabilities [N, K].
        fit: From the pixels of an image to those of a batch, as `sppcls.data.geometry.fit_array`.
        regions: From one image [1, 3, H, W] and boxes [K, 4] in its pixels to what ``run`` gives; None if it cannot.
        source: A description of the weights, in one line.
    """

    signature: Signature
    run: Callable[[Images], Floats]
    fit: Callable[..., Images] = fit_array
    regions: Callable[[Images, Boxes], Floats] | None = None
    source: str = ""

    def probabilities(self, images: Images) -> Floats:
        """Return probabilities [N, K] of uint8 images [N, 3, H, W]."""
        return self.as_probabilities(self.run(images))

    def as_probabilities(self, said: Floats) -> Floats:
        """Return probabilities of what ``run`` or ``regions`` gives; raises ``SppclsError`` if that is not finite."""
        if not np.isfinite(said).all():
            raise SppclsError(
                "the model's outputs are not finite: its weights are damaged or overflow; use another file"
            )
        return said if self.signature.probabilities else softmax(said)


def softmax(logits: Floats) -> Floats:
    """Return probabilities [N, K] of logits [N, K]."""
    powers = np.exp(logits - logits.max(1, keepdims=True))
    shares: Floats = powers / powers.sum(1, keepdims=True)
    return shares


def open_model(path: str | Path, device: str = "cpu", checkpoint: str | None = None, trust: bool = False) -> Runtime:
    """Open a run folder, a checkpoint, an exported folder, or a .safetensors, .onnx or .pt2 file.

    ``checkpoint`` selects a run's last or best. ``trust`` allows a .pt2 file, which PyTorch opens by running code
    that it holds.

    Raises:
        ConfigError: There is nothing at ``path``, an extra is not installed, or a .pt2 file is not trusted.
        SppclsError: The file is damaged, not from this package, or rejected because it could run code.
    """
    file = graph_file(checked_path(path, "model"))
    if file is None or file.suffix != ".onnx":
        _check_torch(path)
    if file is None or checkpoint:
        return _of_file(path, device, checkpoint)
    if device not in ("auto", "cpu"):
        raise ConfigError(f"--device {device}: {file.name} runs on the CPU only; use a run, checkpoint or safetensors")
    if file.suffix == ".pt2" and not trust:
        other = "use the safetensors or ONNX export, or add --trust if you made the file"
        raise ConfigError(f"{file} is refused: opening a .pt2 file can run code that it holds; {other}")
    opened = _of_onnx(file) if file.suffix == ".onnx" else _of_pt2(file)
    return replace(opened, source=str(file))


def _check_torch(path: str | Path) -> None:
    try:
        import torch  # noqa: F401
    except ImportError:
        raise ConfigError(f"{path}: this format needs torch; install torch or use an .onnx file") from None


def graph_file(path: Path) -> Path | None:
    """Return the graph that a file or folder names, or None if it names a network."""
    if path.is_dir() and not any((path / name).exists() for name in ("checkpoints", "model.safetensors")):
        graphs: Sequence[Path] = [path / "model.onnx", path / "model.pt2"]
    else:
        graphs = [path] if path.suffix in (".onnx", ".pt2") else []
    return next((graph for graph in graphs if graph.is_file()), None)


def _of_onnx(file: Path) -> Runtime:
    from sppcls.deploy.onnx_file import open_onnx

    session, described = open_onnx(file)
    signature = read_signature(described.get("signature"), str(file))

    def regions(images: Images, boxes: Boxes, image: npt.NDArray[np.int64] | None = None) -> Floats:
        image = np.zeros(len(boxes), np.int64) if image is None else image
        inputs = {"images": signature.prepared(images), "boxes": boxes.astype(np.float32), "image": image}
        said: Floats = session.run(None, inputs)[0]
        return said

    def run(images: Images) -> Floats:
        if signature.regions:
            count, (height, width) = len(images), images.shape[2:]
            return regions(images, np.array([[0, 0, width, height]] * count), np.arange(count))
        said: Floats = session.run(None, {"images": signature.prepared(images)})[0]
        return said

    return Runtime(signature, run, regions=regions if signature.regions else None)


def _of_pt2(file: Path) -> Runtime:
    import torch

    held = {"sppcls.json": ""}
    try:
        program = torch.export.load(file, extra_files=held).module()
        described = json.loads(held["sppcls.json"])
    except Exception as error:  # damage can show in a zip, JSON, a key, a type or a tensor
        raise SppclsError(f"{file} is damaged or not a program of `sppcls export` ({_line(error)})") from None
    signature = read_signature(described.get("signature"), str(file))

    def run(images: Images) -> Floats:
        prepared = torch.from_numpy(signature.prepared(images))
        try:
            with torch.inference_mode():
                said: Floats = program(prepared).numpy()
        except Exception as error:  # each operator raises its own
            got = f"{list(prepared.shape)} of {prepared.dtype}"
            raise SppclsError(f"{file} does not take images {got} ({_line(error)})") from None
        return said

    return Runtime(signature, run, _fit_by_torch)


def _line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]


def _of_file(path: str | Path, device: str, checkpoint: str | None) -> Runtime:
    from sppcls.build import pick_device
    from sppcls.model_files import load

    loaded = load(path, checkpoint)
    network = loaded.network.to(pick_device(device))
    return replace(of_network(network), source=str(loaded))


def of_network(network: "SppClassifier") -> Runtime:
    """Return a network in eval mode, on its current device, as a model that can be run."""
    import torch

    place = next(network.parameters()).device

    def run(images: Images) -> Floats:
        with torch.inference_mode():
            said: Floats = network(network.normalize(torch.from_numpy(images).to(place))).float().cpu().numpy()
            return said

    def regions(images: Images, boxes: Boxes) -> Floats:
        with torch.inference_mode():
            pixels = network.normalize(torch.from_numpy(images).to(place))
            said: Floats = network.classify_regions(pixels, [torch.from_numpy(boxes)]).float().cpu().numpy()
            return said

    return Runtime(network.signature, run, _fit_by_torch, regions)


def _fit_by_torch(image: Images, size: tuple[int, int], fit: str, pad: tuple[int, int, int], **how: Any) -> Images:
    # The same pixels as fit_array's, several times faster if torch is available.
    import torch

    from sppcls.data.images import fit_image

    tensor = torch.from_numpy(image).permute(2, 0, 1)
    fitted: Images = fit_image(tensor, size, fit, pad, **how).permute(1, 2, 0).numpy()
    return fitted
