"""What a plan is made of: batches, steps of several batches, and the steps of an epoch as dealt to ranks."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Batch:
    """Images that share one tensor.

    Attributes:
        indices: Positions in the source.
        size: (H, W) of the tensor; both are above the scale if wide and tall images are mixed.
        scale: The scale set by the schedule.
        epoch: Epoch that augmentation draws from; -1 means no augmentation.
        weight: Of each of the images in the loss.
    """

    indices: tuple[int, ...]
    size: tuple[int, int]
    scale: int
    epoch: int = -1
    weight: float = 1.0


@dataclass(frozen=True)
class Step:
    """Batches of different shapes that the network is trained on together."""

    parts: tuple[Batch, ...]

    @classmethod
    def of(cls, parts: Iterable[Batch]) -> "Step":
        """Return a step of those parts that have images; what has the same shape is one tensor."""
        alike: dict[tuple[object, ...], list[int]] = {}
        for part in parts:
            if part.indices:
                alike.setdefault((part.size, part.scale, part.epoch, part.weight), []).extend(part.indices)
        return cls(tuple(Batch(tuple(indices), *of) for of, indices in alike.items()))  # type: ignore[arg-type]


class EpochPlan:
    """The batches of one epoch, the same on every rank; batch ``t * world + r`` is step t of rank r."""

    def __init__(self, batches: Sequence[Batch | Step], world: int) -> None:
        self._batches, self.world = batches, world

    def __len__(self) -> int:
        return len(self._batches)

    def __getitem__(self, number: int) -> Batch | Step:
        return self._batches[number]

    def __iter__(self) -> Iterator[Batch | Step]:
        return (self[number] for number in range(len(self)))

    def of_rank(self, rank: int, first: int = 0) -> Iterator[Batch | Step]:
        """Yield the batches of one rank, a batch a step, from step ``first`` on."""
        return (self[number] for number in range(first * self.world + rank, len(self), self.world))
