"""File to pixels to the exact size of a batch: formats, orientation, broken files, and geometry."""

import io
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw

from sppcls.data.decode import read_size
from sppcls.data.geometry import fitted_size
from sppcls.data.images import decode, fit_image
from sppcls.errors import ConfigError, DataError

RED, GREEN, BLUE, YELLOW = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0)
PURPLE = (128, 0, 128)


def as_tensor(image: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)


def marked(h: int, w: int) -> Image.Image:
    """Grey, with a block of its own colour in each corner: red, green above; blue, yellow below."""
    image = Image.new("RGB", (w, h), (90, 90, 90))
    m = max(1, min(h, w) // 4)
    image.paste(RED, (0, 0, m, m))
    image.paste(GREEN, (w - m, 0, w, m))
    image.paste(BLUE, (0, h - m, m, h))
    image.paste(YELLOW, (w - m, h - m, w, h))
    return image


def corners(image: torch.Tensor, h: int, w: int) -> list[tuple[int, ...]]:
    places = [(0, 0), (0, w - 1), (h - 1, 0), (h - 1, w - 1)]
    return [tuple(image[:, y, x].tolist()) for y, x in places]


# --- decode: modes ---------------------------------------------------------------------------------------------------


def pixels(path: Path) -> list[tuple[int, ...]]:
    image = decode(path)
    assert image.dtype == torch.uint8
    assert image.shape[0] == 3
    assert image.stride()[0] == 1, "channels-last memory"
    assert tuple(image.shape[1:]) == read_size(path)
    return [tuple(p) for p in image.permute(1, 2, 0).reshape(-1, 3).tolist()]


@pytest.mark.parametrize(
    ("mode", "colours", "wanted", "suffix"),
    [
        ("RGB", [RED, BLUE], [RED, BLUE], "png"),
        ("L", [0, 200], [(0, 0, 0), (200, 200, 200)], "png"),
        ("1", [0, 255], [(0, 0, 0), (255, 255, 255)], "png"),
        ("LA", [(0, 255), (0, 0)], [(0, 0, 0), (255, 255, 255)], "png"),
        ("RGBA", [(255, 0, 0, 255), (255, 0, 0, 0)], [RED, (255, 255, 255)], "png"),
        ("RGBA", [(0, 0, 0, 128), (0, 0, 255, 255)], [(127, 127, 127), BLUE], "tiff"),
        ("I;16", [0, 65535], [(0, 0, 0), (255, 255, 255)], "png"),
        ("I;16", [257 * 10, 257 * 200], [(10, 10, 10), (200, 200, 200)], "tiff"),
        ("I", [0, 32896], [(0, 0, 0), (128, 128, 128)], "tiff"),
        ("I", [-1000, 1000], [(0, 0, 0), (255, 255, 255)], "tiff"),
        ("F", [0.0, 0.5], [(0, 0, 0), (128, 128, 128)], "tiff"),
        ("F", [5.0, 7.0], [(0, 0, 0), (255, 255, 255)], "tiff"),
        ("F", [float("nan"), 1.0], [(0, 0, 0), (255, 255, 255)], "tiff"),
        ("CMYK", [(0, 255, 255, 0), (0, 0, 0, 0)], [RED, (255, 255, 255)], "tiff"),
        ("RGB", [RED, GREEN], [RED, GREEN], "bmp"),
        ("RGB", [RED, GREEN], [RED, GREEN], "ppm"),
        ("L", [1, 2], [(1, 1, 1), (2, 2, 2)], "pgm"),
    ],
)
def test_every_mode_becomes_rgb(tmp_path: Path, mode: str, colours: list[Any], wanted: list[Any], suffix: str) -> None:
    image = Image.new(mode, (2, 1))
    for x, colour in enumerate(colours):
        image.putpixel((x, 0), colour)
    path = tmp_path / f"a.{suffix}"
    image.save(path)
    assert pixels(path) == wanted


def test_16_bit_pgm_is_scaled(tmp_path: Path) -> None:
    path = tmp_path / "a.pgm"
    path.write_bytes(b"P5 2 1 65535\n" + bytes([0, 0, 128, 128]))
    assert pixels(path) == [(0, 0, 0), (128, 128, 128)]


def test_palette_with_transparency_on_white(tmp_path: Path) -> None:
    image = Image.new("P", (3, 1))
    image.putpalette([*RED, *BLUE, *GREEN])
    image.putdata([0, 1, 2])
    image.save(tmp_path / "a.png", transparency=bytes([255, 0, 255]))
    assert pixels(tmp_path / "a.png") == [RED, (255, 255, 255), GREEN]
    image.save(tmp_path / "a.gif", transparency=2)
    assert pixels(tmp_path / "a.gif") == [RED, BLUE, (255, 255, 255)]
    image.save(tmp_path / "b.png")
    assert pixels(tmp_path / "b.png") == [RED, BLUE, GREEN]


def test_colour_key_transparency_on_white(tmp_path: Path) -> None:
    image = Image.new("RGB", (2, 1), RED)
    image.putpixel((1, 0), BLUE)
    image.save(tmp_path / "a.png", transparency=BLUE)
    assert pixels(tmp_path / "a.png") == [RED, (255, 255, 255)]


@pytest.mark.parametrize("suffix", ["gif", "png", "webp"])
def test_animation_gives_its_first_frame(tmp_path: Path, suffix: str) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in (RED, BLUE)]
    path = tmp_path / f"a.{suffix}"
    options: dict[str, Any] = {"lossless": True} if suffix == "webp" else {}
    frames[0].save(path, save_all=True, append_images=frames[1:], **options)
    assert set(pixels(path)) == {RED}


def test_cmyk_jpeg(tmp_path: Path) -> None:
    Image.new("CMYK", (16, 16), (0, 255, 255, 0)).save(tmp_path / "a.jpg", quality=100)
    assert np.abs(np.array(pixels(tmp_path / "a.jpg")) - RED).max() < 6


# --- decode: orientation ---------------------------------------------------------------------------------------------

TURNS = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: np.rot90(a, 2).swapaxes(0, 1),
    8: lambda a: np.rot90(a, 1),
}


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tiff"])
@pytest.mark.parametrize("orientation", TURNS)
def test_orientation_is_applied(tmp_path: Path, suffix: str, orientation: int) -> None:
    image = marked(40, 64)
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"a.{suffix}"
    options: dict[str, Any] = {"lossless": True} if suffix == "webp" else {"quality": 100, "subsampling": 0}
    image.save(path, exif=exif, **(options if suffix in ("webp", "jpg") else {}))
    wanted = TURNS[orientation](np.array(image))
    got = decode(path).permute(1, 2, 0).numpy()
    assert got.shape == wanted.shape
    assert read_size(path) == wanted.shape[:2]
    assert np.abs(got.astype(int) - wanted).mean() < 2


def test_damaged_exif_does_not_lose_the_image(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    marked(40, 64).save(path, exif=b"Exif\x00\x00II*\x00\xff\xff\xff\xff garbage")
    assert read_size(path) == (40, 64)
    assert decode(path).shape == (3, 40, 64)


# --- decode: reduced JPEG --------------------------------------------------------------------------------------------


def photograph(h: int, w: int) -> Image.Image:
    """Smooth noise at several scales, which has about the spectrum of a photograph."""
    rng = np.random.default_rng(0)
    layers = [
        np.array(
            Image.fromarray(rng.integers(0, 256, (max(2, h // n), max(2, w // n), 3), np.uint8)).resize((w, h)), float
        )
        for n in (64, 32, 16, 8)
    ]
    return Image.fromarray(np.mean(layers, 0).astype(np.uint8))


@pytest.mark.parametrize(
    ("min_short", "wanted"),
    [(None, (333, 501)), (200, (333, 501)), (134, (333, 501)), (133, (167, 251)), (66, (84, 126))],
)
def test_jpeg_is_reduced_only_with_a_margin(tmp_path: Path, min_short: int | None, wanted: tuple[int, int]) -> None:
    photograph(333, 501).save(tmp_path / "a.jpg", quality=90)
    assert tuple(decode(tmp_path / "a.jpg", min_short).shape[1:]) == wanted
    photograph(333, 501).save(tmp_path / "a.png")
    assert tuple(decode(tmp_path / "a.png", min_short).shape[1:]) == (333, 501)


@pytest.mark.parametrize("native", [(333, 501), (501, 333), (320, 480), (601, 180)])
def test_reduced_jpeg_comes_out_as_the_full_one(tmp_path: Path, native: tuple[int, int]) -> None:
    photograph(*native).save(tmp_path / "a.jpg", quality=90)
    size = (64, 64)
    full, reduced = decode(tmp_path / "a.jpg"), decode(tmp_path / "a.jpg", 64)
    assert reduced.numel() < full.numel() / 3
    for fit in ("keep", "warp"):
        wanted = fit_image(full, size, fit).float()
        got = fit_image(reduced, size, fit, native=native).float()
        assert (got - wanted).abs().mean() < 1.5
        # the same place: neither edge has moved
        assert (got - wanted).abs()[:, -1].mean() < 4
        assert (got - wanted).abs()[:, :, -1].mean() < 4


# --- decode: what must fail ------------------------------------------------------------------------------------------


def jpeg_bytes() -> bytes:
    file = io.BytesIO()
    photograph(64, 64).save(file, "jpeg")
    return file.getvalue()


def png_bytes() -> bytes:
    file = io.BytesIO()
    photograph(64, 64).save(file, "png")
    return file.getvalue()


@pytest.mark.parametrize(
    ("name", "content", "why"),
    [
        ("empty.jpg", b"", "an empty file"),
        ("text.png", b"hello, world", "not an image that Pillow can read"),
        ("page.jpg", b"<html><body>404</body></html>", "not an image that Pillow can read"),
        ("script.jpg", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n", "not an image that Pillow can read"),
        ("cut.jpg", jpeg_bytes()[:-300], "truncated"),
        ("cut.png", png_bytes()[:2000], "truncated"),
        ("head.png", png_bytes()[:20], "damaged image"),
    ],
)
def test_broken_file_is_one_line_that_names_it(tmp_path: Path, name: str, content: bytes, why: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(DataError) as caught:
        decode(path)
    message = str(caught.value)
    assert message.startswith(str(path))
    assert why in message
    assert "\n" not in message


def test_missing_file_is_named(tmp_path: Path) -> None:
    for call in (decode, read_size):
        with pytest.raises(DataError, match=r"gone\.jpg: No such file"):
            call(tmp_path / "gone.jpg")


def test_decompression_bomb_is_refused_and_a_large_image_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Image.new("RGB", (100, 30)).save(tmp_path / "a.png")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 2000)  # Pillow would warn
        assert decode(tmp_path / "a.png").shape == (3, 30, 100)
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)  # and now refuse
        with pytest.raises(DataError, match=r"a\.png: more than 2,000 pixels"):
            decode(tmp_path / "a.png")
        with pytest.raises(DataError, match=r"a\.png: more than 2,000 pixels"):
            read_size(tmp_path / "a.png")


def test_name_that_is_not_utf8(tmp_path: Path) -> None:
    path = Path(str(tmp_path) + "/caf\udce9.png")
    try:
        path.write_bytes(png_bytes())
    except (OSError, UnicodeError):
        pytest.skip("this file system takes UTF-8 names only")
    assert decode(path).shape == (3, 64, 64)
    path.write_bytes(b"")
    with pytest.raises(DataError) as caught:
        decode(path)
    assert "caf\ufffd.png" in str(caught.value)
    str(caught.value).encode()


# --- fitted_size -----------------------------------------------------------------------------------------------------

sides = st.integers(1, 5000)
targets = st.integers(1, 300)


@settings(deadline=None)
@given(sides, sides, targets, targets)
@example(1, 10000, 96, 96)
@example(60000, 1, 64, 96)
def test_fitted_size_touches_the_box_and_keeps_the_aspect(h: int, w: int, height: int, width: int) -> None:
    fh, fw = fitted_size(h, w, (height, width))
    assert 1 <= fh <= height
    assert 1 <= fw <= width
    assert fh == height or fw == width
    scale = min(height / h, width / w)
    assert abs(fh - h * scale) <= 0.5 + 1e-6 or fh == 1
    assert abs(fw - w * scale) <= 0.5 + 1e-6 or fw == 1


# --- fit_image -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fit", ["keep", "warp"])
@pytest.mark.parametrize("shape", [(40, 60), (60, 40), (300, 240), (97, 31), (500, 130), (64, 64)])
@pytest.mark.parametrize("size", [(64, 64), (64, 96), (96, 64), (224, 160)])
def test_every_corner_is_inside_and_at_its_place(fit: str, shape: tuple[int, int], size: tuple[int, int]) -> None:
    image = fit_image(as_tensor(marked(*shape)), size, fit, PURPLE)
    assert image.shape == (3, *size)
    h, w = fitted_size(*shape, size) if fit == "keep" else size
    assert corners(image, h, w) == [RED, GREEN, BLUE, YELLOW]
    assert h == size[0] or w == size[1]
    rest = torch.ones(size, dtype=torch.bool)
    rest[:h, :w] = False
    assert (image.permute(1, 2, 0)[rest] == torch.tensor(PURPLE)).all()


@settings(deadline=None, max_examples=60)
@given(st.integers(8, 200), st.integers(8, 200), st.integers(16, 120), st.integers(16, 120))
def test_keep_has_its_corners_at_any_size(h: int, w: int, height: int, width: int) -> None:
    image = fit_image(as_tensor(marked(h, w)), (height, width))
    fh, fw = fitted_size(h, w, (height, width))
    got = torch.tensor(corners(image, fh, fw))
    # where a block shrinks to under two pixels its neighbours bleed into it; the nearest colour is still its own
    marks = torch.tensor([RED, GREEN, BLUE, YELLOW, (90, 90, 90)])
    if min(fh, fw) >= 16:
        assert torch.cdist(got.float(), marks.float()).argmin(1).tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize(("shape", "size"), [((200, 300), (96, 160)), ((300, 200), (160, 96)), ((80, 80), (224, 240))])
def test_a_circle_stays_a_circle(shape: tuple[int, int], size: tuple[int, int]) -> None:
    image = Image.new("RGB", shape[::-1], "white")
    r, cy, cx = min(shape) * 0.4, shape[0] / 2, shape[1] / 2
    ImageDraw.Draw(image).ellipse((cx - r, cy - r, cx + r, cy + r), fill="black")
    dark = fit_image(as_tensor(image), size, pad=(255, 255, 255))[0] < 128
    height, width = int(dark.any(1).sum()), int(dark.any(0).sum())
    assert abs(height - width) <= 1
    assert dark.sum() == pytest.approx(np.pi * height * width / 4, rel=0.03)


@pytest.mark.parametrize("fit", ["keep", "warp", "crop"])
@pytest.mark.parametrize("shape", [(1, 10000), (60000, 1), (1, 1), (2, 3)])
def test_extreme_shapes(fit: str, shape: tuple[int, int]) -> None:
    image = torch.full((3, *shape), 7, dtype=torch.uint8)
    fitted = fit_image(image, (64, 48), fit, PURPLE, native=shape)
    assert fitted.shape == (3, 64, 48)
    assert fitted[:, 0, 0].tolist() == [7, 7, 7], "at least one pixel is left"


@pytest.mark.parametrize("fit", ["keep", "crop", "warp"])
@pytest.mark.parametrize("shape", [(10, 12), (9, 1), (1, 9), (5, 5)])
def test_a_single_pixel_from_either_memory(fit: Any, shape: tuple[int, int]) -> None:
    image = torch.arange(3, dtype=torch.uint8)[:, None, None].expand(3, *shape) * 100
    for memory in (image.contiguous(), image.contiguous().permute(1, 2, 0).contiguous().permute(2, 0, 1)):
        assert fit_image(memory, (1, 1), fit).flatten().tolist() == [0, 100, 200]


def test_nothing_is_done_at_the_right_size() -> None:
    image = torch.randint(0, 256, (3, 20, 30), dtype=torch.uint8)
    for fit in ("keep", "warp", "crop"):
        assert torch.equal(fit_image(image, (20, 30), fit), image)


@pytest.mark.parametrize("offset", [(0.0, 0.0), (0.5, 0.5), (1.0, 1.0)])
@pytest.mark.parametrize("shape", [(50, 80), (80, 50)])
def test_crop_cuts_where_it_is_told(offset: tuple[float, float], shape: tuple[int, int]) -> None:
    h, w = shape
    image = torch.randint(0, 256, (3, h, w), dtype=torch.uint8)
    top, left = round((h - 50) * offset[0]), round((w - 50) * offset[1])
    assert torch.equal(fit_image(image, (50, 50), "crop", offset=offset), image[:, top : top + 50, left : left + 50])


@pytest.mark.parametrize("fit", ["keep", "warp", "crop"])
@pytest.mark.parametrize("channels_last", [True, False])
def test_writes_into_a_batch(fit: str, channels_last: bool) -> None:
    image = as_tensor(photograph(75, 130))
    batch = torch.full((2, 3, 64, 96), 9, dtype=torch.uint8)
    if channels_last:
        batch = batch.contiguous(memory_format=torch.channels_last)
    given_back = fit_image(image, (64, 96), fit, PURPLE, out=batch[1])
    assert torch.equal(batch[1], fit_image(image.contiguous(), (64, 96), fit, PURPLE))
    assert given_back.data_ptr() == batch[1].data_ptr()
    assert (batch[0] == 9).all()


@pytest.mark.parametrize(("shape", "size"), [((120, 90), (48, 36)), ((30, 40), (64, 85)), ((301, 77), (100, 60))])
def test_resizing_agrees_with_pillow(shape: tuple[int, int], size: tuple[int, int]) -> None:
    image = photograph(*shape)
    wanted = np.array(image.resize(size[::-1], Image.Resampling.BILINEAR), int)
    got = fit_image(as_tensor(image), size, "warp").permute(1, 2, 0).numpy()
    assert np.abs(got - wanted).max() <= 1


def test_unknown_fit() -> None:
    with pytest.raises(ConfigError, match=r"fit: got 'keeep'; did you mean 'keep'\?"):
        fit_image(torch.zeros(3, 4, 4, dtype=torch.uint8), (4, 4), "keeep")
