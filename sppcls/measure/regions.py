"""Regions of one map against crops of the image: is an object in a larger picture recognised as well in one pass?"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from sppcls.data.images import fit_image
from sppcls.data.source import Source
from sppcls.measure.scales import evaluating
from sppcls.models.classifier import SppClassifier


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
