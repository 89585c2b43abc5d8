"""Mixed steps: batches of one aspect cut into parts and dealt anew, so that a step sees many aspects."""

from collections.abc import Mapping
from functools import cached_property

import numpy as np

from sppcls.data.cut import Cut, Sizes, bucket_size
from sppcls.data.plan import TrainingPlan
from sppcls.data.schedule import Turns
from sppcls.data.steps import Batch, Step


def parts_of(mix: float, batch_size: int) -> int:
    """Return the number of parts of a step: 1 where ``mix`` is 0, else at least 2, one an image where it is 1.

    >>> [parts_of(mix, 32) for mix in (0, 0.2, 0.45, 0.6, 1)]
    [1, 2, 5, 8, 32]
    """
    return max(round(batch_size**mix), 2) if mix and batch_size > 1 else 1


class MixedPlan(TrainingPlan):
    """Two or more batches a step, cut into parts and dealt anew among the steps of their scale.

    Of two, a step has one of each part of the narrower half of the batches and one of each part of the wider half, at
    random over all their aspects, evenly; of more likewise. So its gradient and its batch-norm statistics are those of
    all aspects, although each tensor has one. If the number of parts of a step is odd, the halves take turns in having
    one more. Parts of one shape are one tensor.
    """

    def __init__(self, cut: Cut, turns: Turns, epoch: int, seed: int, parts: Mapping[int, int]) -> None:
        super().__init__(cut, turns, epoch, seed)
        self._parts = parts  # of a step, by its scale

    def __getitem__(self, number: int) -> Step:
        """Return what a rank gets of a step."""
        return Step.of(self._shares(number))

    @cached_property
    def _dealt(self) -> Sizes:
        """[parts, B] the step of each part of each batch; -1 where a batch has fewer parts."""
        rng, scales = np.random.default_rng([self.seed, self.epoch, 2]), self._batch[:, 3]
        aspects = self._cut.aspect[self._order]
        rows: list[Sizes] = [np.full(len(scales), -1)]
        for scale in np.unique(scales):
            batches = rng.permutation(np.flatnonzero(scales == scale))
            batches = batches[np.argsort(aspects[batches], kind="stable")]
            steps = np.unique(self._step[batches])
            for some, parts in self._layers(batches, len(steps), self._parts[int(scale)]):
                places = rng.random(len(steps))
                rows += [np.full(len(scales), -1) for _ in range(len(rows), parts)]
                for part in range(parts):
                    order = np.argsort((places + (part + rng.random(len(steps))) / parts) % 1)
                    while len(order) > len(some):  # the last step may have fewer batches
                        order = np.delete(order, rng.integers(len(order)))
                    rows[part][some] = steps[order]
        return np.array(rows)

    def _layers(self, batches: Sizes, steps: int, parts: int) -> list[tuple[Sizes, int]]:
        """Return the batches of one scale by aspect, at most one of each layer for a step, and the parts of each."""
        layers = [batches[first : first + steps] for first in range(0, len(batches), steps)]
        return [
            (some, max((parts + (at + self.epoch) % len(layers)) // len(layers), 1)) for at, some in enumerate(layers)
        ]

    @cached_property
    def _cut_into(self) -> Sizes:
        """[B] the number of parts of each batch."""
        cut: Sizes = (self._dealt >= 0).sum(axis=0)
        return cut

    @cached_property
    def _found(self) -> list[list[tuple[int, slice]]]:
        """The (batch, part of it) of each step."""
        found: list[list[tuple[int, slice]]] = [[] for _ in range(self.steps)]
        every = self._cut_into.tolist()
        for part, row in enumerate(self._dealt.tolist()):
            for batch, step in enumerate(row):
                if step >= 0:
                    found[step].append((batch, slice(part, None, every[batch])))
        return found

    @property
    def step_of(self) -> Sizes:
        """[M] the step of each image in `sequence`."""
        batches, _, places = self._places
        of: Sizes = self._dealt[places % self._cut_into[batches], batches]
        return of


class RandomPlan(TrainingPlan):
    """Steps of any images, in one tensor for each aspect among them: what mixing is compared with."""

    def __init__(self, cut: Cut, turns: Turns, epoch: int, seed: int, buckets: Sizes) -> None:
        super().__init__(cut, turns, epoch, seed)
        self._buckets = buckets

    def __getitem__(self, number: int) -> Step:
        """Return what a rank gets of a step."""
        return Step.of(self._alone(index, whole) for whole in self._shares(number) for index in whole.indices)

    def _alone(self, index: int, whole: Batch) -> Batch:
        bucket = int(self._buckets[index])
        size = bucket_size(bucket, bucket, whole.scale, self._cut.multiple)
        return Batch((index,), size, whole.scale, whole.epoch, whole.weight)

    @cached_property
    def _own(self) -> Sizes:
        """[M, 3] the H and W of each image in `sequence`, and its scale."""
        scales = np.repeat(self._batch[:, 3], self._batch[:, 0])
        pairs, which = np.unique([self._buckets[self.sequence], scales], axis=1, return_inverse=True)
        multiple = self._cut.multiple
        sizes = np.array([(*bucket_size(bucket, bucket, scale, multiple), scale) for bucket, scale in pairs.T.tolist()])
        own: Sizes = sizes[which]
        return own

    @property
    def pixels(self) -> int:
        """Pixels of all tensors."""
        return self._cost(self._own)

    @property
    def tensors(self) -> Sizes:
        """[T, 3] the distinct H and W, and their scale."""
        different: Sizes = np.unique(self._own, axis=0)
        return different

    def _held(self, sizes: Sizes) -> tuple[Sizes, Sizes]:
        """Return the (H, W) [M, 2] of tensors and of the images in them."""
        return self._own[:, :2], sizes[self.sequence]

    @property
    def largest(self) -> Batch:
        """The most images of a step, as if all had the most pixels."""
        height, width, scale = self.tensors[self.tensors[:, :2].prod(axis=1).argmax()].tolist()
        return Batch(self._share(int(self._batch[:, 0].argmax()), 0).indices, (height, width), scale, self.epoch)
