"""`fit_image` in numpy, for programs without torch: bit for bit what torch's resize of uint8 images gives."""

from typing import Any

import numpy as np
import numpy.typing as npt

from sppcls.data.decode import Pixels
from sppcls.data.geometry import PAD, Size, cut_box, fitted_size, source_scale

Whole = npt.NDArray[np.integer[Any]]
_ROWS = 256  # at a time, so that the wider copies of large images stay small


def fit_array(
    image: Pixels, size: Size, fit: str = "keep", pad: tuple[int, int, int] = PAD, *, native: Size | None = None
) -> Pixels:
    """Put an image [h, w, 3] into exactly ``size``, (H, W); as `sppcls.data.images.fit_image`, cut at the centre."""
    if fit == "crop":
        top, bottom, left, right = cut_box(image.shape[0], image.shape[1], size)
        image, native = image[top:bottom, left:right], None
    h, w = native or (image.shape[0], image.shape[1])
    inner = fitted_size(h, w, size) if fit == "keep" else size
    out = np.empty((*size, 3), np.uint8)
    out[:] = pad
    out[: inner[0], : inner[1]] = _resized(image, inner, (h, w))
    return out


def _resized(image: Pixels, size: Size, native: Size) -> Pixels:
    """Resize across, round to uint8, then down: torch's order, which its rounding depends on."""
    got = (image.shape[0], image.shape[1])
    if got == size:
        return image
    down, across = source_scale(got, native, size) or (got[0] / size[0], got[1] / size[1])
    # Torch leaves a side alone whose length stays, whatever its scale. The hair is against floor(63.999...).
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
    # As many bits as the largest weight leaves in an int16, 22 at most.
    bits = next(b for b in range(23) if b == 22 or int(0.5 + shares.max() * (1 << (b + 1))) >= 1 << 15)
    return np.minimum(places, size - 1), (0.5 + shares * (1 << bits)).astype(np.int32), bits
