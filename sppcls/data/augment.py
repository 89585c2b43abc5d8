"""Augmentation that neither crops nor warps by default, drawn per sample from (seed, epoch, index)."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch

Transform = Callable[[torch.Tensor], torch.Tensor]


class Draw(NamedTuple):
    """What was drawn for one sample: where a crop lies (fractions) and the seed of its transforms."""

    offset: tuple[float, float]
    flip: float
    seed: int


class Augment:
    """Flip, colour jitter, RandAugment and random erasing of one [3, H, W] uint8 image.

    What is drawn depends on (seed, epoch, index) alone: not on the worker, the batch or the order. ``flip`` and
    ``erasing`` are probabilities, ``brightness``, ``contrast`` and ``saturation`` the largest relative changes, ``hue``
    is in turns of the circle, and ``randaugment`` a number of operations, some of which move pixels.
    """

    def __init__(
        self,
        *,
        flip: float = 0.5,
        brightness: float = 0.0,
        contrast: float = 0.0,
        saturation: float = 0.0,
        hue: float = 0.0,
        randaugment: int = 0,
        erasing: float = 0.0,
        seed: int = 0,
    ) -> None:
        self.flip = flip
        self.seed = seed
        self.transforms: list[Transform] = []
        jitter = (brightness, contrast, saturation, hue)
        if not any((*jitter, randaugment, erasing)):
            return
        from torchvision.transforms import v2

        if any(jitter):
            self.transforms.append(v2.ColorJitter(*jitter))
        if randaugment:
            self.transforms.append(v2.RandAugment(randaugment))
        if erasing:
            self.transforms.append(v2.RandomErasing(erasing))

    def draw(self, epoch: int, index: int) -> Draw:
        """Return what sample ``index`` gets in ``epoch``."""
        rng = np.random.default_rng([self.seed, epoch, index, 2])
        top, left, flip = rng.random(3).tolist()
        return Draw((top, left), flip, int(rng.integers(2**63)))

    def __call__(self, image: torch.Tensor, draw: Draw) -> torch.Tensor:
        """Return the augmented image, same shape and dtype."""
        if draw.flip < self.flip:
            image = image.flip(-1)
        if not self.transforms:
            return image
        with torch.random.fork_rng(devices=()):
            torch.default_generator.manual_seed(draw.seed)
            for transform in self.transforms:
                image = transform(image)
        return image
