"""The scale schedule: a pure function of the epoch, the step and the seed."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from sppcls.errors import ConfigError
from sppcls.plugins import plugin


@dataclass(frozen=True)
class Turns:
    """The scale and the batches of each step of an epoch, and the scales that each sees its images at again."""

    scales: list[int]
    batches: list[int]
    beside: tuple[int, ...] = ()


@dataclass(frozen=True)
class Schedule:
    """The scales of a training run.

    Attributes:
        kind: ``single``: the one scale. ``alternate``: epoch e uses ``scales[e mod k]`` (paper, section 2.3).
            ``random``: one draw per epoch (or step, with ``every="batch"``) from the smallest to the largest
            scale by ``step`` pixels. ``drawn``: one of the scales per step, as often as it is listed: all have their
            turn before any comes again. ``progressive``: the scales in turn, each for an equal part of the epochs.
            ``all``: every step at the largest, and its images again at each of the others, which are made of those
            (`beside`).
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

    @property
    def middle(self) -> int:
        """The scale that stands for all: the middle one of those drawn, else the largest."""
        return self.choices[len(self.choices) // 2] if self.kind == "drawn" else self.choices[-1]

    @property
    def beside(self) -> tuple[int, ...]:
        """The scales, ascending, at which the images of a step are seen again in the same step."""
        return self.choices[:-1] if self.kind == "all" else ()

    @property
    def loaded(self) -> tuple[int, ...]:
        """The scales, ascending, at which images are loaded."""
        return self.choices[len(self.beside) :]

    def turns(self, epoch: int, batches: int, together: Mapping[int, int] | None = None) -> Turns:
        """Return the steps of an epoch of so many batches; each scale takes one a step, or those of ``together``."""
        together = together or dict.fromkeys(self.choices, 1)
        scales = self.scales_of(epoch, -(-batches // min(together[scale] for scale in self.loaded)))
        counts = [together[scale] for scale in scales]
        steps = int(np.searchsorted(np.cumsum(counts), batches)) + 1
        return Turns(scales[:steps], counts[:steps], self.beside)

    def scales_of(self, epoch: int, steps: int) -> list[int]:
        """Return the scale of each of the ``steps`` steps of an epoch (counted from 0)."""
        rng = np.random.default_rng([self.seed, epoch, 1])
        if self.kind == "random":
            drawn: list[int] = rng.choice(self.choices, steps if self.every == "batch" else 1).tolist()
            return drawn if self.every == "batch" else drawn * steps
        if self.kind == "drawn":
            rounds = [rng.permutation(self.scales) for _ in range(0, steps, len(self.scales))]
            turns: list[int] = np.concatenate(rounds)[:steps].tolist()
            return turns
        if self.kind == "progressive":
            part = min(epoch * len(self.scales) // max(self.epochs, 1), len(self.scales) - 1)
            return [self.scales[part]] * steps
        if self.kind == "all":
            return [self.choices[-1]] * steps
        if self.kind in ("single", "alternate"):
            return [self.scales[epoch % len(self.scales)]] * steps
        scale = plugin("schedules", self.kind, "schedule.kind")(self.scales, epoch, self.epochs, self.seed)
        if scale not in self.scales:
            raise ConfigError(
                f"schedule.kind={self.kind} gave {scale!r} for epoch {epoch + 1}; it must return one of {self.scales}"
            )
        return [scale] * steps
