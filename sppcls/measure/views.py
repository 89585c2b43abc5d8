"""Other ways to ask a network: crops of one map, statistics of each scale, an exported graph."""

import copy
import itertools
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sppcls.data.batch import batches_in
from sppcls.data.loader import batches_of
from sppcls.data.planner import Membership, Planner
from sppcls.data.schedule import Schedule
from sppcls.deploy.runtime import Runtime, open_model
from sppcls.measure.scales import Evaluation, Predict, averaged
from sppcls.model_files import Model
from sppcls.models.classifier import SppClassifier
from sppcls.models.norm import ScaleNorm2d
from sppcls.ops import region_cells

Box = tuple[int, int, int, int]


def crop_boxes(height: int, width: int, side: int, places: int = 3) -> list[Box]:
    """Return crops as x1 y1 x2 y2, ``places`` along each axis, each once; a side shorter than ``side`` is used whole.

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


def recalibrate_bn(
    network: SppClassifier,
    scale: int,
    look: Evaluation,
    images: int = 512,
    mix: float = 0.0,
    batches: Membership = "auto",
) -> SppClassifier:
    """Return a copy whose batch-norm statistics are those of training images at ``scale``, without augmentation.

    The weights stay; a plain average over steps, as mixed as in training, replaces the running one, which training
    leaves at the last epoch's scale.
    """
    return _renewed(copy.deepcopy(network), (scale,), look, images, mix, batches)


def calibrated(
    network: SppClassifier,
    scales: Sequence[int],
    look: Evaluation,
    images: int = 1000,
    mix: float = 0.0,
    batches: Membership = "auto",
) -> SppClassifier:
    """Return a copy with batch-norm statistics for each scale, measured as `recalibrate_bn` does; the weights stay.

    It is one network, of which each image's size chooses the statistics, in files and exports too.
    """
    renewed = copy.deepcopy(network)
    apart = any(isinstance(module, ScaleNorm2d) and module.apart for module in network.modules())
    renewed.trunk.norm_per_scale(scales, "apart" if apart else "shared")
    return _renewed(renewed, scales, look, images, mix, batches)


def _renewed(
    renewed: SppClassifier, scales: Sequence[int], look: Evaluation, images: int, mix: float, batches: Membership
) -> SppClassifier:
    """Replace the statistics by those of training images at these scales, and return the network in eval mode."""
    renewed.to(look.device).eval()
    norms = [module for module in renewed.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    for norm in norms:
        if isinstance(norm, ScaleNorm2d):
            norm.choose_trained()
        norm.reset_running_stats()
        norm.momentum = None  # a cumulative average
        norm.training = True  # not `train`, which lets any set be chosen
    how, multiple = (look.batch_size, look.fit, look.max_aspect), renewed.multiple
    for scale in scales:
        schedule = Schedule("single", (scale,))
        plan = Planner(look.source.sizes, schedule, *how, mix=mix, batches=batches, multiple=multiple).plan(0)
        drawn = itertools.islice(plan, -(-images // look.batch_size))
        steps = batches_of(look.dataset(renewed), drawn, look.num_workers)
        with closing(steps), torch.inference_mode():
            for step in steps:
                renewed([renewed.normalize(batch["images"].to(look.device)) for batch in batches_in(step)])
    return renewed.eval()


class GraphNetwork(nn.Module):
    """Log probabilities [N, K] of uint8 images [N, 3, H, W], with the interface that `evaluate` needs; on the CPU."""

    def __init__(self, runtime: Runtime) -> None:
        super().__init__()
        self.runtime, self.signature = runtime, runtime.signature
        for name in ("classes", "scales", "pool", "smallest", "input_size", "mean", "std", "multiple"):
            setattr(self, name, getattr(runtime.signature, name))
        self.place = nn.Parameter(torch.zeros(0), requires_grad=False)  # holds the device

    def normalize(self, images: Tensor) -> Tensor:
        """Return the images unchanged: the runtime prepares them."""
        return images

    def forward(self, images: Tensor) -> Tensor:
        """Return log probabilities, clamped at that of the smallest float32."""
        said = torch.from_numpy(self.runtime.probabilities(images.contiguous().numpy()))
        return said.clamp(min=torch.finfo(torch.float32).tiny).log()


def opened_graph(file: Path, device: str, trust: bool = False) -> Model:
    """Return an .onnx or .pt2 file as `sppcls.model_files.load` returns a checkpoint."""
    runtime = open_model(file, device, trust=trust)
    network: Any = GraphNetwork(runtime)
    return _GraphModel(network, None, {}, file)


class _GraphModel(Model):
    def __str__(self) -> str:
        return str(self.file)
