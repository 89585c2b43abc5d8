"""The epoch plan: which images are in which batch, and at which (H, W).

Everything here is a pure function of (seed, epoch, image sizes, schedule, batch size, world size), so that every
rank and every worker agrees without communication, and an epoch can be resumed at any batch.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from sppcls.data.cut import Cut, Sizes, aspect_buckets, bucket_size, cut_images
from sppcls.data.geometry import Fit, images_at
from sppcls.data.schedule import Schedule


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


class EpochPlan:
    """The batches of one epoch, the same on every rank; batch ``t * world + r`` is step t of rank r."""

    def __init__(self, batches: Sequence[Batch], world: int) -> None:
        self._batches, self.world = batches, world

    def __len__(self) -> int:
        return len(self._batches)

    def __getitem__(self, number: int) -> Batch:
        return self._batches[number]

    def __iter__(self) -> Iterator[Batch]:
        return (self[number] for number in range(len(self)))

    def of_rank(self, rank: int, first: int = 0) -> Iterator[Batch]:
        """Yield the batches of one rank, a batch a step, from step ``first`` on."""
        return (self[number] for number in range(first * self.world + rank, len(self), self.world))


class TrainingPlan(EpochPlan):
    """The plan of a training epoch: every image once, batches of one (H, W), as many batches at every scale.

    What it costs follows from the cut. Images are shuffled, within their aspect bucket, when the first batch is asked
    for, and each batch is made when it is asked for: those of millions of images would fill the memory.

    Every image has the same weight in the loss of the epoch, whatever its batch: the loss of a step is the weighted sum
    over its images, averaged over ranks. An image that is handed out several times shares its weight among them.
    """

    def __init__(self, cut: Cut, schedule: Schedule, epoch: int, seed: int) -> None:
        self.world, self._cut, self._seed, self._epoch = cut.world, cut, seed, epoch
        self._order = cut.order(seed, epoch)
        scales = schedule.scales_of(epoch, len(self._order))
        buckets = cut.lowest[self._order].tolist(), cut.highest[self._order].tolist()
        sizes = np.array(list(map(bucket_size, *buckets, scales)))
        # [S, 4] images of each step, its H and W, its scale.
        self._steps = np.column_stack([cut.dealt[self._order], sizes, scales])
        self._starts = np.cumsum(self._steps[:, 0]) - self._steps[:, 0]

    def __len__(self) -> int:
        return len(self._steps) * self.world

    @property
    def steps(self) -> int:
        """Steps that each rank takes."""
        return len(self._steps)

    def __getitem__(self, number: int) -> Batch:
        """Return a batch: a step's images are dealt to the ranks, the first ones may have one more."""
        step, rank = divmod(range(len(self))[number], self.world)
        count, height, width, scale = self._steps[step].tolist()
        each, more = divmod(count, self.world)
        start = int(self._starts[step])
        first = start + rank * each + min(rank, more)
        indices = self._images[first : first + each + (rank < more)].tolist()
        weight = len(self) / (self.images - self.repeats)
        if self.repeats and each == 1:
            weight /= int((self._images[start : start + count] == indices[0]).sum())
        return Batch(tuple(indices), (height, width), scale, self._epoch, weight)

    @cached_property
    def _images(self) -> Sizes:
        return self._cut.shuffle(self._seed, self._epoch)

    @cached_property
    def repeats(self) -> int:
        """Images handed out twice because a step had fewer images than ranks."""
        return self.images - int(self._cut.counts.sum())

    @cached_property
    def images(self) -> int:
        """Images of all batches, repeats included."""
        return int(self._steps[:, 0].sum())

    @property
    def pixels(self) -> int:
        """Pixels of all batches, padding and repeats included: what the epoch costs."""
        return int(self._steps[:, :3].prod(axis=1).sum())

    @property
    def tensors(self) -> Sizes:
        """[T, 3] the distinct H and W, and their scale."""
        different: Sizes = np.unique(self._steps[:, 1:], axis=0)
        return different

    @property
    def shapes(self) -> int:
        """How many different (H, W) there are."""
        return len(np.unique(self.tensors[:, :2], axis=0))

    @property
    def smallest(self) -> int:
        """Images of the smallest batch."""
        return int(self._steps[:, 0].min()) // self.world

    @property
    def largest(self) -> Batch:
        """The first of the batches with the most pixels."""
        counts, heights, widths, _ = self._steps.T
        return self[int((-(-counts // self.world) * heights * widths).argmax()) * self.world]

    def padding(self, sizes: Sizes) -> float:
        """Return the share of padding in the pixels, of images of ``sizes`` not shuffled within their bucket."""
        tensors = np.empty((len(self._steps), 2), np.int64)
        tensors[self._order] = self._steps[:, 1:3]
        return padding_share(np.repeat(tensors, self._cut.counts, axis=0), sizes[self._cut.members[self._cut.picks]])


@dataclass(eq=False)
class Planner:
    """Plans the epochs of a run on images of ``sizes`` [N, 2] (H, W); the cut, which all epochs share, is made once."""

    sizes: Sizes
    schedule: Schedule
    batch_size: int
    fit: Fit = "keep"
    max_aspect: float = 4.0
    seed: int = 0
    _cuts: dict[int, Cut] = field(default_factory=dict, init=False, repr=False)

    def plan(self, epoch: int, world: int = 1, schedule: Schedule | None = None) -> TrainingPlan:
        """Return the plan of an epoch for so many ranks."""
        if world not in self._cuts:
            self._cuts[world] = cut_images(self.sizes, self.batch_size, world, self.fit, self.max_aspect)
        return TrainingPlan(self._cuts[world], schedule or self.schedule, epoch, self.seed)

    def largest_batch(self, world: int = 1) -> Batch:
        """Return the batch with the most pixels of an epoch at the largest scale: the largest of all."""
        return self.plan(0, world, Schedule("single", (self.schedule.choices[-1],))).largest


def plan_epoch(
    sizes: Sizes,
    schedule: Schedule,
    epoch: int,
    *,
    seed: int,
    batch_size: int,
    world: int = 1,
    fit: Fit = "keep",
    max_aspect: float = 4.0,
) -> TrainingPlan:
    """Plan one training epoch of images of ``sizes`` [N, 2] (H, W).

    A step that spans neighbouring aspect buckets takes the larger tensor. So no batch is under ``batch_size // 2``
    images (unless the whole set is) and no remainder is dropped.
    """
    return TrainingPlan(cut_images(sizes, batch_size, world, fit, max_aspect), schedule, epoch, seed)


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
    buckets = aspect_buckets(sizes, max_aspect, fit)
    batches: list[Batch] = []
    for bucket in np.unique(buckets).tolist():
        members = np.flatnonzero(buckets == bucket).tolist()
        size, widest = (bucket_size(bucket, bucket, side) for side in (scale, largest or scale))
        count = images_at(widest, batch_size)
        batches += [Batch(tuple(members[i : i + count]), size, scale) for i in range(0, len(members), count)]
    return tuple(batches)


def padding_share(tensors: Sizes, sizes: Sizes) -> float:
    """Return the share of padding in ``tensors`` [N, 2] (H, W) that hold images of ``sizes`` [N, 2] in their aspect."""
    factor = (tensors / sizes).min(axis=1, keepdims=True)
    used = np.rint(sizes * factor).clip(1).prod(axis=1).sum()
    return float(1 - used / tensors.prod(axis=1).sum())
