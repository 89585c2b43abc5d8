"""Regions of one image: one pass and a pooling of each box, against a forward pass a box (paper, section 4)."""

from functools import partial

import torch
from torch import Tensor

from sppcls.bench import BenchReport, paired
from sppcls.build import build_classifier, build_splits
from sppcls.data.images import fit_image
from sppcls.models.classifier import SppClassifier
from sppcls.settings import DataSpec, ModelSpec

SIZE = (480, 640)
SIDE = 224
BATCH = 64


def run(data: str | None = None, backbone: str = "resnet18", boxes: int = 2000, repeats: int = 2) -> BenchReport:
    """Time all boxes, both ways, on one image of ``data`` (a folder of class folders) or of noise."""
    image = torch.randint(256, (3, *SIZE), dtype=torch.uint8)
    if data:
        image = fit_image(build_splits(DataSpec(name="folder", root=data)).train.read(0), SIZE, "warp")
    network = build_classifier(ModelSpec(backbone=backbone), [str(i) for i in range(100)], (SIDE,)).eval()
    network.to(memory_format=torch.channels_last)
    some = random_boxes(boxes)
    with torch.inference_mode():
        of_map(network, image, some), of_crops(network, image, some[:BATCH])
        once, apart = (partial(way, network, image, some) for way in (of_map, of_crops))
        ours, naive, ratio = paired(once, apart, repeats, warmup=0)
    columns = ("backbone", "boxes", "one pass, s", "a forward a box, s", "ratio")
    row = (backbone, float(boxes), ours, naive, ratio)
    return BenchReport("regions of a 480x640 image", columns, [row], {"ratio": ratio})


def random_boxes(count: int, seed: int = 0) -> Tensor:
    """Return boxes [count, 4] inside the image, of any aspect, whose sides are at least 1/8 of its shorter side."""
    size, random = torch.tensor(SIZE[::-1]), torch.Generator().manual_seed(seed)
    least = min(SIZE) // 8
    sides = least + torch.rand(count, 2, generator=random) * (size - least)
    corners = torch.rand(count, 2, generator=random) * (size - sides)
    return torch.cat([corners, corners + sides], 1)


def of_map(network: SppClassifier, image: Tensor, boxes: Tensor) -> Tensor:
    """Return logits [K, classes] of regions of one map."""
    return network.classify_regions(_batch(network, [image]), [boxes])


def of_crops(network: SppClassifier, image: Tensor, boxes: Tensor) -> Tensor:
    """Return logits of the same boxes, each cut out and resized."""
    crops = (image[:, y1:y2, x1:x2] for x1, y1, x2, y2 in boxes.long().tolist())
    fitted = [fit_image(crop, (SIDE, SIDE), "warp") for crop in crops]
    return torch.cat([network(_batch(network, fitted[i : i + BATCH])) for i in range(0, len(fitted), BATCH)])


def _batch(network: SppClassifier, images: list[Tensor]) -> Tensor:
    return network.normalize(torch.stack(images)).contiguous(memory_format=torch.channels_last)
