"""Cuts a set of images into steps of similar aspect; done once, since it depends on neither epoch nor scale."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import numpy.typing as npt

from sppcls.data.geometry import Fit, to_multiple

Sizes = npt.NDArray[np.int64]

# Aspect buckets: 24 per octave, each up to 2.9 % wide. The edges sit 0.15 % above powers of two so that the common
# aspects 4:3, 3:2 and 16:9 lie just under an edge and need no padding.
BUCKETS_PER_OCTAVE = 24
EDGE = 1.0015
# With more images than this to cut, only some positions are tried (`_positions`).
_TRY_ALL = 2**15


def aspect_buckets(sizes: Sizes, max_aspect: float, fit: Fit = "keep") -> Sizes:
    """Return the bucket of each image: 0 is square, positive wide, negative tall; independent of the scale.

    Args:
        sizes: [N, 2] (H, W).
        max_aspect: Aspects beyond it share the outermost bucket.
        fit: With ``crop`` and ``warp``, whose tensors are square, every bucket is 0.

    >>> aspect_buckets(np.array([[64, 64], [200, 300], [300, 200], [1, 9999]]), 4.0).tolist()
    [0, 14, -14, 48]
    """
    if fit != "keep":
        return np.zeros(len(sizes), np.int64)
    log = np.log2(sizes[:, 1] / sizes[:, 0])
    wide = np.ceil(BUCKETS_PER_OCTAVE * (np.abs(log) - np.log2(EDGE)) - 1e-9)
    outermost = np.ceil(BUCKETS_PER_OCTAVE * np.log2(max_aspect))
    wide = np.where(log == 0, 0, np.clip(wide, 1, outermost))
    signed: Sizes = (np.sign(log) * wide).astype(np.int64)
    return signed


@cache
def bucket_size(lowest: int, highest: int, scale: int, multiple: int = 1) -> tuple[int, int]:
    """Return the (H, W) that holds every bucket from ``lowest`` to ``highest`` with the shorter side at ``scale``.

    First the scale and then the longer side are set to the nearest ``multiple``.

    >>> bucket_size(14, 14, 64), bucket_size(-14, -14, 64), bucket_size(0, 0, 65), bucket_size(14, 14, 65, 16)
    ((64, 96), (96, 64), (65, 65), (64, 96))
    """
    short = to_multiple(scale, multiple)

    def long_side(bucket: int) -> int:
        return to_multiple(short * EDGE * 2 ** (bucket / BUCKETS_PER_OCTAVE), multiple) if bucket > 0 else short

    return long_side(-lowest), long_side(highest)


def own_tensors(
    sizes: Sizes, scales: Sequence[int], fit: Fit = "keep", max_aspect: float = 4.0, multiple: int = 1
) -> dict[int, Sizes]:
    """Return the (H, W) [N, 2] of each image's tensor by its shorter side, as `plan_evaluation` plans it."""
    buckets, which = np.unique(aspect_buckets(sizes, max_aspect, fit), return_inverse=True)
    return {
        to_multiple(scale, multiple): np.array([bucket_size(b, b, scale, multiple) for b in buckets.tolist()])[which]
        for scale in scales
    }


def _edges(buckets: Sizes) -> Sizes:
    """Return where in ascending ``buckets`` one ends and the next begins, both ends of the whole included."""
    return np.concatenate([[0], np.flatnonzero(np.diff(buckets)) + 1, [len(buckets)]])


def _positions(buckets: Sizes, half: int, full: int) -> Sizes:
    """Return where ascending ``buckets`` may be cut, including both ends: anywhere, or in a large set at some places.

    A cut that moves inside a bucket changes the cost in proportion, so some cheapest cuts cannot move: each is at a
    bucket's edge, or whole parts of ``half`` and ``full`` images away from one. With an even batch size these are
    multiples of ``half``; with an odd one at most four halves are tried among any number of full parts.
    """
    count = len(buckets)
    if count <= _TRY_ALL:
        return np.arange(count + 1)
    halves, fulls = (part * np.arange(-(count // part), count // part + 1) for part in (half, full))
    mixed = np.arange(-4, 5)[:, None] * half + fulls
    edges = _edges(buckets)[:, None]
    places = np.unique(np.concatenate([(edges + step.ravel()).ravel() for step in (halves, mixed)]))
    return places[(places >= 0) & (places <= count)]


def _cheapest_cuts(buckets: Sizes, half: int, full: int) -> list[int]:
    """Return where to cut ascending ``buckets`` into parts of half..full images that need the fewest pixels.

    Dynamic programming over the positions; each part costs its tensor plus one image, so that an even set is
    cut into full parts.
    """
    at = _positions(buckets, half, full)
    areas = np.exp2(np.arange(2 * np.abs(buckets).max() + 1) / BUCKETS_PER_OCTAVE)
    tall, wide = np.maximum(-buckets[at[:-1]], 0), np.maximum(buckets[at[1:] - 1], 0).tolist()
    best = np.full(len(at), np.inf)
    best[0] = 0.0
    before = np.zeros(len(at), np.int64)
    first, stop = np.searchsorted(at, at - full).tolist(), np.searchsorted(at, at - half, "right").tolist()
    for end in range(1, len(at)):
        starts = slice(first[end], stop[end])
        if starts.start < starts.stop:
            cost = best[starts] + (at[end] - at[starts]) * areas[tall[starts] + wide[end - 1]] + 1.0
            chosen = int(cost.argmin())
            best[end], before[end] = cost[chosen], starts.start + chosen
    cuts = [len(at) - 1]
    while cuts[-1] > 0:
        cuts.append(int(before[cuts[-1]]))
    return at[cuts[::-1]].tolist()  # type: ignore[no-any-return]


def cut_into_steps(buckets: Sizes, batch_size: int, world: int = 1) -> list[Sizes]:
    """Cut ascending buckets into steps of at most ``batch_size * world`` positions, at least half of that each.

    Whole steps are taken from the middle of well-filled buckets; the rest, where neighbouring aspects have to
    share a tensor, is cut where that costs the fewest pixels.
    """
    full, half = batch_size * world, max(batch_size // 2, 1) * world
    steps: list[Sizes] = []
    rest: list[Sizes] = []
    for members in np.split(np.arange(len(buckets)), _edges(buckets)[1:-1]):
        pure = max(len(members) // full - 3, 0) * full
        steps += np.split(members[:pure], pure // full) if pure else []
        rest.append(members[pure:])
    left = np.concatenate(rest)
    cuts = _cheapest_cuts(buckets[left], half, full) if len(left) >= half else [0, len(left)]
    return steps + [left[a:b] for a, b in itertools.pairwise(cuts)]


@dataclass(frozen=True, eq=False)
class Cut:
    """The steps of every epoch of N images on a number of ranks: the images and buckets of each step.

    Attributes:
        members: [N] positions in the source, by bucket.
        edges: Where in ``members`` a bucket ends and the next one begins.
        picks: [N] places in ``members`` (shuffled within their bucket), step after step.
        counts: [S] images of each step.
        lowest, highest: [S] the least and the greatest bucket of each step's tensor.
        aspect: [S] twice the middle bucket of each step's images.
        world: Number of ranks, which share a step.
        multiple: Sides of tensors are multiples of it.
    """

    members: Sizes
    edges: Sizes
    picks: Sizes
    counts: Sizes
    lowest: Sizes
    highest: Sizes
    aspect: Sizes
    world: int
    multiple: int = 1

    @property
    def dealt(self) -> Sizes:
        """[S] images of each step, including repeats so that each rank has one."""
        return np.maximum(self.counts, self.world)

    def order(self, seed: int, epoch: int) -> Sizes:
        """Return the order [S] of the steps in an epoch."""
        rng = np.random.default_rng([seed, epoch, 0])
        rng.bit_generator.advance(len(self.members))  # type: ignore[attr-defined]  # past the keys of `shuffle`
        return rng.permutation(len(self.counts))

    def shuffle(self, seed: int, epoch: int) -> Sizes:
        """Return the images of an epoch, step after step in the order of the steps; short steps repeat some."""
        rng = np.random.default_rng([seed, epoch, 0])
        keys, images = rng.random(len(self.members)), np.empty_like(self.members)
        for start, stop in itertools.pairwise(self.edges.tolist()):
            bucket = self.members[start:stop]
            images[start:stop] = bucket[np.argsort(keys[bucket], kind="stable")]
        del keys
        steps = np.split(images[self.picks], np.cumsum(self.counts)[:-1])
        dealt = self.dealt.tolist()
        drawn = [rng.permutation(np.resize(steps[step], dealt[step])) for step in rng.permutation(len(steps))]
        return np.concatenate(drawn)


def cut_images(
    sizes: Sizes,
    batch_size: int,
    world: int = 1,
    fit: Fit = "keep",
    max_aspect: float = 4.0,
    by: Fit | None = None,
    multiple: int = 1,
) -> Cut:
    """Cut the images of ``sizes`` [N, 2] (H, W) into steps, every image into one (`cut_into_steps`).

    ``by`` is the fit whose images share a step, if not that of the tensors.
    """
    buckets = aspect_buckets(sizes, max_aspect, by or fit)
    members = np.argsort(buckets.astype(np.int16), kind="stable")  # small integers are radix-sorted
    buckets = buckets[members]
    steps = cut_into_steps(buckets, batch_size, world)
    counts = np.array([len(step) for step in steps])
    lowest, highest = (buckets[[step[end] for step in steps]] for end in (0, -1))
    aspect, kept = lowest + highest, int(fit == "keep")
    tensors = lowest * kept, highest * kept
    return Cut(members, _edges(buckets), np.concatenate(steps), counts, *tensors, aspect, world, multiple)
