"""Batches of a plan as tensors, in any number of workers, epoch after epoch, resumable at any batch."""

import weakref
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from sppcls.data.cache import PixelCache
from sppcls.data.cut import Fit
from sppcls.data.geometry import Size, fitted_size, same_aspect
from sppcls.data.images import Augment, fit_image
from sppcls.data.plan import Batch, EpochPlan
from sppcls.data.source import Source
from sppcls.data.workers import close_workers, end_workers, started, worker_options
from sppcls.errors import DataError

ImageBatch = dict[str, Any]
"""What a loader yields: a dict of one batch.

images: [B, 3, H, W] uint8 RGB with channels-last strides, padded on the right or at the bottom.
targets: [B] int64, positions in the source's ``classes``; -1 where an image could not be read.
indices: [B] int64, the images' places in the source.
scale: The length in pixels that the schedule set for the images' shorter sides.
weight: Of each of the images in the loss of a training step, a float (`sppcls.data.plan.TrainingPlan`).
"""
IGNORED = -1


@dataclass(eq=False)
class BatchDataset(Dataset[ImageBatch]):
    """Turns a ``Batch`` of the plan into tensors; the batch carries all that changes from epoch to epoch.

    Returns an ``ImageBatch`` with ``broken``, (index, reason) of the unreadable images.
    """

    source: Source
    fit: Fit = "keep"
    pad: tuple[int, int, int] = (0, 0, 0)
    augment: Augment | None = None
    cache: PixelCache | None = None

    def __post_init__(self) -> None:
        if self.cache and self.cache.fit != self.fit:
            raise ValueError(f"fit is {self.fit} and the cache's is {self.cache.fit}; expected the same")

    def __getitem__(self, batch: Batch) -> ImageBatch:
        height, width = batch.size
        images = torch.empty(len(batch.indices), height, width, 3, dtype=torch.uint8).permute(0, 3, 1, 2)
        targets = torch.from_numpy(self.source.targets[list(batch.indices)])
        broken: list[tuple[int, str]] = []
        for place, index in enumerate(batch.indices):
            try:
                self._fill(images[place], index, batch)
            except DataError as error:
                images[place] = torch.tensor(self.pad, dtype=torch.uint8)[:, None, None]
                targets[place] = IGNORED
                broken.append((index, str(error)))
        found = {"images": images, "targets": targets, "indices": torch.tensor(batch.indices), "broken": broken}
        return found | {"scale": batch.scale, "weight": batch.weight}

    def _fill(self, out: torch.Tensor, index: int, batch: Batch) -> None:
        image, native = self._read(index, batch.size)
        draw = self.augment.draw(batch.epoch, index) if self.augment and batch.epoch >= 0 else None
        offset = draw.offset if draw and self.fit == "crop" else (0.5, 0.5)
        fit_image(image, batch.size, self.fit, self.pad, offset=offset, native=native, out=out)
        if self.augment and draw:
            h, w = fitted_size(*native, batch.size) if self.fit == "keep" else batch.size
            content = out[:, :h, :w]
            content.copy_(self.augment(content, draw))

    def _read(self, index: int, size: Size) -> tuple[torch.Tensor, Size]:
        """Return an image for a tensor of ``size``, which may be reduced, and the size that its aspect follows from."""
        height, width = self.source.sizes[index].tolist()
        kept = self.cache.get(index, size) if self.cache else None
        if kept is not None:
            return kept, (height, width)
        image = self.source.read(index, min(size))
        got = int(image.shape[1]), int(image.shape[2])
        if not same_aspect(got, (height, width)):
            return image, got  # the file has changed since the scan: it has no place in the cache, but its own aspect
        if self.cache:
            self.cache.put(index, image, min(size))
            kept = self.cache.get(index, size)
        return image if kept is None else kept, (height, width)


Batches = Generator[ImageBatch, None, None]


def batches_of(dataset: BatchDataset, batches: Iterable[Batch], num_workers: int = 0) -> Batches:
    """Yield planned batches as tensors; the workers end with the generator, also where it is closed early."""
    running = started(_data_loader(dataset, list(batches), num_workers))
    try:
        yield from running
    finally:
        end_workers(running)


def _data_loader(dataset: BatchDataset, sampler: Iterable[Batch], num_workers: int, **how: bool) -> "DataLoader[Any]":
    # A generator of its own: starting to iterate draws a number, which must not be taken from the network's training.
    options = worker_options(num_workers) | how
    return DataLoader(dataset, batch_size=None, sampler=sampler, generator=torch.Generator(), **options)


class _Share:
    """The batches to hand out, as a sampler that is read anew whenever an epoch starts."""

    batches: Iterator[Batch] = iter(())

    def __iter__(self) -> Iterator[Batch]:
        return self.batches


class PlannedLoader:
    """Iterates over a rank's batches of an epoch; each new iteration is the next epoch, at that epoch's scale.

    ``plan`` gives every epoch as many batches. Workers persist: all that changes travels inside the batch that they
    are handed. ``state_dict`` counts batches handed out, not batches prefetched, so a loader that loads it resumes with
    the very next batch. At an unreadable image ``on_error="fail"`` raises ``DataError``; ``skip`` continues, the
    image's target is -1 and ``skipped`` names it.
    """

    batch_sampler = None  # Lightning asks, having found `sampler`

    def __init__(
        self,
        dataset: BatchDataset,
        plan: Callable[[int], EpochPlan],
        *,
        rank: int = 0,
        num_workers: int = 0,
        pin_memory: bool = False,
        on_error: str = "fail",
        skipped: dict[str, str] | None = None,
    ) -> None:
        self.dataset, self.plan, self.rank = dataset, plan, rank
        self.epoch, self.position = 0, 0
        self.skipped = {} if skipped is None else skipped
        self._on_error, self._resumed, self._share = on_error, False, _Share()
        first = plan(0)
        self.world, self._length = first.world, len(range(rank, len(first), first.world))
        persistent = num_workers > 0
        self._workers = _data_loader(
            dataset, self._share, num_workers, pin_memory=pin_memory, persistent_workers=persistent
        )
        # In a cycle of garbage the workers' queues would go first, and each worker be waited for in vain, for 5 s.
        weakref.finalize(self, close_workers, self._workers).atexit = False

    def close(self) -> None:
        """End the workers; the next iteration starts new ones."""
        close_workers(self._workers)

    @property
    def sampler(self) -> "PlannedLoader":
        """Where Lightning looks for ``set_epoch``."""
        return self

    def set_epoch(self, epoch: int) -> None:
        """Make ``epoch`` the next one to iterate; the epoch under way stays where it is."""
        if epoch != self.epoch:
            self.epoch, self.position = epoch, 0

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[ImageBatch]:
        # A generator's body runs at the first batch, so an epoch set after iter() still counts.
        if self.position and not self._resumed:
            self.epoch, self.position = self.epoch + 1, 0
        self._resumed = False
        self._share.batches = self.plan(self.epoch).of_rank(self.rank, self.position)
        for batch in started(self._workers):
            self.position += 1
            for index, reason in batch.pop("broken"):
                if self._on_error == "fail":
                    raise DataError(f"{reason}; data.on_error=skip leaves such files out")
                self.skipped[str(self.dataset.source.names[index])] = reason
            yield batch

    def state_dict(self) -> dict[str, int]:
        """Return the epoch, and how many of its batches were handed out to each of how many ranks."""
        return {"epoch": self.epoch, "position": self.position, "world": self.world}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Resume after the batches that ``state`` has counted."""
        self.epoch, self.position = state["epoch"], state["position"]
        self._resumed = True
        if self.position >= self._length:
            self.epoch, self.position = self.epoch + 1, 0
