"""Which classes are taken for which: a matrix, of groups of classes where there are many."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from sppcls.measure.answers import Answers, confusion_counts

MOST = 20


def confusion(answers: Sequence[Answers], classes: Sequence[str], scale: int) -> dict[str, Any] | None:
    """Return names, counts and rows (shares of a true class's images), the most confused pairs, and classes.

    All answers count together; ``classes`` has name, images, right answers and recall, the lowest recall first.

    Above 20 classes, those that are taken for one another are one group: average linkage on the confusion.
    """
    counts = np.zeros((len(classes), len(classes)))
    for one in answers:
        if scale in one.scales:
            counts += confusion_counts(one, scale, len(classes))
    if not counts.any():
        return None
    groups = _groups(counts) if len(classes) > MOST else np.arange(len(classes))
    names = [_name(np.flatnonzero(groups == g), classes, counts) for g in range(groups.max() + 1)]
    member = np.eye(groups.max() + 1)[groups]
    grouped = member.T @ counts @ member
    note = f"{groups.max() + 1} groups of {len(classes)} classes" if len(classes) > MOST else ""
    return {
        "names": names,
        "counts": grouped.sum(axis=1).astype(int).tolist(),
        "rows": _shares(grouped).tolist(),
        "pairs": _pairs(counts, classes),
        "classes": _recalls(counts, classes),
        "scale": scale,
        "groups": note,
    }


def _recalls(counts: npt.NDArray[np.float64], classes: Sequence[str]) -> list[list[str]]:
    shares, images = _shares(counts).diagonal(), counts.sum(axis=1)
    order = [index for index in np.argsort(shares, kind="stable") if images[index]]
    return [[classes[i], f"{images[i]:,.0f}", f"{counts[i, i]:,.0f}", f"{shares[i]:.1%}"] for i in order]


def _shares(counts: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    shares: npt.NDArray[np.float64] = counts / counts.sum(axis=1, keepdims=True).clip(min=1)
    return shares


def _pairs(counts: npt.NDArray[np.float64], classes: Sequence[str], most: int = 10) -> list[list[str]]:
    shares = _shares(counts)
    np.fill_diagonal(shares, 0)
    order = np.argsort(-shares, axis=None, kind="stable")[:most]
    places = [np.unravel_index(at, shares.shape) for at in order if shares.flat[at] > 0]
    images = counts.sum(axis=1)
    said = (f"{counts[place]:.0f} of {images[place[0]]:.0f}" for place in places)
    return [[classes[p[0]], classes[p[1]], n, f"{shares[p]:.1%}"] for p, n in zip(places, said, strict=True)]


def _groups(counts: npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
    from scipy.cluster.hierarchy import fcluster, linkage  # type: ignore[import-untyped]
    from scipy.spatial.distance import squareform  # type: ignore[import-untyped]

    shares = _shares(counts)
    apart = 1 - (shares + shares.T) / 2
    np.fill_diagonal(apart, 0)
    links = linkage(squareform(apart, checks=False), "average")
    links[:, 2] = range(len(links))  # classes that are never confused are all 1 apart: cut between merges, not heights
    found: npt.NDArray[np.int64] = fcluster(links, MOST, "maxclust") - 1
    return found


def _name(members: npt.NDArray[np.int64], classes: Sequence[str], counts: npt.NDArray[np.float64]) -> str:
    largest = members[np.argsort(-counts[members].sum(axis=1), kind="stable")]
    more = f" +{len(members) - 2}" if len(members) > 2 else ""
    return ", ".join(classes[index] for index in largest[:2]) + more
