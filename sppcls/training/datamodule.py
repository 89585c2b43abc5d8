"""The Lightning datamodule: sources in, planned batches out, a new scale each epoch."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import pytorch_lightning as pl
import torch

from sppcls.data.augment import Augment
from sppcls.data.cache import PixelCache, cache_dir
from sppcls.data.loader import BatchDataset, PlannedLoader
from sppcls.data.plan import Batch, EpochPlan, Fit, plan_evaluation, plan_rest
from sppcls.data.schedule import Schedule
from sppcls.data.source import Source
from sppcls.data.sources import load_splits


class MultiScaleDataModule(pl.LightningDataModule):
    """Batches of one (H, W) each, at a scale that the schedule sets, without crop or warp.

    Args:
        train: Training images: a ``Source``, or the path of a folder of class folders, which is then split.
        val: Validation images; those of the folder where ``train`` is a path.
        schedule: The scales, or a ``Schedule``; a plain tuple alternates (a single scale: stays).
        val_scale: Scale to validate at; the last one that is trained where None.
        fit: ``keep`` (no crop, no warp), ``crop`` or ``warp``.
        cache: Keep decoded images, at the largest scale needed, in shared memory (``ram``) or a mapped file.
        mean: What padding is filled with, RGB in 0..1: the network's mean, so that it is 0 after normalisation.
    """

    def __init__(
        self,
        train: Source | str | Path,
        val: Source | None = None,
        *,
        schedule: Schedule | tuple[int, ...] = (96, 128),
        val_scale: int | None = None,
        batch_size: int = 32,
        fit: Fit = "keep",
        augment: Augment | None = None,
        num_workers: int = 0,
        cache: Literal["none", "ram", "disk"] = "none",
        on_error: Literal["fail", "skip"] = "fail",
        max_aspect: float = 4.0,
        mean: tuple[float, float, float] = (0.485, 0.456, 0.406),
        seed: int = 0,
    ) -> None:
        super().__init__()
        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}; expected at least 1")
        self.val: Source | None
        if isinstance(train, str | Path):
            splits = load_splits("folder", str(train), seed=seed, on_error=on_error)
            self.train, self.val = splits.train, splits.val
        else:
            self.train, self.val = train, val
        self.schedule = schedule if isinstance(schedule, Schedule) else _schedule_of(schedule, seed)
        self.val_scale = val_scale
        self.batch_size, self.fit, self.max_aspect, self.seed = batch_size, fit, max_aspect, seed
        self.skipped: dict[str, str] = {}  # files that no loader could read, and why
        self._loader_options = {"num_workers": num_workers, "on_error": on_error, "skipped": self.skipped}
        self._cache = cache
        self.pad = (round(mean[0] * 255), round(mean[1] * 255), round(mean[2] * 255))
        self.augment = augment if augment is not None else Augment(seed=seed)
        self.loaders: dict[str, PlannedLoader] = {}

    @property
    def classes(self) -> tuple[str, ...]:
        """The class names."""
        return self.train.classes

    def plan(self, epoch: int, done: Sequence[tuple[int, int]] = (), world: int | None = None) -> EpochPlan:
        """Return the plan of a training epoch, or of its rest (`plan_rest`), as every rank and worker sees it."""
        return self._plan(self.schedule, epoch, done, world)

    def _plan(
        self, schedule: Schedule, epoch: int, done: Sequence[tuple[int, int]] = (), world: int | None = None
    ) -> EpochPlan:
        return plan_rest(
            self.train.sizes,
            schedule,
            epoch,
            done,
            seed=self.seed,
            batch_size=self.batch_size,
            world=world or self._world(),
            fit=self.fit,
            max_aspect=self.max_aspect,
        )

    def train_dataloader(self) -> PlannedLoader:
        """Return the training batches of this rank."""
        return self._loader("train", self.train, self.plan, self.augment)

    def val_dataloader(self) -> PlannedLoader | list[PlannedLoader]:
        """Return the validation batches of this rank, at one scale."""
        if self.val is None:
            return []
        scale = self.val_scale or self.last_scale
        batches = plan_evaluation(
            self.val.sizes, scale, batch_size=self.batch_size, fit=self.fit, max_aspect=self.max_aspect
        )
        return self._loader("val", self.val, partial(_every_epoch, batches, self._world()), None)

    @property
    def last_scale(self) -> int:
        """The scale that the last epoch is trained at."""
        epochs = (self.trainer.max_epochs if self.trainer else None) or self.schedule.epochs
        return self.schedule.scales_of(epochs - 1, 1)[-1]

    def largest_batch(self) -> Batch:
        """Return the training batch with the most pixels, at the largest scale."""
        largest = Schedule("single", (self.schedule.choices[-1],))
        plan = self._plan(largest, 0)
        return max(plan.batches, key=lambda batch: len(batch.indices) * int(np.prod(batch.size)))

    def _world(self) -> int:
        return self.trainer.world_size if self.trainer else 1

    def _loader(self, split: str, source: Source, plan: object, augment: Augment | None) -> PlannedLoader:
        if split not in self.loaders:
            dataset = BatchDataset(source, fit=self.fit, pad=self.pad, augment=augment, cache=self.pixels(source))
            self.loaders[split] = PlannedLoader(
                dataset,
                plan,  # type: ignore[arg-type]
                rank=self.trainer.global_rank if self.trainer else 0,
                pin_memory=torch.cuda.is_available(),
                **self._loader_options,  # type: ignore[arg-type]
            )
        return self.loaders[split]

    def teardown(self, stage: str) -> None:
        """End the loaders' workers; another training or validation starts new ones."""
        for loader in self.loaders.values():
            loader.close()

    def on_exception(self, exception: BaseException) -> None:
        """End the loaders' workers."""
        self.teardown("exception")

    def pixels(self, source: Source, scale: int = 0) -> PixelCache | None:
        """Return a cache for a source, of images large enough for ``scale`` and every scale that is trained."""
        if self._cache == "none":
            return None
        largest = max(self.schedule.choices[-1], self.val_scale or 0, scale)
        return PixelCache(source, largest, cache_dir() if self._cache == "disk" else None)


def _schedule_of(scales: tuple[int, ...], seed: int) -> Schedule:
    return Schedule("alternate" if len(scales) > 1 else "single", scales, seed=seed)


def _every_epoch(batches: tuple[Batch, ...], world: int, *epoch: object) -> EpochPlan:
    del epoch
    return EpochPlan(batches, world, 0)
