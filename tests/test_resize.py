"""The resize of programs without torch gives what torch's gives, bit for bit."""

import numpy as np
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image

from sppcls.data.decode import decode_array, read_size
from sppcls.data.geometry import fit_array
from sppcls.data.images import fit_image

SIDE = st.integers(1, 90)


def both(image, size, fit, native=None):
    ours = fit_array(image, size, fit, (7, 99, 250), native=native)
    theirs = fit_image(torch.from_numpy(image).permute(2, 0, 1), size, fit, (7, 99, 250), native=native)
    return ours, theirs.permute(1, 2, 0).numpy()


@given(SIDE, SIDE, SIDE, SIDE, st.sampled_from(("keep", "crop", "warp")), st.integers(0, 99))
def test_any_size_from_any_size(h, w, height, width, fit, seed):
    image = np.random.default_rng(seed).integers(0, 256, (h, w, 3), dtype=np.uint8)
    ours, theirs = both(image, (height, width), fit)
    assert ours.dtype == np.uint8
    assert np.array_equal(ours, theirs)


@given(st.sampled_from((2, 4, 8)), st.integers(8, 300), st.integers(8, 300), st.integers(4, 40))
@example(2, 55, 56, 28)  # the length of one side stays, its scale does not
def test_an_image_that_was_decoded_at_a_part_of_its_size(n, h, w, short):
    image = np.random.default_rng(h * w).integers(0, 256, (-(-h // n), -(-w // n), 3), dtype=np.uint8)
    size = (short, round(short * w / h)) if h <= w else (round(short * h / w), short)
    ours, theirs = both(image, (max(size[0], 1), max(size[1], 1)), "keep", (h, w))
    assert np.array_equal(ours, theirs)


def test_a_photograph_from_its_file_at_an_eighth(tmp_path):
    path = tmp_path / "a.jpg"
    noise = np.random.default_rng(0).integers(0, 256, (60, 90, 3), dtype=np.uint8)
    Image.fromarray(noise).resize((1201, 801)).save(path)
    image = decode_array(path, 64)
    assert image.shape == (101, 151, 3)
    ours, theirs = both(image, (64, 96), "keep", read_size(path))
    assert np.array_equal(ours, theirs)


def test_an_image_of_the_right_size_is_left_alone():
    image = np.arange(5 * 7 * 3, dtype=np.uint8).reshape(5, 7, 3)
    assert np.array_equal(fit_array(image, (5, 7)), image)
