"""What options of a network cost a training step."""

from collections.abc import Mapping, Sequence
from functools import partial

import torch
from torch.nn import functional

from sppcls.bench import Row, paired
from sppcls.build import build_classifier, pick_device
from sppcls.models.classifier import SppClassifier
from sppcls.settings import ModelSpec

# Of the network, and its align; `stretch` is done to the images, and the network's step is the same.
OPTIONS: dict[str, tuple[Mapping[str, object], str]] = {
    "blur_pool": ({"blur_pool": True}, "none"),
    "norm_per_scale": ({"norm_per_scale": True}, "none"),
    "align=pad": ({}, "pad"),
}
IMAGES = 32


def option_rows(backbone: str, scales: Sequence[int], repeats: int = 15) -> list[Row]:
    """Time steps with each option against steps of the plain network: images/s with, without, and their ratio."""
    device, rows = pick_device("auto"), list[Row]()
    for name, option in OPTIONS.items():
        plain, other = (
            build_classifier(ModelSpec.model_validate({"backbone": backbone, **more}), ("a", "b"), scales, align)
            for more, align in (({}, "none"), option)
        )
        for scale in scales:
            # What is padded is half a stride short of the scale, so that the convolutions have the same work.
            short = scale - (plain.trunk.stride // 2 if option[1] == "pad" else 0)
            ours, bare = (
                partial(_step, _ready(network, device), _images(side, device))
                for network, side in ((other, short), (plain, scale))
            )
            seconds, plain_seconds, ratio = paired(ours, bare, repeats)
            rows.append((f"{backbone} {name}", scale, IMAGES / seconds, IMAGES / plain_seconds, ratio))
    return rows


def _images(side: int, device: str) -> torch.Tensor:
    return torch.randn(IMAGES, 3, side, side, device=device).to(memory_format=torch.channels_last)


def _ready(network: SppClassifier, device: str) -> SppClassifier:
    network.to(device).to(memory_format=torch.channels_last)
    return network.train()


def _step(network: SppClassifier, images: torch.Tensor) -> None:
    network.zero_grad()
    targets = torch.zeros(len(images), dtype=torch.long, device=images.device)
    functional.cross_entropy(network(images), targets).backward()  # type: ignore[no-untyped-call]
    if images.is_cuda:
        torch.cuda.synchronize()
