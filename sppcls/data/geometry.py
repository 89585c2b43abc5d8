"""Fits images to the size of a batch: plain integers, and a resize without torch."""

from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

Size = tuple[int, int]
Pixels = npt.NDArray[np.uint8]
Whole = npt.NDArray[np.integer]
Fit = Literal["keep", "crop", "warp"]
FITS: tuple[Fit, ...] = get_args(Fit)
Colour = tuple[int, int, int]  # RGB, 0 to 255
BLACK: Colour = (0, 0, 0)
DRAFTS = (8, 4, 2)
# A JPEG is decoded at 1/2, 1/4 or 1/8 only if that leaves this many times the requested pixels. Mean difference, in
# grey levels, from decoding in full, on 500 photographs: 3.6 at 1.0, 1.5 at 1.25, 1.2 at 1.5, 0.8 at 2.0. For
# comparison: bicubic in place of bilinear changes the same images by 1.65.
DRAFT_MARGIN = 1.25
# Pixels of an evaluation batch, 32 images of 512 x 512: networks take about 180 bytes/pixel, and any file can ask for a
# scale of 8192.
PIXELS = 2**23


def images_at(size: tuple[int, int], batch_size: int) -> int:
    """Return how many images of ``size``, (H, W), make a batch for evaluation.

    >>> images_at((224, 299), 32), images_at((2048, 2048), 32), images_at((8192, 8192), 32)
    (32, 2, 1)
    """
    return max(1, min(batch_size, PIXELS // (size[0] * size[1])))


def to_multiple(length: float, multiple: int) -> int:
    """Return the multiple that is nearest to a length, at least one.

    >>> [to_multiple(length, 8) for length in (3, 60, 67, 69)]
    [8, 64, 64, 72]
    """
    return max(round(length / multiple), 1) * multiple


def shrunk_size(size: Size, scale: int, to: int, multiple: int = 1) -> Size:
    """Return the (H, W) of a tensor of images at ``scale`` when they are resized to another one.

    >>> shrunk_size((64, 96), 64, 32), shrunk_size((64, 88), 64, 48, 8)
    ((32, 48), (48, 64))
    """
    return to_multiple(size[0] * to / scale, multiple), to_multiple(size[1] * to / scale, multiple)


def fitted_size(h: int, w: int, size: Size, multiple: int = 1) -> Size:
    """Return the (H, W) of an h x w image scaled by one factor to touch the box ``size`` from inside.

    The other side is then set to the nearest ``multiple``, at least one, at most the box.

    >>> fitted_size(200, 300, (96, 160)), fitted_size(200, 310, (96, 160), 8)
    ((96, 144), (96, 152))
    """
    height, width = size
    if height * w <= width * h:
        return height, min(to_multiple(w * height / h, multiple), width)
    return min(to_multiple(h * width / w, multiple), height), width


def content_size(native: Size, size: Size, fit: str, multiple: int = 1) -> Size:
    """Return the (H, W) that an image of size ``native`` takes in a tensor of ``size``; the rest is padding."""
    return fitted_size(*native, size, multiple) if fit == "keep" else size


def fitted_sizes(sizes: Whole, boxes: Whole, multiple: int = 1) -> npt.NDArray[np.int64]:
    """Return `fitted_size` of images of ``sizes`` [N, 2] in ``boxes`` [..., N, 2], (0, 0) where there is no box."""
    (h, w), (height, width) = sizes.T, np.moveaxis(boxes, -1, 0)
    by_height = np.stack([height, np.rint(w * height / h / multiple) * multiple], -1)
    by_width = np.stack([np.rint(h * width / w / multiple) * multiple, width], -1)
    fitted = np.where((height * w <= width * h)[..., None], by_height, by_width)
    return np.minimum(np.maximum(fitted, multiple), boxes).astype(np.int64)


def reduction(short: int, wanted: int) -> int:
    """Return n, 1, 2, 4 or 8, if a JPEG with a shorter side of ``short`` is decoded at 1/n for ``wanted`` pixels.

    >>> [reduction(480, wanted) for wanted in (48, 96, 128, 224)]
    [8, 4, 2, 1]
    """
    return next((n for n in DRAFTS if -(-short // n) >= DRAFT_MARGIN * wanted), 1)


def same_aspect(got: Size, native: Size) -> bool:
    """Return whether ``got`` can be ``native`` at another scale, to within the rounding of a pixel.

    >>> same_aspect((84, 126), (333, 501)), same_aspect((126, 84), (333, 501))
    (True, False)
    """
    return abs(got[0] * native[1] - got[1] * native[0]) <= max(native)


def cut_box(h: int, w: int, size: Size, offset: tuple[float, float] = (0.5, 0.5)) -> tuple[int, int, int, int]:
    """Return (top, bottom, left, right) of the largest part of an h x w image with the aspect of ``size``.

    ``offset`` is where it is cut, as fractions (top, left) of the free space; (0.5, 0.5) is the centre.

    >>> cut_box(200, 300, (64, 64))
    (0, 200, 50, 250)
    """
    height, width = fitted_size(*size, (h, w))
    top, left = round(offset[0] * (h - height)), round(offset[1] * (w - width))
    return top, top + height, left, left + width


def source_scale(got: Size, native: Size, size: Size) -> tuple[float, float] | None:
    """Return source pixels per target pixel, down and across, of an image that was decoded at 1/2, 1/4 or 1/8.

    A reduced pixel covers n x n of the file's, so the last ones reach beyond its edge: scaling from the file's own size
    keeps the picture in place. None for an image that was not reduced: its size is enough.
    """
    n = next((n for n in (1, *DRAFTS) if got == (-(-native[0] // n), -(-native[1] // n))), 1)
    if n == 1:
        return None
    # The tiny offset guards against floor(63.999...) when a size is computed from the factor.
    down, across = (1 / (target * n / full * (1 + 1e-9)) for target, full in zip(size, native, strict=True))
    return down, across


_ROWS = 256  # at a time, so that the wider copies of large images stay small


def fit_array(
    image: Pixels, size: Size, fit: str = "keep", pad: Colour = BLACK, *, native: Size | None = None, multiple: int = 1
) -> Pixels:
    """Put an image [h, w, 3] into exactly ``size``, (H, W); as `sppcls.data.images.fit_image`, cut at the centre."""
    if fit == "crop":
        top, bottom, left, right = cut_box(image.shape[0], image.shape[1], size)
        image, native = image[top:bottom, left:right], None
    h, w = native or (image.shape[0], image.shape[1])
    inner = content_size((h, w), size, fit, multiple)
    out = np.full((*size, 3), pad, np.uint8)
    out[: inner[0], : inner[1]] = _resized(image, inner, (h, w))
    return out


def _resized(image: Pixels, size: Size, native: Size) -> Pixels:
    """Resize across, round to uint8, then down: torch's order, which its rounding depends on."""
    got = (image.shape[0], image.shape[1])
    if got == size:
        return image
    down, across = source_scale(got, native, size) or (got[0] / size[0], got[1] / size[1])
    # Torch does not touch a side whose length stays, whatever its scale. The offset guards against floor(63.999...).
    if int(got[1] / across * (1 + 1e-9)) != got[1]:
        image = _axis(image, size[1], across)
    if int(got[0] / down * (1 + 1e-9)) != got[0]:
        image = _axis(image.swapaxes(0, 1), size[0], down).swapaxes(0, 1)
    return image[: size[0], : size[1]]


def _axis(image: Pixels, length: int, scale: float) -> Pixels:
    """Return [h, length, 3] of [h, w, 3]."""
    places, weights, bits = _taps(image.shape[1], length, scale)
    out = np.empty((image.shape[0], length, 3), np.uint8)
    for top in range(0, image.shape[0], _ROWS):
        columns = image[top : top + _ROWS].transpose(1, 0, 2).reshape(image.shape[1], -1).astype(np.int32)
        summed = np.full((length, columns.shape[1]), 1 << (bits - 1), np.int32)
        for place, weight in zip(places, weights, strict=True):
            summed += weight[:, None] * columns[place]
        summed = (summed >> bits).clip(0, 255)
        out[top : top + _ROWS] = summed.reshape(length, -1, 3).transpose(1, 0, 2)
    return out


def _taps(size: int, length: int, scale: float) -> tuple[Whole, Whole, int]:
    """Return torch's triangle filter: where each tap of each target reads and its weight [taps, length], in 2^-bits."""
    support = max(scale, 1.0)
    center = scale * (np.arange(length) + 0.5)
    first = np.maximum((center - support + 0.5).astype(np.int64), 0)
    end = np.minimum((center + support + 0.5).astype(np.int64), size)
    places = first + np.arange((end - first).max())[:, None]
    shares = np.maximum(1 - np.abs(places - center + 0.5) / support, 0) * (places < end)
    shares /= shares.sum(0)
    # As many bits as the largest weight allows in an int16, at most 22.
    bits = next(b for b in range(23) if b == 22 or int(0.5 + shares.max() * (1 << (b + 1))) >= 1 << 15)
    return np.minimum(places, size - 1), (0.5 + shares * (1 << bits)).astype(np.int32), bits
