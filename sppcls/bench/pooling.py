"""Work on feature maps that are shared: pyramid levels, regions of one image, and the views of multi-view testing."""

import itertools
from collections.abc import Callable
from functools import partial
from statistics import geometric_mean

import torch
from torch import Tensor
from torch.nn import functional as F

from sppcls.bench import BenchReport, Row, paired
from sppcls.build import build_classifier, build_splits
from sppcls.data.images import fit_image
from sppcls.measure.scales import Predict, averaged
from sppcls.measure.views import crop_boxes, multi_view
from sppcls.models.classifier import SppClassifier
from sppcls.ops import spatial_pyramid_pool2d
from sppcls.settings import DataSpec, ModelSpec

# Last maps of ZF-5, a ResNet and Overfeat at 224, and of a 640 x 480 picture at stride 16.
SHAPES = ((64, 256, 13, 13), (64, 512, 7, 7), (64, 512, 14, 14), (16, 512, 40, 30))
LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
LEVELS = ((4, 2, 1), (6, 3, 2, 1))
SIZE = (480, 640)  # of the image with regions
SIDE = 224
# Scales and places along each axis. The paper's test: 18 views per scale and 6 at the smallest, 96 in all; and about as
# many on one map, where they overlap more.
PLANS = {"paper, six scales": ((224, 256, 300, 360, 448, 560), 3), "one scale": ((288,), 7)}


def pool(repeats: int = 15) -> BenchReport:
    """Time pooling, forward and backward, against an adaptive_max_pool2d a level, with 1 and with all threads."""
    threads = torch.get_num_threads()
    rows: list[Row] = []
    try:
        cells = itertools.product(sorted({1, threads}), SHAPES, LAYOUTS.items(), LEVELS)
        for count, shape, (layout, memory_format), levels in cells:
            torch.set_num_threads(count)
            x = torch.randn(shape).contiguous(memory_format=memory_format).requires_grad_()
            grad = torch.randn_like(naive(x, levels))
            at_once, apart = (partial(_step, one, x, levels, grad) for one in (spatial_pyramid_pool2d, naive))
            ours, slow, ratio = paired(at_once, apart, repeats)
            rows.append((float(count), str(shape), layout, str(levels), ours * 1e3, slow * 1e3, ratio))
    finally:
        torch.set_num_threads(threads)
    ratios = [float(row[-1]) for row in rows]
    columns = ("threads", "shape", "layout", "levels", "ours_ms", "naive_ms", "ratio")
    return BenchReport("pool", columns, rows, {"worst_ratio": min(ratios), "geometric_mean": geometric_mean(ratios)})


def naive(x: Tensor, levels: tuple[int, ...]) -> Tensor:
    """Pool the map separately for each level."""
    return torch.cat([F.adaptive_max_pool2d(x, n).flatten(1) for n in levels], 1)


def _step(pooled: Callable[..., Tensor], x: Tensor, levels: tuple[int, ...], grad: Tensor) -> None:
    torch.autograd.grad(pooled(x, levels), x, grad)


def views(backbones: tuple[str, ...] = ("tiny", "resnet18"), repeats: int = 5) -> BenchReport:
    """Time the views of one image of aspect 4:3, pooled as regions of one map a scale, against a forward a view.

    ``pixels`` is the ratio expected from counting pixels.
    """
    rows: list[Row] = []
    for backbone, (name, (scales, places)) in itertools.product(backbones, PLANS.items()):
        network = build_classifier(ModelSpec(backbone=backbone), ["a", "b"], (SIDE,)).eval()
        sizes = [(scale, round(scale * 4 / 3)) for scale in scales]
        images = [torch.randint(256, (1, 3, *size), dtype=torch.uint8) for size in sizes]
        count = sum(2 * len(crop_boxes(*size, SIDE, places)) for size in sizes)
        pixels = count * SIDE**2 / sum(2 * height * width for height, width in sizes)
        makers = (multi_view, multi_view_by_crops)
        at_once, apart = (partial(_all, make(SIDE, places), network, images) for make in makers)
        with torch.inference_mode():
            ours, slow, ratio = paired(at_once, apart, repeats, warmup=1)
        rows.append((backbone, name, float(count), count / ours, count / slow, pixels, ratio))
    columns = ("backbone", "plan", "views", "ours views/s", "forward per view, views/s", "pixels", "ratio")
    worst = {f"worst ratio, {name}": min(float(row[6]) for row in rows if row[1] == name) for name in PLANS}
    return BenchReport("multi-view on feature maps", columns, rows, worst)


def multi_view_by_crops(side: int, places: int = 3) -> Predict:
    """Return `multi_view` with a forward pass a view, on crops of the image."""

    def predict(network: SppClassifier, images: Tensor) -> Tensor:
        pixels = network.normalize(images)
        boxes = crop_boxes(int(images.shape[2]), int(images.shape[3]), side, places)
        both = itertools.product((pixels, pixels.flip(-1)), boxes)
        return averaged([network(half[:, :, y1:y2, x1:x2]).log_softmax(1) for half, (x1, y1, x2, y2) in both])

    return predict


def _all(predict: Predict, network: SppClassifier, images: list[Tensor]) -> list[Tensor]:
    return [predict(network, image) for image in images]


def regions(data: str | None = None, backbone: str = "resnet18", boxes: int = 2000, repeats: int = 2) -> BenchReport:
    """Time boxes of one image of ``data``, or of noise: pooled from one map, against a crop and a forward a box."""
    image = torch.randint(256, (3, *SIZE), dtype=torch.uint8)
    if data:
        image = fit_image(build_splits(DataSpec(name="folder", root=data)).train.read(0), SIZE, "warp")
    network = build_classifier(ModelSpec(backbone=backbone), [str(i) for i in range(100)], (SIDE,)).eval()
    network.to(memory_format=torch.channels_last)
    some = random_boxes(boxes)
    with torch.inference_mode():
        of_map(network, image, some), of_crops(network, image, some[:64])
        at_once, apart = (partial(way, network, image, some) for way in (of_map, of_crops))
        ours, slow, ratio = paired(at_once, apart, repeats, warmup=0)
    columns = ("backbone", "boxes", "one pass, s", "forward per box, s", "ratio")
    return BenchReport(
        "regions of a 480x640 image", columns, [(backbone, float(boxes), ours, slow, ratio)], {"ratio": ratio}
    )


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
    """Return logits of the same boxes, each cut out and resized, 64 at a time."""
    crops = (image[:, y1:y2, x1:x2] for x1, y1, x2, y2 in boxes.long().tolist())
    fitted = [fit_image(crop, (SIDE, SIDE), "warp") for crop in crops]
    return torch.cat([network(_batch(network, fitted[i : i + 64])) for i in range(0, len(fitted), 64)])


def _batch(network: SppClassifier, images: list[Tensor]) -> Tensor:
    return network.normalize(torch.stack(images)).contiguous(memory_format=torch.channels_last)
