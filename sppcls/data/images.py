"""Images as tensors: a file's pixels, into the exact size of a batch, augmented, and a batch of them."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, overload

import numpy as np
import torch
from torch.nn.functional import interpolate
from torch.utils.data import Dataset

from sppcls.data.batch import IGNORED, ImageBatch, MixedBatch
from sppcls.data.cache import PixelCache
from sppcls.data.decode import decode_array
from sppcls.data.geometry import BLACK, FITS, Colour, Fit, Size, content_size, cut_box, same_aspect, source_scale
from sppcls.data.source import Source
from sppcls.data.steps import Batch, Step
from sppcls.errors import ConfigError, DataError, did_you_mean


def decode(path: str | os.PathLike[str], min_short: int | None = None) -> torch.Tensor:
    """Return an image file as [3, H, W] uint8 RGB with the strides of channels-last memory; see `decode_array`."""
    return torch.from_numpy(decode_array(path, min_short)).permute(2, 0, 1)


def fit_image(
    image: torch.Tensor,
    size: Size,
    fit: str = "keep",
    pad: Colour = BLACK,
    *,
    offset: tuple[float, float] = (0.5, 0.5),
    native: Size | None = None,
    multiple: int = 1,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """Put an image into exactly ``size``, (H, W), resized (bilinear, antialiased) at most once.

    Args:
        image: [3, h, w] uint8, fastest in channels-last memory as `decode` returns it.
        fit: ``keep`` scales by one factor (`fitted_size`) and pads with ``pad`` on the right or at the bottom;
            ``crop`` cuts the largest part with the aspect of ``size``; ``warp`` resizes each side separately.
        pad: RGB, 0 to 255.
        offset: Where ``crop`` cuts, as fractions (top, left) of the free space; (0.5, 0.5) is the centre.
        native: Full (h, w) of the file if `decode` reduced it: the file's own aspect is then kept.
        multiple: ``keep`` sets both sides of the image to multiples of it (`fitted_size`).
        out: [3, H, W] uint8 to write into and return; without it ``image`` itself may be returned.

    Raises:
        ConfigError: An unknown ``fit``.
    """
    if fit not in FITS:
        raise ConfigError(f"fit: got {fit!r}{did_you_mean(fit, FITS)}")
    if fit == "crop":
        # Cutting before resizing bounds the memory: covering 64 x 64 with a 60000 x 1 image would take 700 MB.
        top, bottom, left, right = cut_box(image.shape[1], image.shape[2], size, offset)
        image, native = image[:, top:bottom, left:right], None
    h, w = native or (image.shape[1], image.shape[2])
    inner = content_size((h, w), size, fit, multiple)
    resized = _resize(image, inner, (h, w))
    if out is None:
        if inner == size:
            return resized
        out = torch.empty(*size, 3, dtype=torch.uint8).permute(2, 0, 1)
    out[:, : inner[0], : inner[1]] = resized
    if inner != size:
        colour = torch.tensor(pad, dtype=torch.uint8).view(3, 1, 1)
        out[:, inner[0] :] = colour
        out[:, :, inner[1] :] = colour
    return out


def _resize(image: torch.Tensor, size: Size, native: Size) -> torch.Tensor:
    h, w = image.shape[1:]
    if (h, w) == size:
        return image
    # image[None] would have strides that torch does not treat as channels-last, and so miss its fastest kernel.
    batch = image.permute(1, 2, 0)[None].permute(0, 3, 1, 2)
    if size == (1, 1):  # to which torch's resize takes no planar memory
        batch = batch.contiguous(memory_format=torch.channels_last)
    scale = source_scale((h, w), native, size)
    if scale is None:
        return interpolate(batch, size=size, mode="bilinear", antialias=True)[0]
    factors = [1 / step for step in scale]
    scaled = interpolate(batch, scale_factor=factors, mode="bilinear", antialias=True, recompute_scale_factor=False)
    return scaled[0, :, : size[0], : size[1]]


class Draw(NamedTuple):
    """What was drawn for one sample: where a crop lies (fractions) and the seed of its transforms."""

    offset: tuple[float, float]
    flip: float
    seed: int


class Augment:
    """Flip, colour jitter, RandAugment and random erasing of one [3, H, W] uint8 image.

    What is drawn depends on (seed, epoch, index) alone: not on the worker, the batch or the order. ``flip`` and
    ``erasing`` are probabilities, ``brightness``, ``contrast`` and ``saturation`` the largest relative changes, ``hue``
    is in turns of the circle, and ``randaugment`` a number of operations, some of which move pixels.
    """

    def __init__(
        self,
        *,
        flip: float = 0.5,
        brightness: float = 0.0,
        contrast: float = 0.0,
        saturation: float = 0.0,
        hue: float = 0.0,
        randaugment: int = 0,
        erasing: float = 0.0,
        seed: int = 0,
    ) -> None:
        self.flip = flip
        self.seed = seed
        self.transforms: list[Callable[[torch.Tensor], torch.Tensor]] = []
        jitter = (brightness, contrast, saturation, hue)
        if not any((*jitter, randaugment, erasing)):
            return
        from torchvision.transforms import v2

        if any(jitter):
            self.transforms.append(v2.ColorJitter(*jitter))
        if randaugment:
            self.transforms.append(v2.RandAugment(randaugment))
        if erasing:
            self.transforms.append(v2.RandomErasing(erasing))

    def draw(self, epoch: int, index: int) -> Draw:
        """Return the draw of sample ``index`` in ``epoch``."""
        rng = np.random.default_rng([self.seed, epoch, index, 2])
        top, left, flip = rng.random(3).tolist()
        return Draw((top, left), flip, int(rng.integers(2**63)))

    def __call__(self, image: torch.Tensor, draw: Draw) -> torch.Tensor:
        """Return the augmented image, same shape and dtype."""
        if draw.flip < self.flip:
            image = image.flip(-1)
        if not self.transforms:
            return image
        with torch.random.fork_rng(devices=()):
            torch.default_generator.manual_seed(draw.seed)
            for transform in self.transforms:
                image = transform(image)
        return image


@dataclass(eq=False)
class BatchDataset(Dataset[ImageBatch]):
    """Turns a ``Batch`` of the plan into tensors; the batch has everything that changes between epochs."""

    source: Source
    fit: Fit = "keep"
    pad: Colour = BLACK
    augment: Augment | None = None
    cache: PixelCache | None = None
    multiple: int = 1

    def __post_init__(self) -> None:
        if self.cache and (self.cache.fit, self.cache.multiple) != (self.fit, self.multiple):
            raise ValueError(
                f"fit is {self.fit} and the cache's is {self.cache.fit}, multiple {self.multiple} and "
                f"{self.cache.multiple}; expected the same"
            )

    @overload
    def __getitem__(self, batch: Batch) -> ImageBatch: ...
    @overload
    def __getitem__(self, batch: Step) -> MixedBatch: ...
    def __getitem__(self, batch: Batch | Step) -> ImageBatch | MixedBatch:
        if isinstance(batch, Step):
            parts = [self[part] for part in batch.parts]
            broken = [one for part in parts for one in part.pop("broken")]
            return {"parts": parts, "scale": batch.parts[0].scale, "broken": broken}
        height, width = batch.size
        images = torch.empty(len(batch.indices), height, width, 3, dtype=torch.uint8).permute(0, 3, 1, 2)
        targets = torch.from_numpy(self.source.targets[list(batch.indices)])
        broken = []
        for place, index in enumerate(batch.indices):
            try:
                self._fill(images[place], index, batch)
            except DataError as error:
                images[place] = torch.tensor(self.pad, dtype=torch.uint8)[:, None, None]
                targets[place] = IGNORED
                broken.append((index, str(error)))
        return {
            "images": images,
            "targets": targets,
            "indices": torch.tensor(batch.indices),
            "scale": batch.scale,
            "weight": batch.weight,
            "broken": broken,
        }

    def _fill(self, out: torch.Tensor, index: int, batch: Batch) -> None:
        image, native = self._read(index, batch.size)
        draw = self.augment.draw(batch.epoch, index) if self.augment and batch.epoch >= 0 else None
        offset = draw.offset if draw and self.fit == "crop" else (0.5, 0.5)
        to = batch.size, self.fit, self.pad
        fit_image(image, *to, offset=offset, native=native, multiple=self.multiple, out=out)
        if self.augment and draw:
            h, w = content_size(native, batch.size, self.fit, self.multiple)
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
            self.cache.put(index, image, min(size), fit_image)
            kept = self.cache.get(index, size)
        return image if kept is None else kept, (height, width)
