"""Plans the epochs of a run: which images share a step, how mixed the steps are, and what they cost."""

from dataclasses import dataclass, field
from typing import Literal

from sppcls.data.cut import Cut, Sizes, aspect_buckets, cut_images
from sppcls.data.geometry import Fit
from sppcls.data.mix import MixedPlan, RandomPlan, tensors_of
from sppcls.data.plan import Batch, TrainingPlan
from sppcls.data.schedule import Schedule

Membership = Literal["auto", "aspect", "random"]


@dataclass(eq=False)
class Planner:
    """Plans the epochs of a run on images of ``sizes`` [N, 2] (H, W); the cut, which all epochs share, is made once.

    Attributes:
        batches: Which images share a step. ``aspect``: similar ones, mixed by ``mix``, whatever ``fit`` is.
            ``random``: any. ``auto``: by aspect if ``fit`` is ``keep``, random if all tensors are square anyway.
            Two fits with the same ``batches`` have the same images in every step.
        mix: From 0, a step is one tensor of one aspect, to 1, it has a tensor for each image.
    """

    sizes: Sizes
    schedule: Schedule
    batch_size: int
    fit: Fit = "keep"
    max_aspect: float = 4.0
    seed: int = 0
    mix: float = 0.0
    batches: Membership = "auto"
    _cuts: dict[int, Cut] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        by_aspect = self.batches == "aspect" or (self.batches == "auto" and self.fit == "keep")
        self.membership: Membership = "aspect" if by_aspect else "random"
        self.tensors = tensors_of(self.mix, self.batch_size) if by_aspect else 1  # parts that a step is made of

    def plan(self, epoch: int, world: int = 1, schedule: Schedule | None = None) -> TrainingPlan:
        """Return the plan of an epoch for so many ranks."""
        of = self._cut(world), schedule or self.schedule, epoch, self.seed
        if self.tensors > 1:
            return MixedPlan(*of, self.tensors)
        if self.fit == "keep" and self.membership == "random":
            return RandomPlan(*of, aspect_buckets(self.sizes, self.max_aspect))
        return TrainingPlan(*of)

    def _cut(self, world: int) -> Cut:
        if world not in self._cuts:
            size = self.batch_size if self.tensors == 1 else self.batch_size // 2
            by: Fit = "keep" if self.membership == "aspect" else "warp"
            self._cuts[world] = cut_images(self.sizes, size, world, self.fit, self.max_aspect, by)
        return self._cuts[world]

    def largest_batch(self, world: int = 1) -> Batch:
        """Return the batch with the most pixels of an epoch at the largest scale: the largest of all."""
        return self.plan(0, world, Schedule("single", (self.schedule.choices[-1],))).largest
