"""Which images of each class are for training and which for validation."""

import hashlib
from pathlib import Path

import numpy as np

from sppcls.data.source import Source, Subset
from sppcls.errors import DataError, counted

VAL_FRACTION = 0.2


def split_by_class(
    source: Source, seed: int, n_train: int | None, n_val: int | None, val_fraction: float | None = None
) -> tuple[Source, Source]:
    """Split each class in two, by counts or by the share for validation (0.2); see `load_splits`.

    Raises ``DataError`` naming the smallest class where nothing of it would be left for one of the two.
    """
    orders = _orders(source, seed)
    n, name = min((len(order), name) for order, name in zip(orders, source.classes, strict=True))
    if min(_shares(n, n_train, n_val, val_fraction)) < 1:
        key, other = ("val_per_class", "training") if n_train is None else ("train_per_class", "validation")
        why = f"data.{key}={n_train or n_val} leaves none for {other}; it can be at most {n - 1}"
        raise DataError(f"class {name!r} has {counted(n, 'image')}: {why if n > 1 else 'a split needs 2'}")
    train, val = [], []
    for order in orders:
        first, last = _shares(len(order), n_train, n_val, val_fraction)
        train += order[:first]
        val += order[len(order) - last :]  # from the end: another train_per_class leaves the validation set as it is
    return Subset(source, sorted(train)), Subset(source, sorted(val))


def _shares(n: int, train: int | None, val: int | None, fraction: float | None) -> tuple[int, int]:
    if val is None and (train is None or fraction is not None):
        val = max(1, min(n - 1, round(n * (fraction or VAL_FRACTION))))
    if train is None:
        val = val or 0
        return n - val, val
    return train, n - train if val is None else min(val, n - train)


def pick_per_class(source: Source, seed: int, count: int | None, strict: bool = False) -> Source:
    """Return ``count`` images of each class, or all; ``strict`` raises ``DataError`` where a class has fewer."""
    if count is None:
        return source
    orders = _orders(source, seed)
    n, name = min((len(order), name) for order, name in zip(orders, source.classes, strict=True))
    if strict and n < count:
        raise DataError(
            f"class {name!r} has {counted(n, 'training image')}: data.train_per_class={count} can be at most {n}"
        )
    return Subset(source, sorted(i for order in orders for i in order[:count]))


def _orders(source: Source, seed: int) -> list[list[int]]:
    """Return each class's indices, ordered by a hash of the seed and the end of an image's name.

    So where the folder lies, other classes, and files that come or go leave the order of the rest as it is.
    """

    def rank(index: int) -> bytes:
        name = "/".join(Path(source.names[index]).parts[-2:])
        return hashlib.sha256(f"{seed}/{name}".encode(errors="surrogateescape")).digest()

    targets = range(len(source.classes))
    return [sorted(np.flatnonzero(source.targets == target).tolist(), key=rank) for target in targets]
