"""What a program needs to use a model: classes, sizes, preprocessing; plain values, stored in every model file."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, fields
from itertools import count
from typing import Any

import numpy as np
import numpy.typing as npt

from sppcls.errors import ConfigError, SppclsError, did_you_mean

Triple = tuple[float, float, float]
INPUTS = ("normalized", "uint8", "float")
ALIGN = ("stretch", "pad", "none")
POOLS = ("spp", "gap", "fixed")


def far_scales(asked: Sequence[int], trained: Sequence[int]) -> str:
    """Return a warning if a scale is more than 4 times outside the training scales, else an empty string.

    >>> far_scales([32, 64, 600], [64, 48])
    'scale 600 is more than 4 times the largest trained, 64: expect low accuracy'
    """
    if large := [scale for scale in asked if trained and scale > 4 * max(trained)]:
        return f"scale {large[-1]} is more than 4 times the largest trained, {max(trained)}: expect low accuracy"
    if small := [scale for scale in asked if trained and scale * 4 < min(trained)]:
        return f"scale {small[0]} is less than a quarter of the smallest trained, {min(trained)}: expect low accuracy"
    return ""


def refuse_small(what: str, scales: Iterable[int], smallest: int, network: str) -> None:
    """Raise ``ConfigError`` if a scale is below the smallest that a network can take."""
    if small := [scale for scale in scales if scale < smallest]:
        raise ConfigError(f"{what} {small[0]} is too small for {network}; the smallest scale is {smallest}")


@dataclass(frozen=True)
class Signature:
    """How images are prepared for a model, and what it returns.

    Attributes:
        classes: Names, in the order of the logits.
        scales: Training scales (shorter sides) in pixels.
        pool: ``spp``, ``gap`` or ``fixed``; the last takes only ``input_size``, (H, W).
        fit, max_aspect: How images are fitted to a scale (`sppcls.data.plan`).
        align: How sides become multiples of the stride: ``stretch``, of the images themselves; ``pad``, by the network,
            which repeats the last row and column; ``none``, not.
        mean, std: Per colour channel, in units of 0..1.
        smallest, stride: Of the trunk, in pixels.
        input: The values of [N, 3, H, W]: ``normalized`` floats, ``uint8`` 0..255 or ``float`` 0..1.
        probabilities: Whether it returns probabilities instead of logits.
        half: Whether its weights are float16.
        regions: Whether a graph takes boxes in addition to images.
    """

    classes: tuple[str, ...]
    scales: tuple[int, ...]
    pool: str
    fit: str
    max_aspect: float
    mean: Triple
    std: Triple
    smallest: int
    stride: int
    input_size: tuple[int, int] | None = None
    input: str = "normalized"
    probabilities: bool = False
    half: bool = False
    regions: bool = False
    align: str = "none"

    @property
    def multiple(self) -> int:
        """What the sides of images are multiples of."""
        return self.stride if self.align == "stretch" and self.input_size is None else 1

    @property
    def smallest_scale(self) -> int:
        """The smallest scale whose tensors, set to the multiple, are as large as the trunk needs."""
        of = self.multiple
        return next(scale for scale in count(1) if max(round(scale / of), 1) * of >= self.smallest)

    @property
    def scale(self) -> int:
        """The default scale: the largest training scale."""
        return max(self.scales, default=max(224, self.smallest))

    @property
    def pixels(self) -> int:
        """Pixels of a square image at that scale, or of the fixed input size."""
        height, width = self.input_size or (max(self.scale, self.smallest),) * 2
        return height * width

    @property
    def pad(self) -> tuple[int, int, int]:
        """The padding colour: the mean, which is 0 after normalisation."""
        red, green, blue = (round(value * 255) for value in self.mean)
        return red, green, blue

    def prepared(self, images: npt.NDArray[np.uint8]) -> npt.NDArray[Any]:
        """Return uint8 images [N, 3, H, W] in the form that the model takes."""
        if self.input == "uint8":
            return images
        if self.input == "float":
            return images.astype(np.float32) / np.float32(255)
        mean, std = (np.array(v, np.float32).reshape(3, 1, 1) * np.float32(255) for v in (self.mean, self.std))
        normal: npt.NDArray[np.float32] = (images.astype(np.float32) - mean) / std
        return normal

    def as_values(self) -> dict[str, object]:
        """Return plain values, for `read_signature`."""
        return asdict(self)


def read_signature(values: object, where: str) -> Signature:
    """Return the signature in a file's plain values; raises ``SppclsError`` naming the fault and ``where`` it is."""
    if not isinstance(values, Mapping):
        raise SppclsError(f"{where}: its signature is {type(values).__name__}, not a mapping")
    try:
        signature = _cast(values)
    except (TypeError, LookupError, ValueError, ArithmeticError, RuntimeError) as error:
        raise SppclsError(f"{where}: its signature is wrong or incomplete ({type(error).__name__}: {error})") from None
    return signature


def _cast(values: Mapping[str, Any]) -> Signature:
    values = {field.name: field.default for field in fields(Signature) if field.default is not MISSING} | dict(values)
    size = values["input_size"]
    found = Signature(
        classes=tuple(_checked(name, str) for name in _checked(values["classes"], list, tuple)),
        scales=tuple(_pixels(scale) for scale in values["scales"]),
        pool=_one_of(values["pool"], ("spp", "gap", "fixed")),
        fit=_one_of(values["fit"], ("keep", "crop", "warp")),
        max_aspect=float(values["max_aspect"]),
        mean=_triple(values["mean"]),
        std=_triple(values["std"]),
        smallest=_pixels(values["smallest"]),
        stride=_pixels(values["stride"]),
        input_size=None if size is None else (_pixels(size[0]), _pixels(size[1])),
        input=_one_of(values["input"], INPUTS),
        probabilities=_checked(values["probabilities"], bool),
        half=_checked(values["half"], bool),
        regions=_checked(values["regions"], bool),
        align=_one_of(values["align"], ALIGN),
    )
    if len(set(found.classes)) < max(len(found.classes), 2) or not all(found.classes):
        raise ValueError("classes must be at least two distinct names")
    if not 1 <= found.max_aspect <= 16 or min(found.std) < 1e-4 or (found.pool == "fixed") != (size is not None):
        raise ValueError("max_aspect, std or input_size is out of range")
    return found


def _checked(value: Any, *kinds: type) -> Any:
    if not isinstance(value, kinds):
        raise TypeError(f"{str(value)[:40]!r} is not of type {kinds[0].__name__}")
    return value


def _one_of(value: object, allowed: tuple[str, ...]) -> str:
    if value not in allowed:
        raise ValueError(f"{str(value)[:40]!r} is not one of {', '.join(allowed)}")
    return str(value)


def _pixels(value: object) -> int:
    if type(value) is not int or not 1 <= value <= 8192:
        raise ValueError(f"{str(value)[:40]!r} is not a number of pixels")
    return value


def _triple(values: Any) -> Triple:
    red, green, blue = (float(value) for value in values)
    if not all(abs(value) < 1000 for value in (red, green, blue)):
        raise ValueError("mean and std must be three numbers each")
    return red, green, blue


def checked_classes(classes: Sequence[str]) -> tuple[str, ...]:
    """Return the names of classes; raises ``ValueError`` if they are not two or more, all different."""
    names = () if isinstance(classes, str) else tuple(classes)
    if len(names) < 2 or not all(isinstance(name, str) and name for name in names):
        raise ValueError(f"classes are {classes!r}; expected at least two names, none of them empty")
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"class {twice!r} occurs {names.count(twice)} times; names must differ")
    return names


def checked_size(pool: str, size: int | tuple[int, int] | None) -> tuple[int, int] | None:
    """Return the (H, W) that a pool is built for, if any; raises ``ValueError`` if it does not fit the pool."""
    if pool not in POOLS:
        raise ValueError(f"pool is {pool!r}{did_you_mean(pool, POOLS)}")
    if (size is None) == (pool == "fixed"):
        raise ValueError(f"input_size is {size} with pool={pool!r}; pool='fixed' needs one, no other pool takes it")
    return (size, size) if isinstance(size, int) else size
