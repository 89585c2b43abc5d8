"""Other ways to ask a network: crops of one map, regions, statistics of each scale, an exported graph."""

import copy
import itertools
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from sppcls.data.images import fit_image
from sppcls.data.loader import batches_of
from sppcls.data.plan import Batch, plan_epoch
from sppcls.data.schedule import Schedule
from sppcls.data.source import Source
from sppcls.deploy.runtime import Runtime, open_model
from sppcls.measure.scales import Evaluation, Predict, averaged, evaluating
from sppcls.model_files import Model
from sppcls.models.classifier import SppClassifier
from sppcls.ops import region_cells

Box = tuple[int, int, int, int]


def crop_boxes(height: int, width: int, side: int, places: int = 3) -> list[Box]:
    """Return crops as x1 y1 x2 y2, ``places`` along each axis, each once; a side shorter than ``side`` is taken whole.

    With 3 places they are the paper's nine: centre, corners and middles of the sides.

    >>> len(crop_boxes(96, 144, 64)), crop_boxes(64, 96, 64)
    (9, [(0, 0, 64, 64), (16, 0, 80, 64), (32, 0, 96, 64)])
    """
    h, w = min(side, height), min(side, width)
    tops, lefts = (
        sorted({i * (whole - part) // (places - 1) for i in range(places)}) for whole, part in ((height, h), (width, w))
    )
    return [(left, top, left + w, top + h) for top, left in itertools.product(tops, lefts)]


def multi_view(side: int, places: int = 3) -> Predict:
    """Return a prediction that averages the crops of ``side`` pixels, and their mirror images, over one map each."""

    def predict(network: SppClassifier, images: Tensor) -> Tensor:
        pixels, size = network.normalize(images), (int(images.shape[2]), int(images.shape[3]))
        features = network.features(torch.cat([pixels, pixels.flip(-1)]))
        boxes = torch.tensor(crop_boxes(*size, side, places))
        cells = region_cells(boxes, network.trunk.stride, features.shape[2:], size, touched=True)
        parts = [features[:, :, top:bottom, left:right] for top, left, bottom, right in cells.tolist()]
        return averaged([network.classify_map(half).log_softmax(1) for part in parts for half in part.chunk(2)])

    return predict


def multi_view_by_crops(side: int, places: int = 3) -> Predict:
    """Return the same with a forward pass a view, on crops of the image: what `multi_view` spares."""

    def predict(network: SppClassifier, images: Tensor) -> Tensor:
        pixels = network.normalize(images)
        boxes = crop_boxes(int(images.shape[2]), int(images.shape[3]), side, places)
        views = (
            (pixels.flip(-1) if mirrored else pixels)[:, :, y1:y2, x1:x2]
            for mirrored, (x1, y1, x2, y2) in itertools.product((False, True), boxes)
        )
        return averaged([network(view).log_softmax(1) for view in views])

    return predict


@dataclass(frozen=True)
class RegionAccuracy:
    """Top-1 accuracy, as a fraction, of the boxes of ``images`` images: pooled from a map, and cut out first."""

    of_map: float
    of_crops: float
    images: int


def region_accuracy(
    network: SppClassifier,
    source: Source,
    scale: int,
    zoom: float = 1.0,
    clutter: Literal["photo", "mean"] = "photo",
    canvas: float = 2.0,
    seed: int = 0,
) -> RegionAccuracy:
    """Put each image at a random place on a larger canvas, where its box is known, and classify the box both ways.

    Args:
        network: The classifier.
        source: Images and their classes, which are the network's.
        scale: Of the crops, in pixels; one that the network was trained at.
        zoom: Scale of the image on the canvas, as a multiple of ``scale``.
        clutter: What fills the canvas: ``photo``, an image of another class, or ``mean``, the trunk's mean colour.
        canvas: Its sides, as multiples of the image's.
        seed: Of the places and of the images that fill the canvas.
    """
    random, right = np.random.default_rng(seed), np.zeros(2, dtype=np.int64)
    device = next(network.parameters()).device
    mean = torch.tensor(network.mean).mul(255).round().to(torch.uint8).view(3, 1, 1)
    with evaluating(network, device), torch.inference_mode():
        for index, target in enumerate(source.targets):
            image = _scaled(source.read(index), round(zoom * scale))
            h, w = image.shape[1:]
            height, width = round(canvas * h), round(canvas * w)
            other = int(random.choice(np.flatnonzero(source.targets != target)))
            picture = mean.repeat(1, height, width)
            if clutter == "photo":
                picture = fit_image(source.read(other), (height, width), "crop").clone()
            top, left = int(random.integers(height - h + 1)), int(random.integers(width - w + 1))
            picture[:, top : top + h, left : left + w] = image
            box = torch.tensor([[left, top, left + w, top + h]])
            pixels, crop = (network.normalize(one[None].to(device)) for one in (picture, _scaled(image, scale)))
            right += [int(one.argmax()) == target for one in (network.classify_regions(pixels, [box]), network(crop))]
    images = len(source.targets)
    return RegionAccuracy(float(right[0] / images), float(right[1] / images), images)


def _scaled(image: Tensor, scale: int) -> Tensor:
    h, w = image.shape[1:]
    return fit_image(image, (round(h * scale / min(h, w)), round(w * scale / min(h, w))), "warp")


def recalibrate_bn(
    network: SppClassifier, scale: int, source: Source, *, images: int = 512, **how: Any
) -> SppClassifier:
    """Return a copy whose batch-norm statistics are those of training images at ``scale``, without augmentation.

    The weights stay; a plain average over batches replaces the running one, which training leaves at the last epoch's
    scale. ``how`` is as in `evaluate_scales`.
    """
    evaluation = Evaluation(source, **how)
    renewed = copy.deepcopy(network).to(evaluation.device)
    norms = [module for module in renewed.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a cumulative average
        norm.train()
    options: dict[str, Any] = {"batch_size": evaluation.batch_size, "max_aspect": evaluation.max_aspect}
    plan = plan_epoch(source.sizes, Schedule("single", (scale,)), 0, seed=0, fit=evaluation.fit, **options)
    drawn = [Batch(b.indices, b.size, b.scale) for b in itertools.islice(plan, -(-images // evaluation.batch_size))]
    batches = batches_of(evaluation.dataset(network), drawn, evaluation.num_workers)
    with closing(batches), torch.inference_mode():
        for batch in batches:
            renewed.features(network.normalize(batch["images"].to(evaluation.device)))
    return renewed.eval()


class GraphNetwork(nn.Module):
    """Log probabilities [N, K] of uint8 images [N, 3, H, W], with what `evaluate` asks a network for; on the CPU."""

    def __init__(self, runtime: Runtime) -> None:
        super().__init__()
        self.runtime = runtime
        for name in ("classes", "scales", "pool", "smallest", "input_size", "mean", "std"):
            setattr(self, name, getattr(runtime.signature, name))
        self.place = nn.Parameter(torch.zeros(0), requires_grad=False)  # says which device it is on

    def normalize(self, images: Tensor) -> Tensor:
        """Return the images as they are: the runtime prepares them."""
        return images

    def forward(self, images: Tensor) -> Tensor:
        """Return log probabilities, at least those of the smallest float32."""
        said = torch.from_numpy(self.runtime.probabilities(images.contiguous().numpy()))
        return said.clamp(min=torch.finfo(torch.float32).tiny).log()


def opened_graph(file: Path, device: str, trust: bool = False) -> Model:
    """Return an .onnx or .pt2 file as `sppcls.model_files.load` returns a checkpoint."""
    runtime = open_model(file, device, trust=trust)
    network: Any = GraphNetwork(runtime)
    return _GraphModel(network, runtime.signature, None, {}, file)


class _GraphModel(Model):
    def __str__(self) -> str:
        return str(self.file)
