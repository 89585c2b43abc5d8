"""Multi-view testing: crops pooled as regions of one map a scale, against a forward pass a view (paper, 3.1.4)."""

from functools import partial

import torch

from sppcls.bench import BenchReport, paired
from sppcls.build import build_classifier
from sppcls.measure.scales import Predict
from sppcls.measure.views import crop_boxes, multi_view, multi_view_by_crops
from sppcls.models.classifier import SppClassifier
from sppcls.settings import ModelSpec

SIDE = 224
# Scales and places along each axis. The paper's test: 18 views a scale and 6 at the smallest, 96 in all; and about as
# many on one map, where they overlap more.
PLANS = {"paper, six scales": ((224, 256, 300, 360, 448, 560), 3), "one scale": ((288,), 7)}


def run(backbones: tuple[str, ...] = ("tiny", "resnet18"), repeats: int = 5) -> BenchReport:
    """Time the views of one image of aspect 4:3; ``pixels`` is the ratio that counting them would give."""
    rows: list[tuple[str | float, ...]] = []
    for backbone in backbones:
        network = build_classifier(ModelSpec(backbone=backbone), ["a", "b"], (SIDE,)).eval()
        for name, (scales, places) in PLANS.items():
            sizes = [(scale, round(scale * 4 / 3)) for scale in scales]
            images = [torch.randint(256, (1, 3, *size), dtype=torch.uint8) for size in sizes]
            views = sum(2 * len(crop_boxes(*size, SIDE, places)) for size in sizes)
            pixels = views * SIDE**2 / sum(2 * height * width for height, width in sizes)
            makers = (multi_view, multi_view_by_crops)
            of_map, of_crops = (partial(_all, make(SIDE, places), network, images) for make in makers)
            with torch.inference_mode():
                ours, naive, ratio = paired(of_map, of_crops, repeats=repeats, warmup=1)
            rows.append((backbone, name, float(views), views / ours, views / naive, pixels, ratio))
    columns = ("backbone", "plan", "views", "ours views/s", "a forward a view, views/s", "pixels", "ratio")
    worst = {f"worst ratio, {name}": min(float(row[6]) for row in rows if row[1] == name) for name in PLANS}
    return BenchReport("multi-view on feature maps", columns, rows, worst)


def _all(predict: Predict, network: SppClassifier, images: list[torch.Tensor]) -> list[torch.Tensor]:
    return [predict(network, image) for image in images]
