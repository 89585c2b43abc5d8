"""`SppClassifier.predict`: labels from Python, for anything that can be an image."""

import os
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from sppcls.data.decode import image_array
from sppcls.deploy.predict import Readable, answer, checked_scales, expand, predict
from sppcls.deploy.runtime import of_network
from sppcls.errors import DataError
from sppcls.models.classifier import SppClassifier


def labels(network: SppClassifier, images: Any, scale: int | None, count: int) -> Any:
    """Return what `SppClassifier.predict` does."""
    several = isinstance(images, list | tuple)
    wanted = [one for image in (images if several else [images]) for one in _readable(image)]
    signature = network.signature
    scales, training = checked_scales(signature, None if scale is None else (scale,)), network.training
    rows = []
    try:
        for image, said in predict(of_network(network.eval()), wanted, scales):
            if isinstance(said, DataError):
                raise said
            rows.append(answer(image, said, signature.classes, count))
    finally:
        network.train(training)
    one = not several and (not isinstance(images, str | os.PathLike) or wanted == [Path(images)])
    return rows[0] if one else rows


def _readable(image: Any) -> list[Readable]:
    if isinstance(image, str | os.PathLike):
        found = expand([os.fspath(image)])
        if not found:
            raise DataError(f"no images in {image}; name image files or folders of images")
        return [*found]
    if isinstance(image, Image.Image):
        try:
            return [image_array(image)]
        except Exception as error:  # the image is decoded now, and damage can raise any error
            raise DataError(f"{image!r} cannot be read: {error}") from error
    shape: Any = getattr(image, "shape", ())
    if isinstance(image, np.ndarray) and image.dtype == np.uint8 and len(shape) == 3 and shape[2] == 3 and image.size:
        return [image.copy()]  # torch takes only writable arrays
    what = f"{getattr(image, 'dtype', '')} {type(image).__name__} {list(shape)}".strip()
    raise TypeError(
        f"got {what}; expected a file, a folder, a Pillow image, an array [H, W, 3] uint8, or a list of these"
    )
