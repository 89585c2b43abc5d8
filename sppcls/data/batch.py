"""What a loader yields: a batch, or the batches of a mixed step."""

from typing import NotRequired, TypedDict, cast

import torch

IGNORED = -1


class ImageBatch(TypedDict):
    """What a loader yields: one batch.

    Attributes:
        images: [B, 3, H, W] uint8 RGB with channels-last strides, padded on the right or at the bottom.
        targets: [B] int64, positions in the source's ``classes``; -1 if an image could not be read.
        indices: [B] int64, the images' places in the source.
        scale: The scheduled length of the images' shorter sides, in pixels.
        weight: Of each of the images in the loss of a training step (`sppcls.data.plan.TrainingPlan`).
        broken: (index, reason) of the unreadable images; a `PlannedLoader` takes it out.
    """

    images: torch.Tensor
    targets: torch.Tensor
    indices: torch.Tensor
    scale: int
    weight: NotRequired[float]
    broken: NotRequired[list[tuple[int, str]]]


class MixedBatch(TypedDict):
    """What a loader yields of a mixed step: batches of different shapes, for one step of the optimiser.

    Attributes:
        parts: The batches, each with its own images and targets.
        scale, broken: As of one batch.
    """

    parts: list[ImageBatch]
    scale: int
    broken: NotRequired[list[tuple[int, str]]]


def batches_in(batch: ImageBatch | MixedBatch) -> list[ImageBatch]:
    """Return the batches of a step, one where it is not mixed."""
    return cast(MixedBatch, batch)["parts"] if "parts" in batch else [batch]


def readable(batch: ImageBatch) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the images of a batch that could be read, and their targets."""
    images, targets = batch["images"], batch["targets"]
    kept = targets != IGNORED
    return (images, targets) if bool(kept.all()) else (images[kept], targets[kept])
