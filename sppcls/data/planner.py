"""The plans of a whole run: how its training images are cut, and what each epoch trains at which scale."""

from collections.abc import Sequence

from sppcls.data.cut import Cut, Fit, Sizes, cut_images, cut_rest
from sppcls.data.plan import TrainingPlan, plan_cut
from sppcls.data.schedule import Schedule


class Planner:
    """Plans epochs of one set of images; the cut, which depends on neither epoch nor scale, is made once.

    Args:
        sizes: [N, 2] sizes of the training images, (H, W).
    """

    def __init__(
        self,
        sizes: Sizes,
        schedule: Schedule,
        *,
        batch_size: int,
        fit: Fit = "keep",
        max_aspect: float = 4.0,
        seed: int,
    ) -> None:
        self.sizes, self.schedule, self.seed = sizes, schedule, seed
        self._how = {"batch_size": batch_size, "fit": fit, "max_aspect": max_aspect}
        self._cuts: dict[object, Cut] = {}

    def plan(self, epoch: int, done: Sequence[tuple[int, int]] = (), world: int = 1) -> TrainingPlan:
        """Return the plan of an epoch for so many ranks, or of its rest after (ranks, steps) ``done`` (`plan_rest`)."""
        return plan_cut(self._cut(epoch, tuple(done), world), self.schedule, epoch, self.seed)

    def at_largest(self, world: int = 1) -> TrainingPlan:
        """Return an epoch at the largest scale, whose largest batch is the largest of all."""
        return plan_cut(self._cut(0, (), world), Schedule("single", (self.schedule.choices[-1],)), 0, self.seed)

    def _cut(self, epoch: int, done: tuple[tuple[int, int], ...], world: int) -> Cut:
        key = (world, done and (epoch, done))
        if key not in self._cuts:
            how = {**self._how, "world": world}
            rest = {"seed": self.seed, "epoch": epoch}
            self._cuts[key] = (
                cut_rest(self.sizes, done, **rest, **how)  # type: ignore[arg-type]
                if done
                else cut_images(self.sizes, **how)  # type: ignore[arg-type]
            )
        return self._cuts[key]
