"""Plans the epochs of a run: which images share a step, how mixed the steps are, and what they cost."""

from dataclasses import dataclass, field
from typing import Literal, get_args

from sppcls.data.cut import Cut, Sizes, aspect_buckets, cut_images
from sppcls.data.geometry import Fit, Size
from sppcls.data.mix import MixedPlan, RandomPlan, parts_of
from sppcls.data.plan import TrainingPlan
from sppcls.data.schedule import Schedule

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
    _cuts: dict[int, Cut] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        if not 0 <= self.mix <= 1:
            raise ValueError(f"mix is {self.mix}; expected 0 to 1")
        if self.batches not in get_args(Membership):
            raise ValueError(f"batches is {self.batches!r}; expected one of {', '.join(get_args(Membership))}")
        by_aspect = self.batches == "aspect" or (self.batches == "auto" and self.fit == "keep")
        self.membership: Membership = "aspect" if by_aspect else "random"
        self.parts = parts_of(self.mix, self.batch_size) if by_aspect else 1

    def plan(self, epoch: int, world: int = 1, schedule: Schedule | None = None) -> TrainingPlan:
        """Return the plan of an epoch for so many ranks."""
        of = self._cut(world), schedule or self.schedule, epoch, self.seed
        if self.parts > 1:
            return MixedPlan(*of, self.parts)
        if self.fit == "keep" and self.membership == "random":
            return RandomPlan(*of, aspect_buckets(self.sizes, self.max_aspect))
        return TrainingPlan(*of)

    def _cut(self, world: int) -> Cut:
        if world not in self._cuts:
            size = self.batch_size if self.parts == 1 else self.batch_size // 2
            by: Fit = "keep" if self.membership == "aspect" else "warp"
            self._cuts[world] = cut_images(self.sizes, size, world, self.fit, self.max_aspect, by, self.multiple)
        return self._cuts[world]

    def largest_step(self, world: int = 1) -> tuple[int, Size, int]:
        """Return the most images of a rank's step, the (H, W) with the most pixels, and the number of tensors."""
        largest = self.plan(0, world, Schedule("single", (self.schedule.choices[-1],))).largest
        images = len(largest.indices) if self.parts == 1 else min(2 * len(largest.indices), self.batch_size)
        if self.fit != "keep":
            return images, largest.size, 1
        return images, largest.size, self.parts if self.membership == "aspect" else 2
