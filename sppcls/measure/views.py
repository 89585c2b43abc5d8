"""Multi-view testing on feature maps: one map a scale, its crops pooled as regions (paper, section 3.1.4)."""

import itertools

import torch
from torch import Tensor

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
