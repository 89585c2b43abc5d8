"""Labels for images, from any model file; ONNX files do not need torch."""

import glob
import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from io import TextIOWrapper
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from PIL import Image

from sppcls.data.decode import decode_array, image_array, read_size
from sppcls.data.folders import image_files
from sppcls.data.geometry import PIXELS, Pixels, Size, images_at
from sppcls.data.plan import plan_evaluation
from sppcls.data.steps import Batch
from sppcls.deploy.runtime import Floats, Images, Runtime, of_network
from sppcls.errors import ConfigError, DataError
from sppcls.signature import Signature, refuse_small

if TYPE_CHECKING:
    from sppcls.models.classifier import SppClassifier

Readable = Path | Pixels  # a file, or the pixels [H, W, 3] of an image
One = TypeVar("One", bound=Readable)
_CHUNK = 512  # images sorted into batches of one shape at a time; results keep the given order


def expand(arguments: Iterable[str]) -> list[Path]:
    """Return the files that arguments name: files, folders (at any depth), globs, and ``-``, a list on standard input.

    A missing file is kept, to be reported like any other unreadable one.
    """
    found: list[Path] = []
    for argument in arguments:
        if not argument:
            raise ConfigError("got '' as an image; use . for the current folder")
        if argument == "-":
            if isinstance(sys.stdin, TextIOWrapper):
                sys.stdin.reconfigure(errors="surrogateescape")  # names can be any bytes
            found += [Path(line.rstrip("\n")) for line in sys.stdin if line.strip()]
        elif Path(argument).is_dir():
            found += image_files(Path(argument))
        elif argument.endswith((".csv", ".txt", ".parquet")) and Path(argument).is_file():
            raise ConfigError(f"{argument} is a list, not an image; use - and pass the paths on stdin, one per line")
        elif not Path(argument).exists() and any(sign in argument for sign in "*?["):
            found += [Path(name) for name in sorted(glob.glob(argument, recursive=True))]  # noqa: PTH207 - absolute patterns too
        else:
            found.append(Path(argument))
    return found


def checked_scales(signature: Signature, asked: Sequence[int] | None) -> tuple[int, ...]:
    """Return the scales to use: the given ones, or the model's own; raises ``ConfigError`` at one it cannot take."""
    if not asked and signature.pixels > PIXELS:
        own = signature.input_size[0] if signature.input_size else max(signature.scale, signature.smallest_scale)
        raise ConfigError(
            f"the model's own scale is {own}: one image at it has {signature.pixels / 1e6:.0f} megapixels, more than "
            f"{PIXELS / 1e6:.1f}; choose a smaller one with --scale (--scales for regions), or pass {own} explicitly"
        )
    scales = tuple(dict.fromkeys(asked or (signature.scale,)))
    if signature.input_size:
        if asked and scales != signature.input_size[:1]:
            size = "{}x{}".format(*signature.input_size)
            raise ConfigError(f"--scale {scales[0]}: a model with pool=fixed takes only {size}; leave --scale out")
        return signature.input_size[:1]
    refuse_small("--scale", scales, signature.smallest_scale, "this model")
    return scales


def predict(
    model: Runtime, images: Iterable[One], scales: Sequence[int], batch_size: int = 32
) -> Iterator[tuple[One, Floats | DataError]]:
    """Yield each image with its probabilities [K], the mean over ``scales``, or with the reason for none; in order.

    Files are read in chunks of 512, sorted into batches of one shape, so that any number of them takes little memory.
    """
    left = iter(images)
    while chunk := list(islice(left, _CHUNK)):
        yield from zip(chunk, _of_chunk(model, chunk, scales, batch_size), strict=True)


def _of_chunk(
    model: Runtime, images: Sequence[Readable], scales: Sequence[int], batch_size: int
) -> list[Floats | DataError]:
    sizes, answers = dict[int, Size](), dict[int, Floats | DataError]()
    for place, image in enumerate(images):
        try:
            sizes[place] = read_size(image) if isinstance(image, Path) else (image.shape[0], image.shape[1])
        except DataError as error:
            answers[place] = error
    places = list(sizes)
    plans = [plan_of(model.signature, list(sizes.values()), scale, batch_size, max(scales)) for scale in scales]
    for batches in zip(*plans, strict=True):  # an aspect's images are the same at every scale
        members = [places[index] for index in batches[0].indices]
        views = [_pixels(model, images, sizes, members, batch.size, answers) for batch in batches]
        said = np.mean([model.probabilities(view) for view in views], axis=0)
        for place, row in zip(members, said, strict=True):
            answers.setdefault(place, row)
    return [answers[place] for place in range(len(images))]


def plan_of(
    signature: Signature, sizes: Sequence[Size], scale: int, batch_size: int, largest: int | None = None
) -> list[Batch]:
    """Return batches of one shape for images of ``sizes`` at a scale; see `plan_evaluation`."""
    if not sizes:
        return []
    if signature.input_size:
        batch_size = images_at(signature.input_size, batch_size)
    how = {"fit": signature.fit, "max_aspect": signature.max_aspect, "multiple": signature.multiple}
    batches = plan_evaluation(np.array(sizes, np.int64), scale, batch_size=batch_size, largest=largest, **how)  # type: ignore[arg-type]
    return [replace(batch, size=signature.input_size or batch.size) for batch in batches]


def _pixels(
    model: Runtime,
    images: Sequence[Readable],
    sizes: Mapping[int, Size],
    members: Sequence[int],
    size: Size,
    answers: dict[int, Floats | DataError],
) -> Images:
    """Return images [N, 3, H, W]; an unreadable one leaves its place empty, and the reason in ``answers``."""
    batch = np.zeros((len(members), 3, *size), np.uint8)
    for row, place in zip(batch, members, strict=True):
        try:
            row[:] = fitted(model, images[place], size, sizes[place]).transpose(2, 0, 1)
        except DataError as error:
            answers[place] = error
    return batch


def fitted(model: Runtime, image: Readable, size: Size, native: Size) -> Images:
    """Return one image [H, W, 3] as it is in a batch of ``size``."""
    pixels = decode_array(image, min(size)) if isinstance(image, Path) else image
    how = model.signature
    return model.fit(pixels, size, how.fit, how.pad, native=native, multiple=how.multiple)


def answer(image: Readable, said: Floats, classes: Sequence[str], count: int) -> dict[str, Any]:
    """Return the ``predict --json`` object of an image; the path of an array is None."""
    named = os.fsencode(image).decode("utf-8", "replace") if isinstance(image, Path) else None
    found = top(said, classes, count)
    return {"path": named, "label": found[0]["label"], "top": found}


def top(probabilities: Floats, classes: Sequence[str], count: int) -> list[dict[str, object]]:
    """Return the most likely classes, as ``predict --json`` has them."""
    order = np.argsort(-probabilities, kind="stable")[:count]
    return [{"label": classes[place], "probability": float(probabilities[place])} for place in order]


def labels(network: "SppClassifier", images: object, scale: int | None, count: int) -> Any:
    """Return what `SppClassifier.predict` does."""
    several: Sequence[object] | None = images if isinstance(images, list | tuple) else None
    wanted = [one for image in ([images] if several is None else several) for one in _readable(image)]
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
    one = several is None and (not isinstance(images, str | os.PathLike) or wanted == [Path(images)])
    return rows[0] if one else rows


def _readable(image: object) -> list[Readable]:
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
