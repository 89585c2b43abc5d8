"""Splits the images of each class into parts, by a hash of the seed and their names."""

import hashlib
from pathlib import Path

import numpy as np

from sppcls.data.source import Source, Subset
from sppcls.errors import DataError, counted

VAL_FRACTION = 0.2
_TEST_SEED = -1  # of no split: so that studies over splits have one test part


def hold_out(source: Source, count: int | None) -> tuple[Source, Source | None]:
    """Return a source without ``count`` images of each class, and these, which are the same whatever the split's seed.

    Raises ``DataError`` naming the smallest class if fewer than two of it would be left.
    """
    if count is None:
        return source, None
    n, name = smallest_class(source)
    if n < count + 2:
        most = f"data.test_per_class={count} can be at most {n - 2}, so that 2 are left"
        raise DataError(f"class {name!r} has {counted(n, 'image')}: {most}")
    return split_by_class(source, _TEST_SEED, None, count)


def split_by_class(
    source: Source, seed: int, n_train: int | None, n_val: int | None, val_fraction: float | None = None
) -> tuple[Source, Source]:
    """Split each class in two, by counts or by the share for validation (0.2).

    Raises ``DataError`` naming the smallest class if one of the two parts would get none of it.
    """
    n, name = smallest_class(source)
    if min(_shares(n, n_train, n_val, val_fraction)) < 1:
        key, other = ("val_per_class", "training") if n_train is None else ("train_per_class", "validation")
        why = f"data.{key}={n_train or n_val} leaves none for {other}; allowed: at most {n - 1}"
        why = why if n > 1 else "at least 2 are needed to split"
        raise DataError(f"class {name!r} has {counted(n, 'image')}: {why}")
    train, val = [], []
    for order in _orders(source, seed):
        first, last = _shares(len(order), n_train, n_val, val_fraction)
        train += order[:first]
        val += order[len(order) - last :]  # from the end: changing train_per_class keeps the validation set
    return Subset(source, sorted(train)), Subset(source, sorted(val))


def _shares(n: int, train: int | None, val: int | None, fraction: float | None) -> tuple[int, int]:
    if val is None and (train is None or fraction is not None):
        val = max(1, min(n - 1, round(n * (fraction or VAL_FRACTION))))
    if train is None:
        val = val or 0
        return n - val, val
    return train, n - train if val is None else min(val, n - train)


def pick_per_class(source: Source, seed: int, count: int | None) -> Source:
    """Return ``count`` images of each class, as many as there are, or all."""
    return source if count is None else Subset(source, sorted(i for o in _orders(source, seed) for i in o[:count]))


def smallest_class(source: Source) -> tuple[int, str]:
    """Return the images and the name of the class with the fewest."""
    counts = np.bincount(source.targets, minlength=len(source.classes)).tolist()
    return min(zip(counts, source.classes, strict=True))


def _orders(source: Source, seed: int) -> list[list[int]]:
    """Return each class's indices, ordered by a hash of the seed and the end of an image's name.

    So the folder's location, other classes, and added or removed files do not change the order of the rest.
    """

    def rank(index: int) -> bytes:
        name = "/".join(Path(source.names[index]).parts[-2:])
        return hashlib.sha256(f"{seed}/{name}".encode(errors="surrogateescape")).digest()

    targets = range(len(source.classes))
    return [sorted(np.flatnonzero(source.targets == target).tolist(), key=rank) for target in targets]
