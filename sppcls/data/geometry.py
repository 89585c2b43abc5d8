"""How an image meets the size of a batch: plain integers, shared by torch's resize and numpy's."""

Size = tuple[int, int]
FITS = ("keep", "crop", "warp")
# The mean colour of ImageNet: padding of this colour is all but zero once the batch is normalised.
PAD = (124, 116, 104)
DRAFTS = (8, 4, 2)
# A JPEG is decoded at 1/2, 1/4 or 1/8 only where that leaves this many times the pixels asked for. Mean difference, in
# grey levels, from decoding in full, on 500 photographs: 3.6 at 1.0, 1.5 at 1.25, 1.2 at 1.5, 0.8 at 2.0. For
# comparison: bicubic in place of bilinear changes the same images by 1.65.
DRAFT_MARGIN = 1.25
# Of a batch that is measured, 32 images of 512 x 512: networks take about 180 bytes a pixel, and any file can ask for a
# scale of 8192.
PIXELS = 2**23


def images_at(size: tuple[int, int], batch_size: int) -> int:
    """Return how many images of ``size``, (H, W), make a batch for measuring.

    >>> images_at((224, 299), 32), images_at((2048, 2048), 32), images_at((8192, 8192), 32)
    (32, 2, 1)
    """
    return max(1, min(batch_size, PIXELS // (size[0] * size[1])))


def fitted_size(h: int, w: int, size: Size) -> Size:
    """Return the (H, W), at least 1, of an h x w image scaled by one factor to touch the box ``size`` from inside.

    >>> fitted_size(200, 300, (96, 160))
    (96, 144)
    """
    height, width = size
    if height * w <= width * h:
        return height, max(1, round(w * height / h))
    return max(1, round(h * width / w)), width


def reduction(short: int, wanted: int) -> int:
    """Return n where a JPEG with a shorter side of ``short`` is decoded at 1/n for ``wanted`` pixels: 1, 2, 4 or 8.

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

    ``offset`` is where it is cut, as fractions (top, left) of the room there is; (0.5, 0.5) is the centre.

    >>> cut_box(200, 300, (64, 64))
    (0, 200, 50, 250)
    """
    height, width = fitted_size(*size, (h, w))
    top, left = round(offset[0] * (h - height)), round(offset[1] * (w - width))
    return top, top + height, left, left + width


def source_scale(got: Size, native: Size, size: Size) -> tuple[float, float] | None:
    """Return source pixels per target pixel, down and across, of an image that was decoded at 1/2, 1/4 or 1/8.

    A reduced pixel covers n x n of the file's, so the last ones reach over its edge: scaling from the file's own size
    keeps the picture in place. None for an image that was not reduced: its size says it all.
    """
    n = next((n for n in (1, *DRAFTS) if got == (-(-native[0] // n), -(-native[1] // n))), 1)
    if n == 1:
        return None
    # The hair is against floor(63.999...) when a size is computed from the factor.
    down, across = (1 / (target * n / full * (1 + 1e-9)) for target, full in zip(size, native, strict=True))
    return down, across
