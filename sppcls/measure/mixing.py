"""How mixed the steps of a training are: the classes in one, and how often two images meet again."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from sppcls.data.cut import Sizes
from sppcls.data.plan import TrainingPlan
from sppcls.data.planner import Planner

EPOCHS = 3  # that meetings are counted in
POOR = 0.5  # of the classes of random steps


@dataclass(frozen=True)
class Mixing:
    """What the steps of a training are like, beside random ones of as many images."""

    by: str  # aspect or random: which images share a step
    parts: int  # that a step is dealt from
    classes: float  # in a step, over all ranks: the exponential of the entropy of its classes, mean over steps
    classes_random: float
    again: float  # chance that two images that share a step share one in the next epoch
    again_random: float

    @property
    def poor(self) -> bool:
        """Whether steps have far fewer classes than random ones."""
        return self.classes < POOR * self.classes_random


def mixing(planner: Planner, targets: Sequence[int] | Sizes, world: int = 1) -> Mixing:
    """Return how mixed the steps of ``planner`` are, for images of these classes, from its first epochs."""
    plans = [planner.plan(epoch, world) for epoch in range(EPOCHS)]
    of_image, steps = np.asarray(targets)[plans[0].sequence], plans[0].step_of
    shuffled = np.random.default_rng(0).permutation(of_image)
    chances = [_again(*pair) for pair in pairwise(plans)]
    sizes = np.bincount(steps)
    return Mixing(
        by=planner.membership,
        parts=planner.parts,
        classes=_classes(of_image, steps),
        classes_random=_classes(shuffled, steps),
        again=float(np.mean(chances)),
        again_random=float((sizes * (sizes - 1)).sum() / sizes.sum() / max(sizes.sum() - 1, 1)),
    )


def _classes(of_image: Sizes, steps: Sizes) -> float:
    kinds = int(of_image.max()) + 1
    pairs, counts = np.unique(steps * kinds + of_image, return_counts=True)
    of_step = pairs // kinds
    shares = counts / np.bincount(steps)[of_step]
    return float(np.exp(np.bincount(of_step, -shares * np.log(shares))).mean())


def _again(one: TrainingPlan, other: TrainingPlan) -> float:
    """Return the share of the pairs of images in a step of ``one`` that share a step of ``other``."""
    steps = [np.empty(len(plan.sequence), np.int64) for plan in (one, other)]
    for step, plan in zip(steps, (one, other), strict=True):
        step[plan.sequence] = plan.step_of
    mates, both = (np.unique(of, return_counts=True)[1] for of in (steps[0], steps[0] * other.steps + steps[1]))
    return float((both * (both - 1)).sum() / max((mates * (mates - 1)).sum(), 1))
