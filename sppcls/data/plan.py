"""The epoch plan: which images meet in which batch, and at which (H, W).

Everything here is a pure function of (seed, epoch, image sizes, schedule, batch size, world size), so that every
rank and every worker agrees without a word, and an epoch can be taken up again anywhere.
"""

import itertools
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from sppcls.data.geometry import images_at
from sppcls.data.schedule import Schedule

Fit = Literal["keep", "crop", "warp"]
Sizes = npt.NDArray[np.int64]

# Aspect buckets: 24 an octave, each up to 2.9 % wide. The edges sit 0.15 % above powers of two so that the common
# aspects 4:3, 3:2 and 16:9 lie just under an edge and need no padding.
BUCKETS_PER_OCTAVE = 24
EDGE = 1.0015


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

    batches: tuple[Batch, ...]
    world: int
    repeats: int

    @property
    def steps(self) -> int:
        """Steps that each rank takes."""
        return len(self.batches) // self.world

    @property
    def images(self) -> int:
        """Images of all batches, repeats included."""
        return sum(len(batch.indices) for batch in self.batches)

    @property
    def pixels(self) -> int:
        """Pixels of all batches, padding and repeats included: what the epoch costs."""
        return sum(len(batch.indices) * batch.size[0] * batch.size[1] for batch in self.batches)

    def of_rank(self, rank: int) -> tuple[Batch, ...]:
        """Return the batches of one rank, a batch a step."""
        return self.batches[rank :: self.world]

    def weights_of(self, rank: int) -> tuple[float, ...]:
        """Return the weight of an image in the loss of each of a rank's steps: one over the epoch's mean batch size.

        The loss of a step is the weighted sum over its images, averaged over ranks. Then every image has the same
        weight in the epoch, whatever its batch; one that is handed out several times has it once.
        """
        weight = len(self.batches) / max(self.images - self.repeats, 1)
        # Images are repeated in a step of fewer images than ranks alone, where every batch is a single image.
        copies = Counter(batch.indices for batch in self.batches) if self.repeats else {}
        return tuple(weight / copies.get(batch.indices, 1) for batch in self.of_rank(rank))


def aspect_buckets(sizes: Sizes, max_aspect: float) -> npt.NDArray[np.int64]:
    """Return the bucket of each image: 0 is square, positive wide, negative tall; the scale plays no part.

    Args:
        sizes: [N, 2] (H, W).
        max_aspect: Aspects beyond it share the outermost bucket.

    >>> aspect_buckets(np.array([[64, 64], [200, 300], [300, 200], [1, 9999]]), 4.0).tolist()
    [0, 14, -14, 48]
    """
    log = np.log2(sizes[:, 1] / sizes[:, 0])
    wide = np.ceil(BUCKETS_PER_OCTAVE * (np.abs(log) - np.log2(EDGE)) - 1e-9)
    outermost = np.ceil(BUCKETS_PER_OCTAVE * np.log2(max_aspect))
    wide = np.where(log == 0, 0, np.clip(wide, 1, outermost))
    signed: npt.NDArray[np.int64] = (np.sign(log) * wide).astype(np.int64)
    return signed


def bucket_size(lowest: int, highest: int, scale: int) -> tuple[int, int]:
    """Return the (H, W) that holds every bucket from ``lowest`` to ``highest`` with the shorter side at ``scale``.

    >>> bucket_size(14, 14, 64), bucket_size(-14, -14, 64), bucket_size(0, 0, 64)
    ((64, 96), (96, 64), (64, 64))
    """

    def long_side(bucket: int) -> int:
        return round(scale * EDGE * 2 ** (bucket / BUCKETS_PER_OCTAVE)) if bucket > 0 else scale

    return long_side(-lowest), long_side(highest)


def _relative_area(lowest: npt.NDArray[np.int64], highest: int) -> npt.NDArray[np.float64]:
    area: npt.NDArray[np.float64] = np.exp2((np.maximum(-lowest, 0) + max(highest, 0)) / BUCKETS_PER_OCTAVE)
    return area


def _cheapest_cuts(buckets: Sizes, half: int, full: int) -> list[int]:
    """Return where to cut ascending ``buckets`` into parts of half..full images that need the fewest pixels.

    A dynamic programme over the cut positions; each part costs its tensor and one image more, so that an even
    set is cut into full parts.
    """
    count = len(buckets)
    best = np.full(count + 1, np.inf)
    best[0] = 0.0
    before = np.zeros(count + 1, np.int64)
    for end in range(half, count + 1):
        starts = np.arange(max(end - full, 0), end - half + 1)
        area = _relative_area(buckets[starts], int(buckets[end - 1]))
        cost = best[starts] + (end - starts) * area + 1.0
        chosen = int(cost.argmin())
        best[end], before[end] = cost[chosen], starts[chosen]
    cuts = [count]
    while cuts[-1] > 0:
        cuts.append(int(before[cuts[-1]]))
    return cuts[::-1]


def cut_into_steps(buckets: Sizes, batch_size: int, world: int = 1) -> list[Sizes]:
    """Cut ascending buckets into steps of at most ``batch_size * world`` positions, at least half of that each.

    Whole steps are taken from the middle of well-filled buckets; the rest, where neighbouring aspects have to
    share a tensor, is cut where that costs the fewest pixels. Depends on neither epoch nor scale.
    """
    full, half = batch_size * world, max(batch_size // 2, 1) * world
    steps: list[Sizes] = []
    rest: list[Sizes] = []
    for members in np.split(np.arange(len(buckets)), np.flatnonzero(np.diff(buckets)) + 1):
        pure = max(len(members) // full - 3, 0) * full
        steps += np.split(members[:pure], pure // full) if pure else []
        rest.append(members[pure:])
    left = np.concatenate(rest)
    cuts = _cheapest_cuts(buckets[left], half, full) if len(left) >= half else [0, len(left)]
    return steps + [left[a:b] for a, b in itertools.pairwise(cuts)]


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
) -> EpochPlan:
    """Plan one training epoch: every image once, batches of one (H, W), as many batches at every scale.

    Images are shuffled within their aspect bucket, and the buckets are cut into steps; a step that spans
    neighbouring buckets takes the larger tensor. So no batch is under ``batch_size // 2`` images (unless the
    whole set is) and no remainder is dropped.
    """
    rng = np.random.default_rng([seed, epoch, 0])
    buckets = aspect_buckets(sizes, max_aspect) if fit == "keep" else np.zeros(len(sizes), np.int64)
    order = np.lexsort((rng.random(len(sizes)), buckets))
    steps = [order[step] for step in cut_into_steps(buckets[order], batch_size, world)]
    batches: list[Batch] = []
    repeats = 0
    for scale, step in zip(schedule.scales_of(epoch, len(steps)), rng.permutation(len(steps)), strict=True):
        images = steps[step]
        size = bucket_size(int(buckets[images].min()), int(buckets[images].max()), scale)
        short = max(world - len(images), 0)
        repeats += short
        shared = rng.permutation(np.concatenate([images, np.resize(images, short)]))
        batches += [Batch(tuple(part.tolist()), size, scale, epoch) for part in np.array_split(shared, world)]
    return EpochPlan(tuple(batches), world, repeats)


def plan_rest(
    sizes: Sizes, schedule: Schedule, epoch: int, done: Sequence[tuple[int, int]], *, world: int = 1, **how: Any
) -> EpochPlan:
    """Plan what is left of an epoch after each (world, steps) of ``done``, the numbers of ranks that were at it before.

    Every image that no step has had yet comes once. ``how`` is as in `plan_epoch`.
    """
    left = np.arange(len(sizes))
    for before, steps in done:
        begun = plan_epoch(sizes[left], schedule, epoch, world=before, **how).batches[: steps * before]
        left = np.delete(left, sorted({index for batch in begun for index in batch.indices}))
    rest = plan_epoch(sizes[left], schedule, epoch, world=world, **how)
    batches = (replace(batch, indices=tuple(left[list(batch.indices)].tolist())) for batch in rest.batches)
    return replace(rest, batches=tuple(batches)) if done else rest


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


def padding_share(batches: tuple[Batch, ...], sizes: Sizes) -> float:
    """Return the share of the batches' pixels that are padding when images keep their aspect."""
    used = total = 0.0
    for batch in batches:
        height, width = batch.size
        h, w = sizes[list(batch.indices)].T
        factor = np.minimum(height / h, width / w)
        used += float((np.rint(h * factor).clip(1) * np.rint(w * factor).clip(1)).sum())
        total += height * width * len(batch.indices)
    return 1 - used / total if total else 0.0
