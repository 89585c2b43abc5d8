"""Features of a frozen network, of every image of a source, in a file for each fit, scale and level of a pyramid."""

import hashlib
import os
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from sppcls.data.images import IGNORED
from sppcls.data.source import Source
from sppcls.errors import ConfigError, DataError, counted, did_you_mean
from sppcls.measure.scales import Evaluation, evaluating
from sppcls.models.classifier import SppClassifier
from sppcls.ops.pyramid import spatial_pyramid_pool2d
from sppcls.terminal import track

Ints = npt.NDArray[np.int64]
Half = npt.NDArray[np.float16]
Gram = tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]

GAP = 0  # the level that is the average over the whole map


def level_features(
    network: SppClassifier, evaluation: Evaluation, layer: str, scale: int, levels: Sequence[int], stem: Path
) -> dict[int, Half]:
    """Return [N, C * n * n] for each level n, from ``<stem>-<fit>-<scale>-<n>.npy``, which is made where need be.

    An image's values are fractions of the largest one in its map: normalised features do not change by that, half
    precision is never left, and no level depends on the others. An image that cannot be read is a row of NaN.

    Args:
        layer: ``spp``, the trunk's last map, or the name of a module in the trunk whose map is pooled instead.
        levels: Grid sizes, max-pooled; ``GAP`` is the average of the map.
        stem: Where the files are; `fingerprint` is its name.

    Raises:
        ConfigError: No such layer, or one that gives no map.
        DataError: No image could be read.
    """
    count = len(evaluation.source.targets)
    files = {n: stem.with_name(f"{stem.name}-{evaluation.fit}-{scale}-{n}.npy") for n in levels}
    missing = {n: file for n, file in files.items() if _load(file, count) is None}
    if missing:
        _make(missing, count, _pooled(network, evaluation, layer, scale, list(missing)))
    return {n: found for n, file in files.items() if (found := _load(file, count)) is not None}


def fingerprint(network: SppClassifier, source: Source, *names: str) -> str:
    """Return a digest of the trunk's tensors, of the images' paths, lengths and times of change, and of ``names``."""
    digest = hashlib.sha256(repr(names).encode())
    for tensor in network.trunk.state_dict().values():
        digest.update(tensor.cpu().numpy().tobytes())
    for name in source.names:
        status = Path(name).stat()
        digest.update(f"{name}\0{status.st_size}\0{status.st_mtime_ns}\0".encode(errors="surrogateescape"))
    return digest.hexdigest()[:20]


def inner_products(features: Half, rows: Ints, columns: int) -> Gram:
    """Return the inner products of some images with the first ``columns`` of them, [R, columns], and squares [R]."""
    products, squares = np.zeros((len(rows), columns), np.float32), np.zeros(len(rows), np.float32)
    for start in range(0, features.shape[1], step := 4096):  # 110 MB at a time for 6,900 images
        part = features[rows, start : start + step].astype(np.float32)
        products += part @ part[:columns].T
        squares += np.einsum("nd,nd->n", part, part)
    return products, squares


def _load(file: Path, count: int) -> Half | None:
    try:
        found: Half = np.load(file, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError):  # not there, or damaged
        return None
    return found if found.dtype == np.float16 and found.ndim == 2 and len(found) == count else None


def _make(files: dict[int, Path], count: int, features: Iterator[tuple[Ints, list[Tensor]]]) -> None:
    """Write the files of some levels, all of them or none."""
    beside = {n: file.with_name(f".{file.name}.{os.getpid()}") for n, file in files.items()}
    made, read = dict[int, Any](), np.zeros(count, np.bool_)
    try:
        for indices, parts in features:
            for n, part in zip(files, parts, strict=True):
                if n not in made:
                    made[n] = np.lib.format.open_memmap(beside[n], "w+", np.float16, (count, part.shape[1]))
                made[n][indices] = part.cpu().numpy()
            read[indices] = True
        if not made:
            raise DataError(f"none of {counted(count, 'image')} could be read")
        for n, array in made.items():
            array[~read] = np.nan
            array.flush()
            beside[n].replace(files[n])
    finally:
        for path in beside.values():
            path.unlink(missing_ok=True)


def _pooled(
    network: SppClassifier, evaluation: Evaluation, layer: str, scale: int, levels: Sequence[int]
) -> Iterator[tuple[Ints, list[Tensor]]]:
    """Yield the places of images and their features, a tensor a level."""
    total, batches = evaluation.batches(network, scale)
    with closing(batches), evaluating(network, evaluation.device), _tapped(network.trunk, layer, levels) as parts:
        for batch in track(batches, f"{evaluation.fit} {scale}", total):
            kept = batch["targets"] != IGNORED
            if bool(kept.any()):
                with torch.inference_mode():
                    network.trunk(network.normalize(batch["images"][kept].to(evaluation.device)))
                yield batch["indices"][kept].numpy(), parts


@contextmanager
def _tapped(trunk: nn.Module, layer: str, levels: Sequence[int]) -> Iterator[list[Tensor]]:
    """Give a list that holds, after each forward pass, the pooled map of one layer."""
    modules, parts = {**dict(trunk.named_modules()), "spp": trunk}, list[Tensor]()
    if layer not in modules:
        raise ConfigError(f"--layer {layer}: no such module{did_you_mean(layer, modules)}")

    def pool(_module: nn.Module, _inputs: object, maps: object) -> None:
        if not isinstance(maps, Tensor) or maps.ndim != 4:
            raise ConfigError(f"--layer {layer} gives no map [N, C, h, w]; name another module of the trunk, or spp")
        maps = maps / maps.abs().amax((1, 2, 3), keepdim=True).clamp_min(torch.finfo(maps.dtype).tiny)
        # At once: the next layer may write into the map.
        parts[:] = [maps.mean((2, 3)) if n == GAP else spatial_pyramid_pool2d(maps, (n,)) for n in levels]

    handle = modules[layer].register_forward_hook(pool)
    try:
        yield parts
    finally:
        handle.remove()
