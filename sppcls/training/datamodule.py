"""The Lightning datamodule: sources in, planned batches out, a new scale each epoch."""

import itertools
from collections.abc import Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pytorch_lightning as pl
import torch

from sppcls.data.cache import PixelCache, Shapes, cache_dir, open_caches
from sppcls.data.catalog import load_splits
from sppcls.data.cut import own_tensors
from sppcls.data.datasets import from_datasets
from sppcls.data.geometry import Fit
from sppcls.data.images import Augment, BatchDataset
from sppcls.data.loader import Batches, PlannedLoader, batches_of
from sppcls.data.plan import Batch, EpochPlan, Planner, TrainingPlan, plan_evaluation
from sppcls.data.schedule import Schedule
from sppcls.data.source import Identity, Source
from sppcls.errors import ConfigError, DataError

if TYPE_CHECKING:
    from torch.utils.data import Dataset


class MultiScaleDataModule(pl.LightningDataModule):
    """Batches of one (H, W) each, at a scale that the schedule sets, without crop or warp.

    Args:
        train: Training images: a ``Source``; a map-style data set of (image, label), such as ``ImageFolder``, without a
            transform (`sppcls.data.datasets.from_datasets`); or the path of a folder of class folders, which is split
            where there is no ``val``.
        val: Validation images, as ``train``.
        schedule: The scales, or a ``Schedule``; a plain tuple alternates (a single scale: stays).
        val_scale: Scale to validate at; the largest that is trained where None.
        fit: ``keep`` (no crop, no warp), ``crop`` or ``warp``.
        cache: Keep the pixels of each scale between epochs, in shared memory (``ram``) or a mapped file (``disk``).
        gap_scales: Other scales that the validation images are measured at while it trains: kept as well.
        mean: What padding is filled with, RGB in 0..1: the network's mean, so that it is 0 after normalisation.
    """

    def __init__(
        self,
        train: "Source | Dataset[Any] | str | Path",
        val: "Source | Dataset[Any] | str | Path | None" = None,
        *,
        schedule: Schedule | tuple[int, ...] = (96, 128),
        val_scale: int | None = None,
        batch_size: int = 32,
        fit: Fit = "keep",
        augment: Augment | None = None,
        num_workers: int = 0,
        cache: Literal["none", "ram", "disk"] = "none",
        gap_scales: Sequence[int] = (),
        on_error: Literal["fail", "skip"] = "fail",
        max_aspect: float = 4.0,
        mean: tuple[float, float, float] = (0.485, 0.456, 0.406),
        seed: int = 0,
    ) -> None:
        super().__init__()
        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}; expected at least 1")
        self.train, self.val = _sources(train, val, seed, on_error)
        self.schedule = schedule if isinstance(schedule, Schedule) else _schedule_of(schedule, seed)
        self.val_scale = val_scale or self.schedule.choices[-1]
        self.batch_size, self.fit, self.max_aspect, self.seed = batch_size, fit, max_aspect, seed
        self.skipped: dict[str, str] = {}  # files that no loader could read, and why
        self._loader_options: dict[str, Any] = {
            "num_workers": num_workers,
            "on_error": on_error,
            "skipped": self.skipped,
        }
        self._cache, self._gap_scales = cache, gap_scales
        self.cache_line = ""  # what the caches take, once they are open
        self.pad = (round(mean[0] * 255), round(mean[1] * 255), round(mean[2] * 255))
        self.augment = augment if augment is not None else Augment(seed=seed)
        self.loaders: dict[str, PlannedLoader] = {}

    @cached_property
    def identity(self) -> Identity:
        """Which images these are."""
        return Identity.of(self.train, self.val)

    def setup(self, stage: str) -> None:
        """Compare the ranks' images; raises ``DataError`` on every rank where they differ."""
        if self._world() == 1:
            return
        found: list[tuple[str, tuple[int, ...]]] = [("", ())] * self._world()
        torch.distributed.all_gather_object(found, (self.identity.digest, self.identity.counts))
        others = [rank for rank, (digest, _) in enumerate(found) if digest != found[0][0]]
        if others:
            counts = f"rank 0 has {found[0][1]} training and validation images, rank {others[0]} {found[others[0]][1]}"
            raise DataError(f"rank {others[0]} sees other files than rank 0 ({counts}); give all the same data.root")

    @property
    def classes(self) -> tuple[str, ...]:
        """The class names."""
        return self.train.classes

    @cached_property
    def planner(self) -> Planner:
        """What plans the epochs."""
        return Planner(self.train.sizes, self.schedule, self.batch_size, self.fit, self.max_aspect, self.seed)

    def plan(self, epoch: int) -> TrainingPlan:
        """Return the plan of a training epoch, as every rank and worker sees it."""
        return self.planner.plan(epoch, self._world())

    def train_dataloader(self) -> PlannedLoader:
        """Return the training batches of this rank."""
        return self._loader("train", self.train, self.plan, self.augment)

    def val_dataloader(self) -> PlannedLoader | list[PlannedLoader]:
        """Return the validation batches of this rank, at one scale."""
        if self.val is None:
            return []
        batches = plan_evaluation(
            self.val.sizes, self.val_scale, batch_size=self.batch_size, fit=self.fit, max_aspect=self.max_aspect
        )
        return self._loader("val", self.val, partial(_every_epoch, batches, self._world()), None)

    def trial_batches(self, count: int) -> Batches:
        """Yield ``count`` training batches, of as many epochs as have them, apart from those of the training."""
        plans = itertools.chain.from_iterable(self.plan(epoch) for epoch in itertools.count())
        dataset = BatchDataset(self.train, self.fit, self.pad, self.augment, self.caches.get("train"))
        return batches_of(dataset, list(itertools.islice(plans, count)), self._loader_options["num_workers"])

    def largest_batch(self) -> Batch:
        """Return the training batch with the most pixels, at the largest scale."""
        return self.planner.largest_batch(self._world())

    def _world(self) -> int:
        return self.trainer.world_size if self.trainer else 1

    def _loader(self, split: str, source: Source, plan: object, augment: Augment | None) -> PlannedLoader:
        if split not in self.loaders:
            dataset = BatchDataset(source, fit=self.fit, pad=self.pad, augment=augment, cache=self.caches.get(split))
            self.loaders[split] = PlannedLoader(
                dataset,
                plan,  # type: ignore[arg-type]
                rank=self.trainer.global_rank if self.trainer else 0,
                pin_memory=torch.cuda.is_available(),
                **self._loader_options,
            )
        return self.loaders[split]

    def teardown(self, stage: str) -> None:
        """End the loaders' workers; another training or validation starts new ones."""
        for loader in self.loaders.values():
            loader.close()

    def on_exception(self, exception: BaseException) -> None:
        """End the loaders' workers."""
        self.teardown("exception")

    @cached_property
    def caches(self) -> dict[str, PixelCache]:
        """The caches, by split, opened the first time; raises ``ConfigError`` where there is no room for them."""
        if self._cache == "none":
            return {}
        caches = {"train": PixelCache(self.train, self._train_tensors(), self.fit)}
        if self.val is not None:
            scales = self.val_scale, *self._gap_scales
            caches["val"] = PixelCache(
                self.val, own_tensors(self.val.sizes, scales, self.fit, self.max_aspect), self.fit
            )
        self.cache_line = open_caches(caches, cache_dir() if self._cache == "disk" else None)
        return caches

    def _train_tensors(self) -> dict[int, Shapes]:
        """Return the tensors of the training images at each scale, and those where wide and tall images meet."""
        tensors = own_tensors(self.train.sizes, self.schedule.choices, self.fit, self.max_aspect)
        for height, width, scale in self.plan(0).tensors.tolist():
            if min(height, width) > scale:  # always the same aspects, as the cut does not depend on the epoch
                inside = np.all(tensors[scale] <= np.array([height, width]), axis=1)
                for scale in self.schedule.choices:
                    box = tensors[scale][inside].max(0)
                    tensors.setdefault(int(box.min()), np.where(inside[:, None], box, 0))
        return tensors


def _sources(train: Any, val: Any, seed: int, on_error: str) -> tuple[Source, Source | None]:
    if not isinstance(train, str | Path):
        return from_datasets(train, val, on_error)
    if val is not None and not isinstance(val, str | Path):
        raise ConfigError(f"train is a path and val a {type(val).__name__}; give two paths, or two data sets")
    if val is None:
        splits = load_splits("folder", train, seed=seed, on_error=on_error)
    else:
        splits = load_splits("folder", ".", train_dir=train, val_dir=val, on_error=on_error)
    return splits.train, splits.val


def _schedule_of(scales: tuple[int, ...], seed: int) -> Schedule:
    return Schedule("alternate" if len(scales) > 1 else "single", scales, seed=seed)


def _every_epoch(batches: tuple[Batch, ...], world: int, *epoch: object) -> EpochPlan:
    del epoch
    # A rank without a batch would leave the others waiting. One that repeats another's answers changes nothing.
    shared = (batches * world)[:world] if len(batches) < world else batches
    return EpochPlan(shared, world)
