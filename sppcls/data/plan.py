"""The epoch plan: which images are in which batch, and at which (H, W).

Everything here is a pure function of (seed, epoch, image sizes, schedule, batch size, world size), so that every
rank and every worker agrees without communication, and an epoch can be resumed at any batch.
"""

from functools import cached_property
from itertools import repeat

import numpy as np

from sppcls.data.cut import Cut, Sizes, aspect_buckets, bucket_size, cut_images
from sppcls.data.geometry import Fit, fitted_sizes, images_at, shrunk_size
from sppcls.data.schedule import Schedule, Turns
from sppcls.data.steps import Batch, EpochPlan, Step

# Of the weight of images in steps of many: 0 is the linear rule (few at a large scale count little), 1 equal steps.
_DAMPING = 1 / 3


class TrainingPlan(EpochPlan):
    """The plan of a training epoch: every image once, batches of one (H, W), as many batches at every scale.

    What it costs follows from the cut. Images are shuffled, within their aspect bucket, when the first batch is asked
    for, and each batch is made when it is asked for: those of millions of images would fill the memory.

    The loss of a step is the weighted sum over its images, averaged over ranks. Every image has the same weight in the
    loss of the epoch, but where a scale has k times the images in a step they have k ** -1/3 of the weight. An image
    that is handed out several times shares its weight among them.
    """

    def __init__(self, cut: Cut, turns: Turns, epoch: int, seed: int) -> None:
        self.world, self._cut, self.seed, self.epoch = cut.world, cut, seed, epoch
        self._order = cut.order(seed, epoch)
        self._turns = turns
        self.steps = len(turns.scales)  # that each rank takes
        self._step = np.repeat(np.arange(self.steps), turns.batches)[: len(self._order)]  # [B] of each batch
        scales = np.array(turns.scales)[self._step]
        buckets = cut.lowest[self._order].tolist(), cut.highest[self._order].tolist()
        sizes = np.array(list(map(bucket_size, *buckets, scales.tolist(), repeat(cut.multiple))))
        # [B, 4] images of each batch, its H and W, its scale.
        self._batch = np.column_stack([cut.dealt[self._order], sizes, scales])
        self._starts = np.cumsum(self._batch[:, 0]) - self._batch[:, 0]

    def __len__(self) -> int:
        return self.steps * self.world

    def __getitem__(self, number: int) -> Batch | Step:
        """Return what a rank gets of a step."""
        shares = self._shares(number)
        return shares[0] if len(shares) == 1 else Step.of(shares)

    def _shares(self, number: int) -> list[Batch]:
        """Return what a rank gets of each batch of a step; ranks agree on the batches that it is made of."""
        step, rank = divmod(range(len(self))[number], self.world)
        return [self._share(batch, rank, part) for batch, part in self._found[step]]

    @cached_property
    def _found(self) -> list[list[tuple[int, slice]]]:
        """The (batch, part of it) of each step."""
        found: list[list[tuple[int, slice]]] = [[] for _ in range(self.steps)]
        for batch, step in enumerate(self._step.tolist()):
            found[step].append((batch, slice(None)))
        return found

    def _share(self, batch: int, rank: int, part: slice = slice(None)) -> Batch:
        """Return part of a batch for a rank: the images are dealt to the ranks, the first ones may have one more."""
        start, count, height, width, scale = self._rows[batch]
        each, more = divmod(count, self.world)
        first = start + rank * each + min(rank, more)
        indices = self.sequence[first : first + each + (rank < more)][part].tolist()
        weight = self._weight * self._damped[batch]
        if self.repeats and each == 1 and indices:
            weight /= int((self.sequence[start : start + count] == indices[0]).sum())
        return Batch(tuple(indices), (height, width), scale, self.epoch, weight)

    @cached_property
    def _rows(self) -> list[list[int]]:
        """The start of each batch in `sequence`, its images, H, W and scale."""
        rows: list[list[int]] = np.column_stack([self._starts, self._batch]).tolist()
        return rows

    @cached_property
    def _damped(self) -> list[float]:
        """[B] the weight of each of a batch's images, relative to the mean over images: 1 where steps are as large."""
        batches = np.array(self._turns.batches)
        damped = (batches / batches.max())[self._step] ** -_DAMPING
        damping: list[float] = (damped / np.average(damped, weights=self._cut.counts[self._order])).tolist()
        return damping

    @cached_property
    def _weight(self) -> float:
        return len(self) / (self.images - self.repeats)

    @cached_property
    def sequence(self) -> Sizes:
        """[M] the images in the order that they are handed out, repeats included."""
        return self._cut.shuffle(self.seed, self.epoch)

    @property
    def step_of(self) -> Sizes:
        """[M] the step of each image in `sequence`."""
        return self._step[self._places[0]]

    @property
    def _places(self) -> tuple[Sizes, Sizes, Sizes]:
        """[M] each: the batch of each image in `sequence`, the rank that it is dealt to, its place in that share."""
        counts = self._batch[:, 0]
        batches = np.repeat(np.arange(len(counts)), counts)
        each, more = (of[batches] for of in np.divmod(counts, self.world))
        place = np.arange(counts.sum()) - self._starts[batches]
        first = place < more * (each + 1)  # of the ranks that have one more
        ranks, places = np.where(first, np.divmod(place, each + 1), np.divmod(place - more, each))
        return batches, ranks, places

    @cached_property
    def repeats(self) -> int:
        """Images handed out twice because a step had fewer images than ranks."""
        return self.images - int(self._cut.counts.sum())

    @cached_property
    def images(self) -> int:
        """Images of all batches, repeats included."""
        return int(self._batch[:, 0].sum())

    @property
    def pixels(self) -> int:
        """Pixels of all batches, padding and repeats included: what the epoch costs."""
        return self._cost(self._batch[:, 1:], self._batch[:, 0])

    def _cost(self, tensors: Sizes, images: Sizes | int = 1) -> int:
        """Return the pixels of some ``images`` in each of the tensors [T, 3], at all scales that they are seen at."""
        rows, which = np.unique(tensors, axis=0, return_inverse=True)
        seen = [
            [
                (height, width),
                *(shrunk_size((height, width), scale, to, self._cut.multiple) for to in self._turns.beside),
            ]
            for height, width, scale in rows.tolist()
        ]
        return int((np.array(seen).prod(axis=2).sum(axis=1)[which] * images).sum())

    @property
    def tensors(self) -> Sizes:
        """[T, 3] the distinct H and W, and their scale."""
        different: Sizes = np.unique(self._batch[:, 1:], axis=0)
        return different

    @property
    def shapes(self) -> int:
        """How many different (H, W) there are."""
        return len(np.unique(self.tensors[:, :2], axis=0))

    @property
    def smallest(self) -> int:
        """Images of the smallest step of a rank."""
        return int(np.bincount(self.step_of * self.world + self._places[1]).min())

    @property
    def largest(self) -> Batch:
        """The first of the batches with the most pixels."""
        counts, heights, widths, _ = self._batch.T
        return self._share(int((-(-counts // self.world) * heights * widths).argmax()), 0)

    def padding(self, sizes: Sizes) -> float:
        """Return the share of padding in the pixels, of images of ``sizes`` in their aspect."""
        tensors, images = self._held(sizes)
        used = fitted_sizes(images, tensors, self._cut.multiple)
        return float(1 - used.prod(axis=1).sum() / tensors.prod(axis=1).sum())

    def stretch(self, sizes: Sizes) -> float:
        """Return the geometric mean of the factors, 1 or more, by which the multiple changes the images' aspects."""
        tensors, images = self._held(sizes)
        if self._cut.multiple == 1:  # aspects change by the rounding of a pixel
            return 1.0
        factors = np.log(fitted_sizes(images, tensors, self._cut.multiple) / images)
        return float(np.exp(np.abs(factors[:, 0] - factors[:, 1]).mean()))

    def _held(self, sizes: Sizes) -> tuple[Sizes, Sizes]:
        """Return the (H, W) [N, 2] of tensors and of the images in them, not shuffled within their bucket."""
        tensors = np.empty((len(self._batch), 2), np.int64)
        tensors[self._order] = self._batch[:, 1:3]
        return np.repeat(tensors, self._cut.counts, axis=0), sizes[self._cut.members[self._cut.picks]]


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
    multiple: int = 1,
) -> TrainingPlan:
    """Plan one training epoch of images of ``sizes`` [N, 2] (H, W).

    A step that spans neighbouring aspect buckets takes the larger tensor. So no batch is under ``batch_size // 2``
    images (unless the whole set is) and no remainder is dropped.
    """
    cut = cut_images(sizes, batch_size, world, fit, max_aspect, multiple=multiple)
    return TrainingPlan(cut, schedule.turns(epoch, len(cut.counts)), epoch, seed)


def plan_evaluation(
    sizes: Sizes,
    scale: int,
    *,
    batch_size: int,
    fit: Fit = "keep",
    max_aspect: float = 4.0,
    multiple: int = 1,
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
        size, widest = (bucket_size(bucket, bucket, side, multiple) for side in (scale, largest or scale))
        count = images_at(widest, batch_size)
        batches += [Batch(tuple(members[i : i + count]), size, scale) for i in range(0, len(members), count)]
    return tuple(batches)
