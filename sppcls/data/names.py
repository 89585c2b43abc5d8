"""Many file names in little memory."""

from array import array
from collections.abc import Iterable, Sequence
from typing import overload

import numpy as np
import numpy.typing as npt


class Names(Sequence[str]):
    """Strings in one block of bytes: 16 bytes each beside their text, and nothing that a fork has to copy.

    >>> names = Names(["a/b.jpg", "c.png"])
    >>> names[-1], list(names), len(names.pick([1, 1]))
    ('c.png', ['a/b.jpg', 'c.png'], 2)
    """

    def __init__(self, names: Iterable[str] = ()) -> None:
        self._text, ends = bytearray(), array("q", [0])
        for name in names:
            self._text += name.encode(errors="surrogateescape")
            ends.append(len(self._text))
        edges = np.array(ends)
        self._starts, self._ends = edges[:-1], edges[1:]

    def pick(self, indices: npt.ArrayLike) -> "Names":
        """Return the names at ``indices``, which share the text."""
        picked = Names()
        picked._text, at = self._text, np.asarray(indices, np.int64)
        picked._starts, picked._ends = self._starts[at], self._ends[at]
        return picked

    def __len__(self) -> int:
        return len(self._ends)

    @overload
    def __getitem__(self, at: int) -> str: ...
    @overload
    def __getitem__(self, at: slice) -> "Names": ...
    def __getitem__(self, at: int | slice) -> "str | Names":
        if isinstance(at, slice):
            return self.pick(range(*at.indices(len(self))))
        return self._text[self._starts[at] : self._ends[at]].decode(errors="surrogateescape")

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and list(self) == list(other)
