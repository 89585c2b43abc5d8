"""Mixed steps: batches of one aspect cut into parts and dealt anew, so that a step sees many aspects."""

from functools import cached_property

import numpy as np
import numpy.typing as npt

from sppcls.data.cut import Cut, Sizes, bucket_size
from sppcls.data.plan import Batch, Step, TrainingPlan, padding_share
from sppcls.data.schedule import Schedule

Places = npt.NDArray[np.float64]


def tensors_of(mix: float, batch_size: int) -> int:
    """Return the number of tensors in a step: 1 where ``mix`` is 0, else an even number, one an image where it is 1.

    >>> [tensors_of(mix, 32) for mix in (0, 0.2, 0.4, 0.5, 0.6, 1)]
    [1, 2, 4, 6, 8, 32]
    """
    return 2 * max(round(batch_size**mix / 2), 1) if mix and batch_size > 1 else 1


class MixedPlan(TrainingPlan):
    """Two batches of half the size a step, cut into parts and dealt anew among the steps of their scale.

    Every rank's share of a batch is cut into ``parts``. A step has two of the first parts, two of the second, and so
    on, drawn at random from the whole range of aspects, evenly. So its gradient and its batch-norm statistics are those
    of all aspects, although each tensor has one. Parts of one shape are joined.
    """

    _together = 2

    def __init__(self, cut: Cut, schedule: Schedule, epoch: int, seed: int, parts: int) -> None:
        super().__init__(cut, schedule, epoch, seed)
        self._parts = parts

    def __getitem__(self, number: int) -> Step:
        """Return what a rank gets of a step; ranks agree on the batches that it is made of."""
        step, rank = divmod(range(len(self))[number], self.world)
        return Step.of(self._share(batch, rank, slice(part, None, self._parts)) for part, batch in self._found[step])

    @cached_property
    def _dealt(self) -> Sizes:
        """[parts, B] the step of each part of each batch."""
        rng, scales = np.random.default_rng([self.seed, self.epoch, 2]), self._batch[:, 3]
        aspects = self._cut.aspect[self._order]
        dealt = np.empty((self._parts, len(scales)), np.int64)
        for scale in np.unique(scales):
            batches = rng.permutation(np.flatnonzero(scales == scale))
            batches = batches[np.argsort(aspects[batches], kind="stable")]
            steps = np.unique(batches // self._together)
            places = rng.random((2, len(steps)))
            for part, row in enumerate(dealt):
                row[batches] = steps[_spread(places + part / self._parts, 1 / self._parts, len(batches), rng)]
        return dealt

    @cached_property
    def _found(self) -> list[list[tuple[int, int]]]:
        """The (part, batch) of each step."""
        found: list[list[tuple[int, int]]] = [[] for _ in range(self.steps)]
        for part, row in enumerate(self._dealt.tolist()):
            for batch, step in enumerate(row):
                found[step].append((part, batch))
        return found

    @property
    def step_of(self) -> Sizes:
        """[M] the step of each image in `sequence`."""
        counts = self._batch[:, 0]
        each, more = (np.repeat(of, counts) for of in np.divmod(counts, self.world))
        place = np.arange(counts.sum()) - np.repeat(self._starts, counts)
        longer = place < more * (each + 1)
        place = np.where(longer, place % (each + 1), (place - more) % np.maximum(each, 1))
        of: Sizes = self._dealt[place % self._parts, np.repeat(np.arange(len(counts)), counts)]
        return of


def _spread(places: Places, width: float, count: int, rng: np.random.Generator) -> Sizes:
    """Return which of S steps each of ``count`` batches in order of aspect goes to, at most two to a step.

    A step draws one batch of the narrower half and one of the wider, within ``width`` of its ``places`` [2, S] there.
    """
    drawn = ((places + width * rng.random(places.shape)) % 1 + [[0], [1]]).ravel()
    order: Sizes = np.argsort(drawn) % places.shape[1]
    return order if len(order) == count else np.delete(order, rng.integers(len(order)))


class RandomPlan(TrainingPlan):
    """Steps of any images, in one tensor for each aspect among them: what mixing is compared with."""

    def __init__(self, cut: Cut, schedule: Schedule, epoch: int, seed: int, buckets: Sizes) -> None:
        super().__init__(cut, schedule, epoch, seed)
        self._buckets = buckets

    def __getitem__(self, number: int) -> Step:
        """Return what a rank gets of a step."""
        whole = self._share(*divmod(range(len(self))[number], self.world))
        buckets = self._buckets[list(whole.indices)].tolist()
        return Step.of(
            Batch((index,), bucket_size(bucket, bucket, whole.scale), whole.scale, whole.epoch, whole.weight)
            for index, bucket in zip(whole.indices, buckets, strict=True)
        )

    @cached_property
    def _own(self) -> Sizes:
        """[M, 3] the H and W of each image in `sequence`, and its scale."""
        scales = np.repeat(self._batch[:, 3], self._batch[:, 0])
        pairs, which = np.unique([self._buckets[self.sequence], scales], axis=1, return_inverse=True)
        sizes = np.array([(*bucket_size(bucket, bucket, scale), scale) for bucket, scale in pairs.T.tolist()])
        own: Sizes = sizes[which]
        return own

    @property
    def pixels(self) -> int:
        """Pixels of all tensors."""
        return int(self._own[:, :2].prod(axis=1).sum())

    @property
    def tensors(self) -> Sizes:
        """[T, 3] the distinct H and W, and their scale."""
        different: Sizes = np.unique(self._own, axis=0)
        return different

    def padding(self, sizes: Sizes) -> float:
        """Return the share of padding in the pixels."""
        return padding_share(self._own[:, :2], sizes[self.sequence])

    @property
    def largest(self) -> Batch:
        """The first step's images, as if all had the most pixels."""
        widest = self.tensors[self.tensors[:, :2].prod(axis=1).argmax()].tolist()
        return Batch(self._share(0, 0).indices, (widest[0], widest[1]), widest[2], self.epoch)
