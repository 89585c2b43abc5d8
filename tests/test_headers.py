"""Headers without an end are refused at little cost, and real ones with much in them are read."""

import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageFile

from sppcls.data.decode import decode_array, read_size
from sppcls.data.files import scan
from sppcls.errors import DataError

SIZE = (40, 56)


def chunk(name, content=b""):
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


PNG = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", 8, 8, 8, 2, 0, 0, 0))
GIF = b"GIF89a" + struct.pack("<HHBBB", 8, 8, 0, 0, 0)
# Each is of the kind that took seconds and hundreds of megabytes: 60 MB of markers took 20 s and 2 GB.
ENDLESS = {
    "markers.jpg": b"\xff\xd8" + b"\xff\xe5\0\2" * 100_000,
    "profile.jpg": b"\xff\xd8" + (b"\xff\xe2\0\x10ICC_PROFILE\0\1\2") * 100_000,
    "chunks.png": PNG + chunk(b"abCd") * 100_000,
    "comments.gif": GIF + b"!\xfe\1a\0" * 80_000,
    "comment.gif": GIF + b"!\xfe" + b"\1a" * 300_000 + b"\0",
    "comment.ppm": b"P6\n#" + b"a" * 800_000 + b"\n8 8\n255\n" + bytes(192),
}


@pytest.mark.parametrize("name", ENDLESS)
def test_a_header_without_an_end_is_refused(tmp_path, name):
    path = tmp_path / name
    path.write_bytes(ENDLESS[name])
    for opened in (read_size, decode_array):
        with pytest.raises(DataError, match=r"the header has more than 100,000 parts .*; repair or remove the file"):
            opened(path)
    assert scan([path], "skip")[2]


def test_a_header_has_seconds_of_its_threads_own_time(tmp_path, monkeypatch):
    """Segments of EXIF are joined one by one: 60 MB of them took 15 s."""
    monkeypatch.setattr("sppcls.data.decode._SECONDS", 0.0)
    path = tmp_path / "a.jpg"
    path.write_bytes(b"\xff\xd8" + (b"\xff\xe1\xff\xff" + b"Exif\0\0" + bytes(65527)) * 30)
    for opened in (read_size, decode_array):
        with pytest.raises(DataError, match="reading the header takes more than 0 s"):
            opened(path)


def test_bytes_that_are_read_again_and_again_are_counted():
    from sppcls.data.decode import bounded

    read = bounded(lambda count: bytes(count or 0), 1 << 20)
    for _ in range(18):  # the file twice, and 16 MB
        read(1 << 20)
    with pytest.raises(OSError, match="twice the file's length"):
        read(1)


@pytest.fixture
def picture():
    rng = np.random.default_rng(0)
    return Image.fromarray(rng.integers(0, 256, (*SIZE, 3), np.uint8))


def noise(count):
    return np.random.default_rng(1).bytes(count)


def exif():
    made = Image.Exif()
    made[0x927C], made[0x010F] = noise(60_000), "maker"
    return made


def rich_png(picture, path):
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    for number in range(400):
        info.add_text(f"key {number}", "x" * 500)
    info.add(b"prVt", noise(5_000_000))
    frames = [picture.rotate(angle) for angle in (0, 90)]
    picture.save(path, pnginfo=info, exif=exif(), icc_profile=noise(900_000), save_all=True, append_images=frames)


def late_tiff(picture, path):
    """A TIFF whose directory is at its end, behind an editor's 6 MB."""
    from PIL.TiffImagePlugin import ImageFileDirectory_v2

    tags = ImageFileDirectory_v2()
    tags[37724], tags.tagtype[37724] = noise(6_000_000), 7
    picture.save(path, tiffinfo=tags, icc_profile=noise(700_000))


REAL = {
    "a.jpg": lambda p, path: p.save(path, exif=exif(), icc_profile=noise(3_000_000), comment=noise(60_000)),
    "b.jpg": lambda p, path: p.save(path, progressive=True, xmp=noise(60_000)),
    "a.mpo": lambda p, path: p.save(path, "MPO", save_all=True, append_images=[p] * 20, exif=exif()),
    "a.png": rich_png,
    "a.gif": lambda p, path: p.save(path, save_all=True, append_images=[p.rotate(9)] * 50, comment=noise(500_000)),
    "a.webp": lambda p, path: p.save(path, save_all=True, append_images=[p] * 30, exif=exif(), xmp=noise(2_000_000)),
    "a.tif": late_tiff,
}


@pytest.mark.parametrize("name", REAL)
def test_real_files_with_much_beside_their_pixels_are_read(tmp_path, picture, name):
    path = tmp_path / name
    REAL[name](picture, path)
    path.write_bytes(path.read_bytes() + bytes(2**19))  # and so long that they are looked at closely
    assert read_size(path) == SIZE
    assert decode_array(path).shape == (*SIZE, 3)


def test_what_follows_the_header_is_pixels(tmp_path, monkeypatch):
    """The bounds of a header are not those of the pixels, which have many more parts in some formats."""
    monkeypatch.setattr("sppcls.data.decode._PARTS", 60)
    monkeypatch.setattr(ImageFile, "MAXBLOCK", 1024)
    path = tmp_path / "a.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (400, 400, 3), np.uint8)).save(path)
    assert path.stat().st_size > 2**18
    assert decode_array(path).shape == (400, 400, 3)
