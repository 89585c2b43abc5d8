"""One image: file to pixels (`decode`), and pixels into the exact size of a batch (`fit_image`)."""

import os
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import ExifTags, Image, UnidentifiedImageError
from torch.nn.functional import interpolate

from sppcls.errors import ConfigError, DataError, did_you_mean

Size = tuple[int, int]
FITS = ("keep", "crop", "warp")
# The mean colour of ImageNet: padding of this colour is all but zero once the batch is normalised.
PAD = (124, 116, 104)

# A JPEG is decoded at 1/2, 1/4 or 1/8 only where that leaves this many times the pixels asked for. Mean difference, in
# grey levels, from decoding in full, on 500 photographs: 3.6 at 1.0, 1.5 at 1.25, 1.2 at 1.5, 0.8 at 2.0. For
# comparison: bicubic in place of bilinear changes the same images by 1.65.
_DRAFT_MARGIN = 1.25
_DRAFTS = (8, 4, 2)

# What folders of photographs hold. Left out on purpose: formats without a signature (TGA, PCX), which would take any
# garbage for an image, and those that start another program (EPS).
_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF", "DIB", "JPEG2000")
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def read_size(path: str | os.PathLike[str]) -> Size:
    """Return the (H, W) of an image file as a person sees it, from its header alone; raises ``DataError``."""
    with quiet():
        return read_size_unguarded(path)


def read_size_unguarded(path: str | os.PathLike[str]) -> Size:
    """Do `read_size` without hiding Pillow's warnings: for threads, under one `quiet` around them all."""
    with _open(path) as image:
        width, height = image.size
        return (width, height) if _orientation(image) >= 5 else (height, width)


def decode(path: str | os.PathLike[str], min_short: int | None = None) -> torch.Tensor:
    """Return an image file as [3, H, W] uint8 RGB, with the strides of channels-last memory.

    EXIF orientation is applied. Alpha, in every form, is composited on white. Grey is repeated over the channels:
    16-bit grey maps 0..65535 to 0..255, floats in 0..1 map to 0..255, and any other integers or floats are stretched
    from their own minimum and maximum. CMYK is converted without a colour profile; of an animation comes the first
    frame. With ``min_short`` a JPEG may be decoded at 1/2, 1/4 or 1/8 of its size (ceil(H / n), ceil(W / n)) with a
    shorter side of at least 1.25 * ``min_short``; give `fit_image` the full size as ``native`` then.

    Raises:
        DataError: Naming the file and why it cannot be read: missing, empty, truncated, no image, too many pixels.
    """
    with quiet(), _open(path) as image:
        if min_short is not None:
            n = next((n for n in _DRAFTS if -(-min(image.size) // n) >= _DRAFT_MARGIN * min_short), 1)
            image.draft(None, (image.width // n, image.height // n))  # only JPEG files do anything here
        orientation = _orientation(image)
        rgb = _to_rgb(image)
        if orientation in _TURNS:
            rgb = rgb.transpose(_TURNS[orientation])
        return torch.from_numpy(np.array(rgb)).permute(2, 0, 1)


def fitted_size(h: int, w: int, size: Size) -> Size:
    """Return the (H, W), at least 1, of an h x w image scaled by one factor to touch the box ``size`` from inside.

    >>> fitted_size(200, 300, (96, 160))
    (96, 144)
    """
    height, width = size
    if height * w <= width * h:
        return height, max(1, round(w * height / h))
    return max(1, round(h * width / w)), width


def fit_image(
    image: torch.Tensor,
    size: Size,
    fit: str = "keep",
    pad: tuple[int, int, int] = PAD,
    *,
    offset: tuple[float, float] = (0.5, 0.5),
    native: Size | None = None,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """Put an image into exactly ``size``, (H, W), resized (bilinear, antialiased) at most once.

    Args:
        image: [3, h, w] uint8, fastest in channels-last memory as `decode` returns it.
        fit: ``keep`` scales by one factor (`fitted_size`) and fills up with ``pad`` on the right or at the bottom;
            ``crop`` cuts the largest part of the aspect of ``size``; ``warp`` resizes each side apart.
        pad: RGB, 0 to 255.
        offset: Where ``crop`` cuts, as fractions (top, left) of the room there is; (0.5, 0.5) is the centre.
        native: Full (h, w) of the file where `decode` reduced it: the aspect kept is then the file's own.
        out: [3, H, W] uint8 to write into, and to be returned; without it ``image`` itself may be.

    Raises:
        ConfigError: An unknown ``fit``.
    """
    if fit not in FITS:
        raise ConfigError(f"fit: got {fit!r}{did_you_mean(fit, FITS)}")
    if fit == "crop":
        image, native = _cut(image, size, offset), None
    h, w = native or (image.shape[1], image.shape[2])
    inner = fitted_size(h, w, size) if fit == "keep" else size
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
    # image[None] would have strides that torch does not take for channels-last, and so miss its fastest kernel.
    batch = image.permute(1, 2, 0)[None].permute(0, 3, 1, 2)
    n = next((n for n in (1, *_DRAFTS) if (h, w) == (-(-native[0] // n), -(-native[1] // n))), 1)
    if n == 1:
        return interpolate(batch, size=size, mode="bilinear", antialias=True)[0]
    # A reduced pixel covers n x n of the file's, so the last ones reach over its edge: scaling from the file's own
    # size keeps the picture in place. The hair on the factors is against floor(63.999...).
    factors = [target * n / full * (1 + 1e-9) for target, full in zip(size, native, strict=True)]
    scaled = interpolate(batch, scale_factor=factors, mode="bilinear", antialias=True, recompute_scale_factor=False)
    return scaled[0, :, : size[0], : size[1]]


def _cut(image: torch.Tensor, size: Size, offset: tuple[float, float]) -> torch.Tensor:
    # Cutting before resizing bounds the memory: covering 64 x 64 with a 60000 x 1 image would take 700 MB.
    h, w = image.shape[1:]
    height, width = fitted_size(*size, (h, w))
    top, left = round(offset[0] * (h - height)), round(offset[1] * (w - width))
    return image[:, top : top + height, left : left + width]


def quiet() -> AbstractContextManager[object]:
    """Hide Pillow's warnings (odd metadata, large images): what cannot be read raises, the rest is no news."""
    return warnings.catch_warnings(action="ignore")


@contextmanager
def _open(path: str | os.PathLike[str]) -> Iterator[Image.Image]:
    try:
        with Image.open(path, formats=_FORMATS) as image:
            yield image
    except Exception as error:  # Pillow's plugins raise nearly anything on a damaged file
        raise DataError(f"{shown(path)}: {_reason(path, error)}; mend or remove the file") from error


def shown(path: str | os.PathLike[str]) -> str:
    """Return a path that can be printed, whatever bytes are in its name."""
    return os.fsencode(path).decode("utf-8", "replace")


def _reason(path: str | os.PathLike[str], error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):
        return "an empty file" if Path(path).stat().st_size == 0 else "no image that Pillow can read"
    if isinstance(error, Image.DecompressionBombError):
        return f"more than {2 * (Image.MAX_IMAGE_PIXELS or 0):,} pixels, taken for a decompression bomb"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    first = str(error).strip().partition("\n")[0]
    return f"a damaged image ({first or type(error).__name__})"


def _orientation(image: Image.Image) -> int:
    if image.format == "TIFF":
        return 1  # Pillow turns these by itself
    try:
        # The base class's getexif: that of PNG would decode the pixels in search of metadata behind them.
        return int(Image.Image.getexif(image).get(ExifTags.Base.Orientation, 1))
    except Exception:  # damaged metadata is no reason to lose an image
        return 1


def _to_rgb(image: Image.Image) -> Image.Image:
    image.load()
    if image.mode[0] in "IF":
        return Image.fromarray(_to_8_bit(np.asarray(image))).convert("RGB")
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


def _to_8_bit(values: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    low, high = 0.0, 65535.0 if values.dtype.kind in "iu" else 1.0
    values = np.nan_to_num(values.astype(np.float64), posinf=0, neginf=0)
    if values.min() < low or values.max() > high:
        low, high = values.min(), values.max()
    scaled: npt.NDArray[np.float64] = (values - low) * (255 / max(high - low, 1e-12))
    return np.rint(scaled).astype(np.uint8)
