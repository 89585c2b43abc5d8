"""The scale schedule: a pure function of the epoch, the step and the seed."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import numpy as np

from sppcls.errors import ConfigError
from sppcls.plugins import plugin


@dataclass(frozen=True)
class Schedule:
    """The scales of a training run.

    Attributes:
        kind: ``single``: the one scale. ``alternate``: epoch e uses ``scales[e mod k]`` (paper, section 2.3).
            ``random``: one draw per epoch (or step, with ``every="batch"``) from the smallest to the largest
            scale by ``step`` pixels. ``progressive``: the scales in turn, each for an equal part of the epochs.
            Any other is a callable of another package, (scales, epoch, epochs, seed) -> one of the scales.
        scales: Shorter sides in pixels.
        epochs: Length of the run, which ``progressive`` divides.

    >>> [Schedule("alternate", (64, 96)).scales_of(epoch, 1) for epoch in range(3)]
    [[64], [96], [64]]
    """

    kind: str
    scales: tuple[int, ...]
    every: Literal["epoch", "batch"] = "epoch"
    step: int = 8
    epochs: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.scales or min(self.scales) < 1 or self.step < 1:
            raise ValueError(f"scales are {self.scales} by {self.step}; expected one or more of at least 1 pixel")

    @property
    def choices(self) -> tuple[int, ...]:
        """All possible training scales, ascending."""
        if self.kind == "random":
            return tuple(range(min(self.scales), max(self.scales) + 1, self.step))
        return tuple(sorted(set(self.scales)))

    def work(self, epochs: Iterable[int], steps: int) -> float:
        """Return the cost of some epochs: the sum over epochs of the mean squared scale."""
        return sum(
            sum(scale**2 for scale in drawn) / len(drawn) for drawn in (self.scales_of(e, steps) for e in epochs)
        )

    def scales_of(self, epoch: int, steps: int) -> list[int]:
        """Return the scale of each of the ``steps`` steps of an epoch (counted from 0)."""
        if self.kind == "random":
            rng = np.random.default_rng([self.seed, epoch, 1])
            drawn: list[int] = rng.choice(self.choices, steps if self.every == "batch" else 1).tolist()
            return drawn if self.every == "batch" else drawn * steps
        if self.kind == "progressive":
            part = min(epoch * len(self.scales) // max(self.epochs, 1), len(self.scales) - 1)
            return [self.scales[part]] * steps
        if self.kind in ("single", "alternate"):
            return [self.scales[epoch % len(self.scales)]] * steps
        scale = plugin("schedules", self.kind, "schedule.kind")(self.scales, epoch, self.epochs, self.seed)
        if scale not in self.scales:
            raise ConfigError(
                f"schedule.kind={self.kind} gave {scale!r} for epoch {epoch + 1}; it must return one of {self.scales}"
            )
        return [scale] * steps
