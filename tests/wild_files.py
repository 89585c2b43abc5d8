"""Small images of every format, ways to damage them, and what has to be true of any file."""

import io
import re
import struct
import zlib
from collections.abc import Callable
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
from PIL import Image

from sppcls.data.decode import decode_array, read_size, shown
from sppcls.data.geometry import DRAFTS
from sppcls.data.images import fit_image
from sppcls.errors import DataError

SIZE = (48, 64)
SUFFIXES = ("jpg", "png", "webp", "gif", "bmp", "tif", "ppm", "jp2", "avif")
EXTREMES = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0xFFFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)


def picture(mode: str = "RGB", seed: int = 0) -> Image.Image:
    """Smooth in one half and noise in the other, with parts that can be seen through."""
    rng = np.random.default_rng(seed)
    pixels = np.add.outer(np.arange(SIZE[0]), np.arange(SIZE[1]))[..., None] * np.array([1, 2, 3, 4])
    pixels[:, SIZE[1] // 2 :] = rng.integers(0, 256, (SIZE[0], SIZE[1] // 2, 4))
    image = Image.fromarray((pixels % 256).astype(np.uint8), "RGBA")
    if mode in ("I;16", "F"):
        return Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16 if mode == "I;16" else np.float32) * 200)
    return image if mode == "RGBA" else image.convert("RGB").convert(mode)


def saved(mode: str, kind: str, **options: Any) -> bytes:
    if options.pop("frames", 0):
        options |= {"save_all": True, "append_images": [picture(mode, seed) for seed in (1, 2)], "duration": 50}
    picture(mode).save(stream := io.BytesIO(), kind, **options)
    return stream.getvalue()


@cache
def whole_files() -> dict[str, bytes]:
    """Return undamaged files by name; the suffix is the format's."""
    turned = Image.Exif()
    turned[0x0112] = 6
    rle = bytearray(saved("L", "bmp"))
    struct.pack_into("<I", rle, 30, 1)  # says that it is run-length coded, and is bytes to such a decoder
    return {
        "a.jpg": saved("RGB", "jpeg"),
        "progressive.jpg": saved("RGB", "jpeg", progressive=True),
        "turned.jpg": saved("RGB", "jpeg", exif=turned),
        "grey.jpg": saved("L", "jpeg", restart_marker_blocks=4),
        "cmyk.jpg": saved("CMYK", "jpeg"),
        "many.jpg": saved("RGB", "mpo", frames=3),
        "a.png": saved("RGB", "png"),
        "alpha.png": saved("RGBA", "png", exif=turned),
        "palette.png": saved("P", "png", transparency=bytes(range(0, 256, 2))),
        "deep.png": saved("I;16", "png"),
        "bits.png": saved("1", "png"),
        "moving.png": saved("RGB", "png", frames=3),
        "a.webp": saved("RGB", "webp"),
        "alpha.webp": saved("RGBA", "webp", exif=turned),
        "lossless.webp": saved("RGB", "webp", lossless=True),
        "moving.webp": saved("RGBA", "webp", frames=3),
        "a.gif": saved("P", "gif"),
        "moving.gif": saved("RGB", "gif", frames=3, transparency=3),
        "a.bmp": saved("RGB", "bmp"),
        "palette.bmp": saved("P", "bmp"),
        "bits.bmp": saved("1", "bmp"),
        "rle.bmp": bytes(rle),
        "a.tif": saved("RGB", "tiff"),
        "lzw.tif": saved("RGBA", "tiff", compression="tiff_lzw", exif=turned),
        "deflate.tif": saved("CMYK", "tiff", compression="tiff_adobe_deflate"),
        "jpeg.tif": saved("RGB", "tiff", compression="jpeg"),
        "fax.tif": saved("1", "tiff", compression="group4"),
        "packbits.tif": saved("P", "tiff", compression="packbits", strip_size=512),
        "deep.tif": saved("I;16", "tiff", compression="tiff_lzw"),
        "float.tif": saved("F", "tiff"),
        "a.ppm": saved("RGB", "ppm"),
        "a.jp2": saved("RGB", "jpeg2000"),
        "a.avif": saved("RGB", "avif"),
    }


# --- damage ----------------------------------------------------------------------------------------------------------


def _cut(rng: Random, data: bytearray) -> tuple[int, int]:
    start = rng.randrange(len(data))
    return start, min(len(data), start + rng.choice((1, 2, 4, 12, 64, 512, len(data))))


def flip(rng: Random, data: bytearray) -> None:
    for _ in range(rng.choice((1, 1, 2, 8, 64))):
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)


def overwrite(rng: Random, data: bytearray) -> None:
    start, end = _cut(rng, data)
    data[start:end] = rng.choice((bytes(end - start), b"\xff" * (end - start), rng.randbytes(end - start)))


def truncate(rng: Random, data: bytearray) -> None:
    del data[rng.randrange(len(data)) :]


def remove(rng: Random, data: bytearray) -> None:
    start, end = _cut(rng, data)
    del data[start:end]


def repeat(rng: Random, data: bytearray) -> None:
    start, end = _cut(rng, data)
    data[start:start] = data[start:end] * rng.choice((1, 1, 2, 50))


def swap(rng: Random, data: bytearray) -> None:
    a, b, c = sorted(rng.randrange(len(data)) for _ in range(3))
    data[a:c] = data[b:c] + data[a:b]


def header(rng: Random, data: bytearray) -> None:
    """Put extreme values where sizes, counts and offsets are."""
    known = {b"\x89PNG": (16, 20, 24), b"GIF8": (6, 8), b"BM": (10, 14, 18, 22, 28, 30, 34), b"RIFF": (4, 16, 24, 27)}
    places = next((known[start] for start in known if data.startswith(start)), ())
    if data[:2] == b"\xff\xd8":
        places = tuple(
            m.start() + n for m in re.finditer(b"\xff[\xc0\xc2\xc4\xda\xdb\xe1\xe2]", data) for n in (2, 5, 7)
        )
    if data[:4] == b"II*\0" and (start := int.from_bytes(data[4:8], "little")) + 200 < len(data):
        places = tuple(start + 2 + 12 * entry + field for entry in range(16) for field in (2, 4, 8))
    for _ in range(rng.choice((1, 1, 2, 4))):
        place = rng.choice(places) if places and rng.random() < 0.8 else rng.randrange(min(len(data), 200))
        width = rng.choice((1, 2, 2, 4, 4))
        value = (rng.choice(EXTREMES) & (256**width - 1)).to_bytes(width, rng.choice(("little", "big")))
        data[place : place + width] = value


def splice(rng: Random, data: bytearray) -> None:
    other = rng.choice(list(whole_files().values()))
    data[rng.randrange(len(data)) :] = other[rng.randrange(len(other)) :]


MUTATIONS: tuple[Callable[[Random, bytearray], None], ...] = (
    flip,
    overwrite,
    truncate,
    remove,
    repeat,
    swap,
    header,
    header,
    splice,
)


def mutant(number: int) -> tuple[str, bytes, str]:
    """Return the name, content and history of damaged file ``number``; the same in every process."""
    rng = Random(number)
    suffix = SUFFIXES[number % len(SUFFIXES)]
    name = rng.choice([name for name in whole_files() if name.endswith(suffix)])
    data, steps = bytearray(whole_files()[name]), []
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        if data:
            steps.append(rng.choice(MUTATIONS))
            steps[-1](rng, data)
    if suffix == "png" and rng.random() < 0.7:  # right sums of wrong chunks, or decoders look no further
        mend_sums(data)
    return f"{number}.{suffix}", bytes(data), f"seed {number}: {name}, {'+'.join(step.__name__ for step in steps)}"


def mend_sums(data: bytearray) -> None:
    place = 8
    while place + 12 <= len(data):
        end = place + 8 + int.from_bytes(data[place : place + 4], "big")
        if end + 4 > len(data):
            return
        data[end : end + 4] = zlib.crc32(data[place + 4 : end]).to_bytes(4, "big")
        place = end + 4


# --- what has to be true of any file ---------------------------------------------------------------------------------


def look(path: Path) -> bool:
    """Check that a file is an image of the size that its header promises, or refused by name; return which."""
    promised = _attempt(read_size, path)
    for short in (None, 16):
        pixels = _attempt(lambda file, short=short: decode_array(file, short), path)
        if pixels is None:
            return False
        assert promised is not None, "decoded, though its header cannot be read"
        allowed = [tuple(-(-side // n) for side in promised) for n in ((1,) if short is None else (1, *DRAFTS))]
        assert pixels.dtype == np.uint8
        assert pixels.ndim == 3
        assert pixels.shape[2] == 3
        assert pixels.shape[:2] in allowed, f"{pixels.shape}, promised {promised}"
    import torch

    image = torch.from_numpy(pixels).permute(2, 0, 1)
    assert fit_image(image, (24, 32), native=promised).shape == (3, 24, 32)
    return True


def _attempt(read: Callable[[Path], Any], path: Path) -> Any:
    try:
        return read(path)
    except DataError as error:
        line = str(error)
        assert line.startswith(f"{shown(path)}: "), line
        assert line.count(shown(path)) == 1, line
        assert line.isprintable(), repr(line)
        assert len(line) < len(shown(path)) + 300, line
        return None
