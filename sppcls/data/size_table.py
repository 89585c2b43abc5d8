"""The sizes of images between runs: 40 bytes a file, found by a hash of its name."""

import hashlib
from contextlib import suppress
from pathlib import Path

import numpy as np
import numpy.typing as npt

from sppcls.atomic import write_bytes
from sppcls.data.names import Names

Rows = npt.NDArray[np.int64]


class SizeTable:
    """A file of rows in the order of the first column: a name's hash, bytes, mtime_ns, H, W, each an int64.

    An entry counts only while the file has the same length and time of change; two names of one hash (in a million,
    one chance in thirty million) would have to agree in these too.
    """

    def __init__(self, names: Names, path: Path) -> None:
        hashes = (hashlib.blake2b(name.encode(errors="surrogateescape"), digest_size=8).digest() for name in names)
        self._keys, self._path = np.frombuffer(b"".join(hashes), np.int64), path

    def recall(self, found: Rows) -> None:
        """Fill in the H and W of rows (bytes, mtime_ns, H, W) that have none yet, where the file knows them."""
        table = self._table()
        if len(table):
            at = np.searchsorted(table[:, 0], self._keys).clip(max=len(table) - 1)
            known = (table[at, 0] == self._keys) & (table[at, 1:3] == found[:, :2]).all(axis=1) & (found[:, 2] == 0)
            found[known] = table[at[known], 1:]

    def keep(self, found: Rows) -> None:
        """Add the rows that have an H and W to the file."""
        read = found[:, 2] > 0
        table = np.concatenate([np.column_stack([self._keys, found])[read], self._table()])
        with suppress(OSError):  # no room or no right to write: the next run reads the headers again
            write_bytes(self._path, table[np.unique(table[:, 0], return_index=True)[1]].tobytes())

    def _table(self) -> Rows:
        """Return what the file holds; a missing or damaged one holds nothing."""
        try:
            table = np.frombuffer(self._path.read_bytes(), np.int64).reshape(-1, 5)
        except (OSError, ValueError):
            return np.empty((0, 5), np.int64)
        return table if (table[:, 3:] > 0).all() else table[:0]
