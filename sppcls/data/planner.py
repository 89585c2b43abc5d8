"""Plans the epochs of a run: which images share a step, how mixed the steps are, and what they cost."""

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal, get_args

import numpy as np

from sppcls.data.cut import Cut, Sizes, aspect_buckets, bucket_size, cut_images
from sppcls.data.geometry import Fit, Size
from sppcls.data.mix import MixedPlan, RandomPlan, parts_of
from sppcls.data.plan import TrainingPlan
from sppcls.data.schedule import Schedule, Turns
from sppcls.errors import ConfigError

Membership = Literal["auto", "aspect", "random"]


@dataclass(eq=False)
class Planner:
    """Plans the epochs of a run on images of ``sizes`` [N, 2] (H, W); the cut, which all epochs share, is made once.

    Attributes:
        batches: Which images share a step. ``aspect``: similar ones, mixed by ``mix``, whatever ``fit`` is.
            ``random``: any. ``auto``: by aspect if ``fit`` is ``keep``, random if all tensors are square anyway.
            Two fits with the same ``batches`` have the same images in every step.
        multiple: Sides of tensors are multiples of it, and so are those of the images in them.
        mix: From 0, a step is one tensor of one aspect, to 1, it has a part for each image. Of no effect on random
            steps. A step that is drawn from several scales (``every="batch"``) is mixed among those of its scale.
        batch_pixels: Pixels of a rank's step, of images of the mean aspect: every step has about as many images of its
            scale as they hold. None: ``batch_size`` images, whatever the scale. ``auto``: for scales that are drawn,
            unless a step is one tensor of one aspect, those of ``batch_size`` images at the middle one, and of two at
            the largest at least; else None.

    Raises:
        ValueError: ``mix`` is not 0 to 1, or there are no such ``batches``.
    """

    sizes: Sizes
    schedule: Schedule
    batch_size: int
    fit: Fit = "keep"
    max_aspect: float = 4.0
    seed: int = 0
    mix: float = 0.0
    batches: Membership = "auto"
    multiple: int = 1
    batch_pixels: int | Literal["auto"] | None = None
    _cuts: dict[int, Cut] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        if not 0 <= self.mix <= 1:
            raise ValueError(f"mix is {self.mix}; expected 0 to 1")
        if self.batches not in get_args(Membership):
            raise ValueError(f"batches is {self.batches!r}; expected one of {', '.join(get_args(Membership))}")
        by_aspect = self.batches == "aspect" or (self.batches == "auto" and self.fit == "keep")
        self.membership: Membership = "aspect" if by_aspect else "random"
        choices = self.schedule.loaded
        self.step_pixels = self.batch_pixels if self.batch_pixels != "auto" else None
        one_aspect = by_aspect and not self.mix  # whose steps are one tensor each
        if self.batch_pixels == "auto" and self.schedule.kind == "drawn" and not one_aspect:
            least = math.ceil(2 * self._mean_pixels(choices[-1]))
            self.step_pixels = max(round(self.batch_size * self._mean_pixels(self.schedule.middle)), least)
        images = self.images_at(choices[-1])
        self.parts = parts_of(self.mix, images) if by_aspect else 1
        fewest = min(self.parts, 2)
        self._each = images // fewest  # images of the cut's batches: a step is one, two or more of them
        self.together = {
            scale: max(count // self._each, fewest) if (count := self.images_at(scale)) > images else fewest
            for scale in choices
        }

    def images_at(self, scale: int) -> int:
        """Return the images of a step of a rank at a scale.

        Raises:
            ConfigError: ``batch_pixels`` hold fewer than two.
        """
        if self.step_pixels is None:
            return self.batch_size
        pixels = self._mean_pixels(scale)
        if self.step_pixels < 2 * pixels:
            raise ConfigError(
                f"data.batch_pixels={self.step_pixels} hold less than two images at scale {scale}; "
                f"allowed: {math.ceil(2 * pixels)} or more"
            )
        return round(self.step_pixels / pixels)

    def _mean_pixels(self, scale: int) -> float:
        """Return the mean pixels of an image at a scale, and of its copies beside it."""
        buckets, counts = np.unique(aspect_buckets(self.sizes, self.max_aspect, self.fit), return_counts=True)
        tensors = np.array([bucket_size(b, b, scale, self.multiple) for b in buckets.tolist()])
        again = 1 + sum(other**2 for other in self.schedule.beside) / scale**2
        return float(np.average(tensors.prod(axis=1), weights=counts)) * again

    def turns(self, epoch: int, world: int = 1, schedule: Schedule | None = None) -> Turns:
        """Return the scales of the steps of an epoch, and how many batches of the cut each has."""
        schedule = schedule or self.schedule
        together = {scale: self.together.get(scale, min(self.parts, 2)) for scale in schedule.loaded}
        return schedule.turns(epoch, len(self._cut(world).counts), together)

    def steps(self, epochs: Iterable[int], world: int = 1) -> int:
        """Return the number of steps that a rank takes in these epochs."""
        return sum(len(self.turns(epoch, world).scales) for epoch in epochs)

    def work(self, epochs: Iterable[int], world: int = 1) -> float:
        """Return the cost of some epochs: the sum over epochs of the images' mean squared scale."""
        every = [self.turns(epoch, world) for epoch in epochs]
        again = sum(scale**2 for scale in self.schedule.beside)
        return float(sum(np.average(np.square(turns.scales), weights=turns.batches) + again for turns in every))

    def plan(self, epoch: int, world: int = 1, schedule: Schedule | None = None) -> TrainingPlan:
        """Return the plan of an epoch for so many ranks."""
        of = self._cut(world), self.turns(epoch, world, schedule), epoch, self.seed
        if self.parts > 1:
            parts = {scale: parts_of(self.mix, self.images_at(scale)) for scale in of[1].scales}
            return MixedPlan(*of, parts)
        if self.fit == "keep" and self.membership == "random":
            return RandomPlan(*of, aspect_buckets(self.sizes, self.max_aspect))
        return TrainingPlan(*of)

    def _cut(self, world: int) -> Cut:
        if world not in self._cuts:
            by: Fit = "keep" if self.membership == "aspect" else "warp"
            self._cuts[world] = cut_images(self.sizes, self._each, world, self.fit, self.max_aspect, by, self.multiple)
        return self._cuts[world]

    def largest_step(self, world: int = 1) -> tuple[int, Size, int]:
        """Return the most images of a rank's step, the (H, W) with the most pixels, and the number of tensors."""
        scale = max(self.schedule.loaded, key=lambda scale: (self.together[scale] * scale**2, scale))
        largest = self.plan(0, world, Schedule("single", (scale,))).largest
        images = min(self.together[scale] * len(largest.indices), self.images_at(scale))
        if self.fit != "keep":
            return images, largest.size, 1
        return images, largest.size, self.parts if self.membership == "aspect" else 2
