"""The Lightning datamodule: sources in, planned batches out, a new scale each epoch."""

import itertools
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeVar

import numpy as np
import pytorch_lightning as pl
import torch

from sppcls.checkpoints import Content
from sppcls.data.cache import PixelCache, Shapes, cache_dir, open_caches
from sppcls.data.catalog import load_splits
from sppcls.data.cut import own_tensors
from sppcls.data.datasets import from_datasets
from sppcls.data.geometry import Fit, Size, to_multiple
from sppcls.data.images import Augment, BatchDataset
from sppcls.data.loader import PlannedLoader, Steps, batches_of
from sppcls.data.plan import TrainingPlan, plan_evaluation
from sppcls.data.planner import Membership, Planner
from sppcls.data.schedule import Schedule
from sppcls.data.source import Identity, Source
from sppcls.data.steps import EpochPlan
from sppcls.errors import ConfigError, DataError
from sppcls.models.backbones import IMAGENET_MEAN, Triple

if TYPE_CHECKING:
    from torch.utils.data import Dataset

T = TypeVar("T")


class MultiScaleDataModule(pl.LightningDataModule):
    """Steps of one or several (H, W), at a scale set by the schedule, without crop or warp.

    Args:
        train: Training images: a ``Source``; a map-style data set of (image, label), such as ``ImageFolder``, without a
            transform (`sppcls.data.datasets.from_datasets`); or the path of a folder of class folders, which is split
            where there is no ``val``.
        val: Validation images, like ``train``.
        schedule: The scales, or a ``Schedule``; a plain tuple alternates between its scales.
        val_scale: Validation scale; by default the largest training scale.
        fit: ``keep`` (neither crop nor warp), ``crop`` or ``warp``.
        cache: Cache the pixels of each scale between epochs, in shared memory (``ram``) or a mapped file (``disk``).
        gap_scales: Other scales at which validation images are measured during training; cached as well.
        mix, batches: How steps are mixed (`sppcls.data.planner.Planner`). Where they are, or with ``keep`` are random,
            the loader yields a `sppcls.data.batch.MixedBatch`.
        multiple: Sides of tensors are multiples of it, and so are those of the images in them; ``model.multiple``.
        batch_pixels: Pixels of a step, instead of ``batch_size`` images (`sppcls.data.planner.Planner`).
        mean: The padding colour, RGB in 0..1: the network's mean, so that it is 0 after normalisation.
    """

    def __init__(
        self,
        train: "Source | Dataset[object] | str | Path",
        val: "Source | Dataset[object] | str | Path | None" = None,
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
        mix: float = 0.0,
        batches: Membership = "auto",
        multiple: int = 1,
        batch_pixels: int | Literal["auto"] | None = None,
        mean: Triple = IMAGENET_MEAN,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}; expected at least 1")
        self.train, self.val = _sources(train, val, seed, on_error)
        if not isinstance(schedule, Schedule):
            schedule = Schedule("alternate" if len(schedule) > 1 else "single", schedule, seed=seed)
        self.schedule = schedule
        self.val_scale = val_scale or schedule.middle
        self.batch_size, self.fit, self.max_aspect, self.multiple = batch_size, fit, max_aspect, multiple
        how = fit, max_aspect, seed, mix, batches, multiple, batch_pixels
        self.planner = Planner(self.train.sizes, schedule, batch_size, *how)
        self.augment = augment if augment is not None else Augment(seed=seed)
        self.pad = (round(mean[0] * 255), round(mean[1] * 255), round(mean[2] * 255))
        self.skipped: dict[str, str] = {}  # files that could not be read, and why
        self.loaders: dict[str, PlannedLoader] = {}
        self.cache_line = ""  # the size of the caches, once they are open
        self._num_workers, self._on_error, self._cache, self._gap_scales = num_workers, on_error, cache, gap_scales

    @cached_property
    def identity(self) -> Identity:
        """The identity of the images."""
        return Identity.of(self.train, self.val)

    def setup(self, stage: str) -> None:
        """Compare the ranks' images; raises ``DataError`` on every rank if they differ."""
        if self._world == 1:  # to know the images takes a hash of each
            return
        ranks = gathered((self.identity.digest, self.identity.counts), self._world)
        for rank, (digest, counts) in enumerate(ranks):
            if digest != ranks[0][0]:
                both = f"rank 0 has {ranks[0][1]} training and validation images, rank {rank} {counts}"
                raise DataError(f"rank {rank} sees other files than rank 0 ({both}); give all the same data.root")

    @property
    def classes(self) -> tuple[str, ...]:
        """The class names."""
        return self.train.classes

    def plan(self, epoch: int) -> TrainingPlan:
        """Return the plan of a training epoch, as every rank and worker sees it."""
        return self.planner.plan(epoch, self._world)

    def train_dataloader(self) -> PlannedLoader:
        """Return the training batches of this rank."""
        return self._loader("train", self.train, self.plan, self.augment)

    def val_dataloader(self) -> PlannedLoader | list[PlannedLoader]:
        """Return the validation batches of this rank, at one scale."""
        if self.val is None:
            return []
        how = {"fit": self.fit, "max_aspect": self.max_aspect, "multiple": self.multiple}
        batches = plan_evaluation(self.val.sizes, self.val_scale, batch_size=self.batch_size, **how)  # type: ignore[arg-type]
        # A rank without a batch would leave the others waiting. Repeating another rank's answers changes nothing.
        shared = (batches * self._world)[: self._world] if len(batches) < self._world else batches
        plan = EpochPlan(shared, self._world)
        return self._loader("val", self.val, lambda _epoch: plan, None)

    def trial_batches(self, count: int) -> Steps:
        """Yield ``count`` training batches, over as many epochs as needed, without affecting the training's own."""
        batches = itertools.chain.from_iterable(self.plan(epoch) for epoch in itertools.count())
        dataset = self._dataset("train", self.train, self.augment)
        return batches_of(dataset, itertools.islice(batches, count), self._num_workers)

    def largest_step(self) -> tuple[int, Size, int]:
        """Return the largest step, as `sppcls.data.planner.Planner.largest_step` does."""
        return self.planner.largest_step(self._world)

    @property
    def _world(self) -> int:
        return self.trainer.world_size if self.trainer else 1

    def _dataset(self, split: str, source: Source, augment: Augment | None) -> BatchDataset:
        return BatchDataset(source, self.fit, self.pad, augment, self.caches.get(split), self.multiple)

    def _loader(
        self, split: str, source: Source, plan: Callable[[int], EpochPlan], augment: Augment | None
    ) -> PlannedLoader:
        if split not in self.loaders:
            self.loaders[split] = PlannedLoader(
                self._dataset(split, source, augment),
                plan,
                rank=self.trainer.global_rank if self.trainer else 0,
                num_workers=self._num_workers,
                pin_memory=torch.cuda.is_available(),
                on_error=self._on_error,
                skipped=self.skipped,
            )
        return self.loaders[split]

    def teardown(self, stage: str) -> None:
        """Stop the loaders' workers; another training or validation starts new ones."""
        for loader in self.loaders.values():
            loader.close()

    def on_exception(self, exception: BaseException) -> None:
        """Stop the loaders' workers."""
        self.teardown("exception")

    @cached_property
    def caches(self) -> dict[str, PixelCache]:
        """The caches, by split, opened on first use; raises ``ConfigError`` if there is not enough space."""
        if self._cache == "none":
            return {}
        caches = {"train": PixelCache(self.train, self._train_tensors(), self.fit, self.multiple)}
        if self.val is not None:
            scales = (self.val_scale, *self._gap_scales)
            tensors = own_tensors(self.val.sizes, scales, self.fit, self.max_aspect, self.multiple)
            caches["val"] = PixelCache(self.val, tensors, self.fit, self.multiple)
        self.cache_line = open_caches(caches, cache_dir() if self._cache == "disk" else None)
        return caches

    def _train_tensors(self) -> dict[int, Shapes]:
        """Return the tensors of the training images at each scale, and those that mix wide and tall images."""
        tensors = own_tensors(self.train.sizes, self.schedule.loaded, self.fit, self.max_aspect, self.multiple)
        own = tuple(tensors)
        for height, width, scale in self.plan(0).tensors.tolist():
            short = to_multiple(scale, self.multiple)
            if min(height, width) > short:  # always the same aspects, as the cut does not depend on the epoch
                inside = np.all(tensors[short] <= np.array([height, width]), axis=1)
                for short in own:
                    box = tensors[short][inside].max(0)
                    tensors.setdefault(int(box.min()), np.where(inside[:, None], box, 0))
        return tensors


def _sources(train: object, val: object, seed: int, on_error: str) -> tuple[Source, Source | None]:
    if not isinstance(train, str | Path):
        return from_datasets(train, val, on_error)
    if val is not None and not isinstance(val, str | Path):
        raise ConfigError(f"train is a path and val a {type(val).__name__}; give two paths, or two data sets")
    if val is None:
        splits = load_splits("folder", train, seed=seed, on_error=on_error)
    else:
        splits = load_splits("folder", ".", train_dir=train, val_dir=val, on_error=on_error)
    return splits.train, splits.val


def gathered(value: T, world: int) -> list[T]:
    """Return the value of each of ``world`` ranks; every rank has to ask."""
    values = [value] * world
    if world > 1:
        torch.distributed.all_gather_object(values, value)
    return values


def replan(checkpoint: Content, data: MultiScaleDataModule) -> str | None:
    """Convert a Lightning checkpoint to the current ranks and images; returns a message, or None if nothing changed.

    With other images or another number of ranks an epoch under way starts again. The learning rate goes on at the same
    share of the training.
    """
    loop = checkpoint["loops"]["fit_loop"]
    state = loop["state_dict"]["combined_loader"][0]
    now = data.plan(state["epoch"])
    before = state.get("world", now.world)
    if checkpoint.get("data", data.identity.digest) != data.identity.digest:
        change = "the images have changed"
    elif before != now.world:
        change = f"{now.world} ranks after {before}"
    else:
        return None
    progress = loop["epoch_loop.batch_progress"]
    over = progress["is_last_batch"]
    state |= {"epoch": state["epoch"] + over, "position": 0}
    progress["current"] = dict.fromkeys(progress["current"], now.steps if over else 0)
    for scheduler in checkpoint["lr_schedulers"]:
        scheduler["last_epoch"] = data.planner.steps(range(state["epoch"]), now.world)
    for rank in checkpoint["ranks"]:
        rank["metrics"] = []
    return f"{change}: epoch {state['epoch'] + 1} starts with its first batch"
