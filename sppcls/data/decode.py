"""Decodes image files and reads their headers, with limits on the cost: files may come from strangers."""

import errno
import io
import os
import re
import stat
import warnings
import weakref
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from time import thread_time
from typing import TYPE_CHECKING, BinaryIO

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image, ImageFile, UnidentifiedImageError

from sppcls.data.geometry import Pixels, Size, reduction
from sppcls.errors import DataError

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

# Formats of photographs. Left out on purpose: formats without a signature (TGA, PCX), which would take any
# garbage for an image, and those that start another program (EPS).
_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF", "DIB", "JPEG2000")
# With Pillow's limit of 179 megapixels these bound what one file can cost; photographs stay far below them.
_MOST_BYTES = 2**30
_MOST_SECONDS = 60.0  # CPU time of this thread, independent of a slow disk or a busy machine
_BLOCK = 2**20
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
    """Like `read_size`, without hiding Pillow's warnings: for threads, under one `quiet` around all of them."""
    with _open(path) as image:
        width, height = image.size
        return (width, height) if _orientation(image) >= 5 else (height, width)


def decode_array(path: str | os.PathLike[str], min_short: int | None = None) -> Pixels:
    """Return an image file as [H, W, 3] uint8 RGB.

    EXIF orientation is applied. Alpha, in every form, is composited on white. Grey is repeated over the channels:
    16-bit grey maps 0..65535 to 0..255, floats in 0..1 map to 0..255, and any other integers or floats are stretched
    from their own minimum and maximum. CMYK is converted without a colour profile; an animation gives its first
    frame. With ``min_short`` a JPEG may be decoded at 1/2, 1/4 or 1/8 of its size (ceil(H / n), ceil(W / n)) with a
    shorter side of at least 1.25 * ``min_short``; then pass the full size as ``native`` when resizing.

    A file has at most 1 GiB and 179 megapixels. Decoding takes the file's bytes and up to 24 bytes per pixel (WebP,
    JPEG 2000).

    Raises:
        DataError: Naming the file and the reason: missing, empty, truncated, not an image, too large, too slow.
    """
    with quiet(), _open(path, whole=True) as image:
        image.decodermaxblock = 4096  # so few scans of a JPEG are decoded at a time that `_Bytes` can end it
        if min_short is not None:
            n = reduction(min(image.size), min_short)
            image.draft(None, (image.width // n, image.height // n))  # only affects JPEG files
        return image_array(image)


def image_array(image: Image.Image) -> Pixels:
    """Return an open image as [H, W, 3] uint8 RGB, as `decode_array` does."""
    orientation = _orientation(image)
    rgb = _to_rgb(image)
    if orientation in _TURNS:
        rgb = rgb.transpose(_TURNS[orientation])
    return np.array(rgb)


def quiet() -> AbstractContextManager[object]:
    """Hide Pillow's warnings (odd metadata, large images): unreadable files raise, the rest does not matter."""
    return warnings.catch_warnings(action="ignore")


@contextmanager
def _open(path: str | os.PathLike[str], whole: bool = False) -> Iterator[ImageFile.ImageFile]:
    try:
        with _stream(path, whole) as stream, Image.open(stream, formats=_FORMATS) as image:
            if whole:
                vars(stream).pop("read", None)  # what is read from here on are pixels
            yield image
    except Exception as error:  # Pillow's plugins raise nearly anything on a damaged file
        advice = "check its name" if isinstance(error, FileNotFoundError) else "repair or remove the file"
        reason = _reason(error)
        raise DataError(f"{shown(path)}: {reason}; {advice}", reason) from error


def _stream(path: str | os.PathLike[str], whole: bool) -> BinaryIO:
    path = path if isinstance(path, Path) else Path(path)  # creating one costs as much as opening the file
    status = path.stat()
    if not stat.S_ISREG(status.st_mode) and not stat.S_ISDIR(status.st_mode):  # opening a folder raises anyway
        raise OSError(errno.EINVAL, "a pipe or a device, not a file")  # reading a pipe could block forever
    if status.st_size == 0:
        raise OSError(errno.ENODATA, "an empty file")
    if status.st_size > _MOST_BYTES:
        raise OSError(errno.EFBIG, f"the file is larger than {_MOST_BYTES / 2**30:.0f} GiB")
    if not whole:
        return open_header(path, status.st_size)
    # Decoders map files given by name: one truncated meanwhile would kill the process.
    stream = _Bytes(path.read_bytes())
    if status.st_size > SHORT:
        vars(stream)["read"] = bounded(stream.read, status.st_size)
    return stream


class _Bytes(io.BytesIO):
    """A file's content, for a limited time: a small JPEG with many scans could keep its decoder busy for hours."""

    def __init__(self, content: bytes) -> None:
        super().__init__(content)
        self._end = thread_time() + _MOST_SECONDS

    def read(self, size: int | None = -1, /) -> bytes:
        if thread_time() > self._end:
            raise OSError(errno.ETIME, f"decoding takes more than {_MOST_SECONDS:g} s")
        return super().read(size)


def shown(path: str | os.PathLike[str]) -> str:
    """Return a path as one line that can be printed, whatever bytes are in its name."""
    text = os.fsencode(path).decode("utf-8", "replace")
    return re.sub(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]", lambda c: c[0].encode("unicode_escape").decode(), text)


def _reason(error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):
        return "not an image that Pillow can read"
    if isinstance(error, Image.DecompressionBombError):
        return f"more than {2 * (Image.MAX_IMAGE_PIXELS or 0):,} pixels, possibly a decompression bomb"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    first = str(error).strip().partition("\n")[0]
    return f"a damaged image ({first or type(error).__name__})"


def _orientation(image: Image.Image) -> int:
    if image.format == "TIFF":
        return 1  # Pillow rotates these itself
    try:
        # The base class's getexif: that of PNG would decode the pixels in search of metadata behind them.
        return int(Image.Image.getexif(image).get(ExifTags.Base.Orientation, 1))
    except Exception:  # damaged metadata must not lose the image
        return 1


def _to_rgb(image: Image.Image) -> Image.Image:
    image.load()
    if image.mode[0] in "IF":
        return Image.fromarray(_to_8_bit(np.asarray(image))).convert("RGB")
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


def _to_8_bit(values: npt.NDArray[np.generic]) -> npt.NDArray[np.uint8]:
    flat, grey = values.reshape(-1), np.empty(values.shape, np.uint8)

    def blocks() -> Iterator[tuple[int, npt.NDArray[np.float64]]]:  # doubles of all of it would take 24 bytes per pixel
        for start in range(0, flat.size, _BLOCK):
            yield start, np.nan_to_num(flat[start : start + _BLOCK].astype(np.float64), posinf=0, neginf=0)

    low, high = 0.0, 65535.0 if values.dtype.kind in "iu" else 1.0
    least, most = np.array([(block.min(), block.max()) for _, block in blocks()]).T
    if least.min() < low or most.max() > high:
        low, high = least.min(), most.max()
    for start, block in blocks():
        grey.reshape(-1)[start : start + _BLOCK] = np.rint((block - low) * (255 / max(high - low, 1e-12)))
    return grey


# No photograph's header is longer, and a shorter one is cheap whatever its content: 15 million markers, 60 MB, took
# 2 GB and 20 s.
SHORT = 2**18
_PARTS = 100_000
_SECONDS = 2.0  # of this thread's own time


def open_header(path: Path, size: int) -> BinaryIO:
    """Open a file of ``size`` bytes to read its header; beyond 256 KB of it a read may raise, as that of `bounded`."""
    return _Reader(_File(path, size)) if size > SHORT else path.open("rb")


def bounded(read: Callable[[int | None], bytes], size: int) -> Callable[..., bytes]:
    """Return ``read`` of a file of ``size`` bytes, which raises ``OSError`` at too many parts, bytes or seconds."""
    parts, left, end = _PARTS, 2 * size + (16 << 20), thread_time() + _SECONDS

    def counted(count: int | None = -1, /) -> bytes:
        nonlocal parts, left
        content = read(count)
        parts -= 1
        left -= len(content)
        if parts < 0 or left < 0:
            raise OSError(errno.EFBIG, f"the header has more than {_PARTS:,} parts or twice the file's length")
        if not parts & 63 and thread_time() > end:  # a system call
            raise OSError(errno.ETIME, f"reading the header takes more than {_SECONDS:g} s")
        return content

    return counted


class _File(io.FileIO):
    """Counts what its reader's buffer takes: counting every read would make the scan of photographs 15 % slower."""

    def __init__(self, path: Path, size: int) -> None:
        super().__init__(path)
        self.size, self.left = size, SHORT
        self.reader: Callable[[], _Reader | None] = lambda: None

    def readinto(self, buffer: "WriteableBuffer", /) -> int:
        count = super().readinto(buffer)
        if self.left > 0:
            self.left -= count
            if self.left <= 0 and (reader := self.reader()):
                vars(reader)["read"] = bounded(reader.read, self.size)
        return count


class _Reader(io.BufferedReader):
    """A reader that can hold attributes and is known to its file."""

    def __init__(self, file: _File) -> None:
        super().__init__(file)
        file.reader = weakref.ref(self)  # no reference cycle, so that both are freed at once
