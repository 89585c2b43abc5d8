"""The epoch plan: which images meet in which batch, and at which (H, W).

Everything here is a pure function of (seed, epoch, image sizes, schedule, batch size, world size), so that every
rank and every worker agrees without a word, and an epoch can be taken up again anywhere.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, overload

import numpy as np

from sppcls.data.cut import Cut, Fit, Sizes, aspect_buckets, bucket_size, cut_images, cut_rest
from sppcls.data.geometry import images_at
from sppcls.data.schedule import Schedule


@dataclass(frozen=True)
class Batch:
    """Images that meet in one tensor.

    Attributes:
        indices: Positions in the source.
        size: (H, W) of the tensor; both are above the scale where wide and tall images meet.
        scale: The scale that the schedule asked for.
        epoch: Epoch that augmentation draws from; -1 means no augmentation.
    """

    indices: tuple[int, ...]
    size: tuple[int, int]
    scale: int
    epoch: int = -1


@dataclass(frozen=True)
class EpochPlan:
    """The batches of one epoch, the same on every rank; step t of rank r is batch ``t * world + r``.

    Attributes:
        batches: All batches, those of one step side by side and of one size.
        world: Number of ranks.
        repeats: Images handed out twice because a step had fewer images than ranks.
    """

    batches: Sequence[Batch]
    world: int
    repeats: int

    @property
    def steps(self) -> int:
        """Steps that each rank takes."""
        return len(self.batches) // self.world

    def of_rank(self, rank: int) -> Sequence[Batch]:
        """Return the batches of one rank, a batch a step."""
        return self.batches[rank :: self.world]

    @property
    def images(self) -> int:
        """Images of all batches, repeats included."""
        return sum(len(batch.indices) for batch in self.batches)

    def weights_of(self, rank: int) -> tuple[float, ...]:
        """Return the weight of an image in the loss of each of a rank's steps: one over the epoch's mean batch size.

        The loss of a step is the weighted sum over its images, averaged over ranks. Then every image has the same
        weight in the epoch, whatever its batch; one that is handed out several times has it once.
        """
        weight = len(self.batches) / max(self.images - self.repeats, 1)
        # Images are repeated in a step of fewer images than ranks alone, where every batch is a single image.
        copies = Counter(batch.indices for batch in self.batches) if self.repeats else {}
        return tuple(weight / copies.get(batch.indices, 1) for batch in self.of_rank(rank))


@dataclass(frozen=True, eq=False)
class _Epoch:
    """The steps of an epoch, and, once a batch is asked for, the images of each."""

    cut: Cut
    schedule: Schedule
    seed: int
    epoch: int

    @cached_property
    def steps(self) -> Sizes:
        """[S, 4] images of each step, its H and W, its scale."""
        order = self.cut.order(self.seed, self.epoch)
        lowest, highest = self.cut.lowest[order].tolist(), self.cut.highest[order].tolist()
        scales = self.schedule.scales_of(self.epoch, len(order))
        sizes = np.array(list(map(bucket_size, lowest, highest, scales)))
        return np.column_stack([self.cut.dealt[order], sizes, scales])

    @cached_property
    def images(self) -> Sizes:
        return self.cut.shuffle(self.seed, self.epoch)

    @cached_property
    def starts(self) -> Sizes:
        return np.cumsum(self.steps[:, 0]) - self.steps[:, 0]

    def batch(self, number: int) -> Batch:
        """Return batch ``number``: the steps' images are dealt to the ranks, the first ones may have one more."""
        step, rank = divmod(number, self.cut.world)
        count, height, width, scale = self.steps[step].tolist()
        each, more = divmod(count, self.cut.world)
        start = int(self.starts[step]) + rank * each + min(rank, more)
        indices = self.images[start : start + each + (rank < more)].tolist()
        return Batch(tuple(indices), (height, width), scale, self.epoch)


class _Batches(Sequence[Batch]):
    """Some batches of an epoch, each made when it is asked for: those of millions of images would fill the memory."""

    def __init__(self, epoch: _Epoch, numbers: range) -> None:
        self._epoch, self._numbers = epoch, numbers

    def __len__(self) -> int:
        return len(self._numbers)

    @overload
    def __getitem__(self, at: int) -> Batch: ...
    @overload
    def __getitem__(self, at: slice) -> "_Batches": ...
    def __getitem__(self, at: int | slice) -> "Batch | _Batches":
        if isinstance(at, slice):
            return _Batches(self._epoch, self._numbers[at])
        return self._epoch.batch(self._numbers[at])

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and tuple(self) == tuple(other)


@dataclass(frozen=True)
class TrainingPlan(EpochPlan):
    """The plan of a training epoch: what it costs follows from the cut, images are shuffled for the first batch."""

    drawn: _Epoch = field(compare=False, repr=False)

    @property
    def images(self) -> int:
        """Images of all batches, repeats included."""
        return int(self.drawn.steps[:, 0].sum())

    @property
    def pixels(self) -> int:
        """Pixels of all batches, padding and repeats included: what the epoch costs."""
        return int(self.drawn.steps[:, :3].prod(axis=1).sum())

    @property
    def tensors(self) -> Sizes:
        """[T, 3] the different H and W that there are, at which scale."""
        different: Sizes = np.unique(self.drawn.steps[:, 1:], axis=0)
        return different

    @property
    def shapes(self) -> int:
        """How many different (H, W) there are."""
        return len(np.unique(self.tensors[:, :2], axis=0))

    @property
    def smallest(self) -> int:
        """Images of the smallest batch."""
        return int(self.drawn.steps[:, 0].min()) // self.world

    def padding(self, sizes: Sizes) -> float:
        """Return the share of padding in the pixels, of images of ``sizes`` not shuffled within their bucket."""
        cut = self.drawn.cut
        tensors = np.empty((len(cut.counts), 2), np.int64)
        tensors[cut.order(self.drawn.seed, self.drawn.epoch)] = self.drawn.steps[:, 1:3]
        return padding_share(np.repeat(tensors, cut.counts, axis=0), sizes[cut.members[cut.picks]])

    @property
    def largest(self) -> Batch:
        """The first batch of those with the most pixels."""
        counts, heights, widths, _ = self.drawn.steps.T
        return self.batches[int((-(-counts // self.world) * heights * widths).argmax()) * self.world]


def plan_cut(cut: Cut, schedule: Schedule, epoch: int, seed: int) -> TrainingPlan:
    """Plan an epoch of images that are cut into steps already (see `plan_epoch`)."""
    drawn = _Epoch(cut, schedule, seed, epoch)
    repeats = int((cut.dealt - cut.counts).sum())
    return TrainingPlan(_Batches(drawn, range(len(cut.counts) * cut.world)), cut.world, repeats, drawn)


def plan_epoch(
    sizes: Sizes, schedule: Schedule, epoch: int, *, seed: int, batch_size: int, world: int = 1, **how: Any
) -> TrainingPlan:
    """Plan one training epoch: every image once, batches of one (H, W), as many batches at every scale.

    Images are shuffled within their aspect bucket, and the buckets are cut into steps; a step that spans
    neighbouring buckets takes the larger tensor. So no batch is under ``batch_size // 2`` images (unless the
    whole set is) and no remainder is dropped. ``how`` is as in `cut_images`.
    """
    return plan_cut(cut_images(sizes, batch_size=batch_size, world=world, **how), schedule, epoch, seed)


def plan_rest(
    sizes: Sizes, schedule: Schedule, epoch: int, done: Sequence[tuple[int, int]], *, seed: int, **how: Any
) -> TrainingPlan:
    """Plan what is left of an epoch after each (world, steps) of ``done``, the numbers of ranks that were at it before.

    Every image that no step has had yet comes once. ``how`` is as in `plan_epoch`.
    """
    return plan_cut(cut_rest(sizes, tuple(done), seed=seed, epoch=epoch, **how), schedule, epoch, seed)


def plan_evaluation(
    sizes: Sizes,
    scale: int,
    *,
    batch_size: int,
    fit: Fit = "keep",
    max_aspect: float = 4.0,
    largest: int | None = None,
) -> tuple[Batch, ...]:
    """Plan one pass for measuring: every image once, in a tensor whose (H, W) depends on that image alone.

    A batch has at most ``batch_size`` images and `PIXELS` pixels, and one image at least; plans of several scales
    have the same images in each batch where all are given the ``largest`` of them.
    """
    buckets = aspect_buckets(sizes, max_aspect) if fit == "keep" else np.zeros(len(sizes), np.int64)
    batches: list[Batch] = []
    for bucket in np.unique(buckets):
        members = np.flatnonzero(buckets == bucket).tolist()
        size, widest = (bucket_size(int(bucket), int(bucket), side) for side in (scale, largest or scale))
        count = images_at(widest, batch_size)
        batches += [Batch(tuple(members[i : i + count]), size, scale) for i in range(0, len(members), count)]
    return tuple(batches)


def padding_share(tensors: Sizes, sizes: Sizes) -> float:
    """Return the share of padding in ``tensors`` [N, 2] (H, W) that hold images of ``sizes`` [N, 2] in their aspect."""
    factor = (tensors / sizes).min(axis=1, keepdims=True)
    used = np.rint(sizes * factor).clip(1).prod(axis=1).sum()
    return float(1 - used / tensors.prod(axis=1).sum())
