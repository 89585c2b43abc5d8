"""Multi-view testing on feature maps: one map a scale, its crops pooled as regions (paper, section 3.1.4)."""

import itertools
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from sppcls.errors import ConfigError
from sppcls.measure.scales import Predict, averaged
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
        return averaged([network.classify_map(part).log_softmax(1) for part in _parts(network, images, side, places)])

    return predict


def multi_view_by_crops(side: int, places: int = 3) -> Predict:
    """Return the same with a forward pass a view, on crops of the image: what `multi_view` spares."""

    def predict(network: SppClassifier, images: Tensor) -> Tensor:
        pixels = network.normalize(images)
        views = (flip(pixels)[:, :, y1:y2, x1:x2] for flip, (x1, y1, x2, y2) in _views(images, side, places))
        return averaged([network(view).log_softmax(1) for view in views])

    return predict


def check_views(network: SppClassifier) -> None:
    """Raise ``ConfigError`` where a network takes no crops of its map."""
    if network.pool == "fixed":
        raise ConfigError("views=multi pools regions of one map, and model.pool=fixed takes whole images; use full")


def _views(images: Tensor, side: int, places: int) -> Iterator[tuple[Callable[[Tensor], Tensor], Box]]:
    boxes = crop_boxes(int(images.shape[2]), int(images.shape[3]), side, places)
    return itertools.product((lambda x: x, lambda x: x.flip(-1)), boxes)


def _parts(network: SppClassifier, images: Tensor, side: int, places: int) -> Iterator[Tensor]:
    pixels, size = network.normalize(images), (int(images.shape[2]), int(images.shape[3]))
    features = network.features(torch.cat([pixels, pixels.flip(-1)]))
    boxes = torch.tensor(crop_boxes(*size, side, places))
    for y1, x1, y2, x2 in region_cells(boxes, network.trunk.stride, features.shape[2:], size, touched=True).tolist():
        yield from features[:, :, y1:y2, x1:x2].chunk(2)
