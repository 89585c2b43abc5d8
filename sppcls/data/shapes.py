"""The built-in data set: generated shapes whose class depends only on geometry, at known sizes and object scales."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from sppcls.data.geometry import Pixels
from sppcls.errors import ConfigError, did_you_mean

if TYPE_CHECKING:
    import torch

Floats = npt.NDArray[np.float64]

SPLITS = ("train", "val", "test")
SHORTEST, LONGEST = 48, 200
# Images kept, 40 MB: those of a validation part and of the gap, which are measured at one scale after another.
KEPT = 1200
OBJECT_SCALE = (0.35, 0.9)
# With these, a small network reaches 97 to 99 % on a few thousand images: hard enough to tell recipes apart.
TURN = 12.0
LUMA, CONTRAST = (60.0, 195.0), (65.0, 125.0)
NOISE = (2.0, 8.0)
CLUTTER = (2, 4)
_LUMA_WEIGHTS = np.array([0.299, 0.587, 0.114])
_SUPERSAMPLE = 4


def _arc(start: float, stop: float, radius: float = 1.0, x: float = 0.0) -> Floats:
    turn = np.radians(np.linspace(start, stop, 48))
    return np.stack([x + radius * np.cos(turn), radius * np.sin(turn)], 1)


def _star(points: int, inner: float) -> Floats:
    turn = np.pi * np.arange(2 * points) / points
    return np.stack([np.cos(turn), np.sin(turn)], 1) * np.where(np.arange(2 * points) % 2, inner, 1.0)[:, None]


def _heart() -> Floats:
    t = np.linspace(0, 2 * np.pi, 64)
    y = 13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)
    return np.stack([16 * np.sin(t) ** 3, -y - 2.5], 1) / 17


def _mirrored(*corners: tuple[float, float]) -> Floats:
    half = np.array(corners)
    return np.concatenate([half, half[::-1] * (-1, 1)])


# Each around the centre of its circle; the second of a pair is a hole. Shapes that would fill most of the circle
# (disk, square) are hollow, so that area and mean colour say little about the class.
_OUTLINES: dict[str, tuple[Floats, ...]] = {
    "arrow": (_mirrored((0, 1), (0.8, 0), (0.27, 0), (0.27, -1)),),
    "crescent": (np.concatenate([_arc(50, 310), _arc(270, 90, 0.77, 0.64)]),),
    "ellipse": (_arc(0, 360) * (1, 0.5),),
    "frame": (_star(4, 0.5**0.5), 0.5 * _star(4, 0.5**0.5)),
    "half-disk": (_arc(-90, 90),),
    "heart": (_heart(),),
    "letter-h": (_mirrored((0.3, 0.25), (0.3, 1), (0.8, 1), (0.8, -1), (0.3, -1), (0.3, -0.25)),),
    "letter-l": (np.array([(-0.7, -1), (-0.1, -1), (-0.1, 0.4), (0.7, 0.4), (0.7, 1), (-0.7, 1)]),),
    "plus": (_mirrored((0.32, 1), (0.32, 0.32), (1, 0.32), (1, -0.32), (0.32, -0.32), (0.32, -1)),),
    "ring": (_arc(0, 360), 0.65 * _arc(0, 360)),
    "star": (_star(5, 0.5),),
    "triangle": (_star(3, 0.5),),
}


def _mask(name: str, diameter: int, turn: float) -> Image.Image:
    """Coverage of one shape in the box of its circle, edges smooth."""
    image = Image.new("L", (diameter * _SUPERSAMPLE,) * 2)
    draw = ImageDraw.Draw(image)
    rotation = np.array([[math.cos(turn), -math.sin(turn)], [math.sin(turn), math.cos(turn)]])
    grow = 1 / np.hypot(*_OUTLINES[name][0].T).max()
    for outline, fill in zip(_OUTLINES[name], (255, 0), strict=False):
        corners = (outline @ rotation * grow + 1) * image.width / 2
        draw.polygon(corners.ravel().tolist(), fill=fill)
    return image.reduce(_SUPERSAMPLE)


def _colour(rng: np.random.Generator, luma: float) -> Floats:
    tint = rng.uniform(-50, 50, 3)
    colour: Floats = (luma + tint - tint @ _LUMA_WEIGHTS).clip(0, 255)
    return colour


def _contrasting(rng: np.random.Generator, luma: float) -> tuple[int, ...]:
    """A colour darker or lighter than ``luma`` by CONTRAST: either one, if both fit."""
    step = rng.uniform(*CONTRAST) * rng.choice((-1, 1))
    return tuple(_colour(rng, luma + step if 5 < luma + step < 250 else luma - step).astype(int).tolist())


def _background(rng: np.random.Generator, height: int, width: int, luma: float) -> Image.Image:
    """A tinted background with a gradient and a wave."""
    y, x = np.linspace(-1, 1, height, dtype=np.float32)[:, None], np.linspace(-1, 1, width, dtype=np.float32)
    angle, phase, waves = rng.uniform(0, 2 * np.pi, 3).tolist()
    tilt = 20 * rng.uniform(-1, 1, 2).astype(np.float32)
    wave = 8 * np.sin(2 * waves * (x * math.cos(angle) + y * math.sin(angle)) + phase)
    ground = (tilt[0] * x + tilt[1] * y + wave)[..., None] + _colour(rng, luma).astype(np.float32)
    return Image.fromarray(ground.clip(0, 255).astype(np.uint8))


def _clutter(rng: np.random.Generator, image: Image.Image, luma: float) -> None:
    """Blobs, lines and splinters smaller than any object, in colours drawn as the object's is."""
    draw, reach = ImageDraw.Draw(image), 0.12 * min(image.size)
    for kind in rng.integers(3, size=rng.integers(*CLUTTER, endpoint=True)):
        fill = _contrasting(rng, luma)
        points = rng.uniform((0, 0), image.size) + rng.uniform(-reach, reach, (3, 2))
        if kind == 0:
            draw.ellipse([*points[:2].min(0), *points[:2].max(0)], fill=fill)
        elif kind == 1:
            draw.line(points.ravel().tolist(), fill=fill, width=1 + int(reach / 6))
        else:
            draw.polygon(points.ravel().tolist(), fill=fill)


class ShapesSource:
    """Generated images of one shape each; image ``i`` depends on (seed, split, i) alone, whatever ``size`` is.

    Sides are 48 to 200 pixels, aspects 1:2 to 2:1. The class is the outline: colours, contrast, turn, place, size,
    ground, clutter and noise are drawn alike for all classes, and the object's scale independently of the image's.

    ``object_scale`` [N] is the diameter of the object's circle over the image's shorter side.

    Raises:
        ConfigError: an unknown split, fewer images than classes, or a negative seed.

    >>> source = ShapesSource("val", 24)
    >>> source.sizes[0].tolist(), source.classes[source.targets[0]], source.read(0).shape
    ([140, 75], 'arrow', torch.Size([3, 140, 75]))
    """

    classes = tuple(_OUTLINES)

    def __init__(self, split: str, size: int, seed: int = 0) -> None:
        if split not in SPLITS:
            raise ConfigError(f"shapes: unknown split {split!r}{did_you_mean(split, SPLITS)}")
        if size < len(self.classes):
            raise ConfigError(f"shapes: got {size} {split} images, allowed: at least {len(self.classes)}, 1 per class")
        if seed < 0:
            raise ConfigError(f"shapes: got seed {seed}, allowed: 0 or more")
        self._kept: dict[int, Pixels] = {}
        self._key = (seed, SPLITS.index(split))
        self.targets = np.arange(size, dtype=np.int64) % len(self.classes)
        self.names: Sequence[str] = tuple(f"shapes/{split}/{i}" for i in range(size))
        layout = [self._layout(i) for i in range(size)]
        self.sizes = np.array([image for image, _ in layout], dtype=np.int64)
        self.object_scale = np.array([scale for _, scale in layout])

    def _layout(self, index: int) -> tuple[tuple[int, int], float]:
        """Size of image ``index`` as (H, W), and its object's scale; draws no pixel."""
        rng = np.random.default_rng((*self._key, index, 0))
        stretch = 2 ** rng.uniform(0, 1)
        short = SHORTEST * (LONGEST / stretch / SHORTEST) ** rng.uniform()
        scale = math.exp(rng.uniform(*np.log(OBJECT_SCALE)))
        sides = round(short), min(round(short * stretch), 2 * round(short))
        return (sides if rng.random() < 0.5 else sides[::-1]), scale

    def read(self, index: int, min_short: int | None = None) -> "torch.Tensor":
        """Return image ``index`` as [3, H, W] uint8 RGB, always at its native size."""
        import torch

        kept = self._kept.pop(index, None)
        self._kept[index] = pixels = self._drawn(index) if kept is None else kept  # now the last to go
        if len(self._kept) > KEPT:
            del self._kept[next(iter(self._kept))]
        return torch.from_numpy(pixels.transpose(2, 0, 1).copy())

    def _drawn(self, index: int) -> Pixels:
        height, width = self.sizes[index].tolist()
        rng = np.random.default_rng((*self._key, index, 1))
        luma = rng.uniform(*LUMA)
        image = _background(rng, height, width, luma)
        _clutter(rng, image, luma)
        diameter = round(self.object_scale[index] * min(height, width))
        mask = _mask(self.classes[self.targets[index]], diameter, math.radians(rng.uniform(-TURN, TURN)))
        left, top = rng.integers((width - diameter, height - diameter), endpoint=True).tolist()
        image.paste(_contrasting(rng, luma), (left, top), mask)
        noise = rng.standard_normal((height, width, 3), dtype=np.float32) * np.float32(rng.uniform(*NOISE))
        pixels: Pixels = (np.asarray(image) + noise).clip(0, 255).astype(np.uint8)
        return pixels
