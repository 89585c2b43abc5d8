"""An image file's header, read within bounds: Pillow follows markers, chunks and blocks as long as there are any."""

import errno
import io
import weakref
from collections.abc import Callable
from pathlib import Path
from time import thread_time
from typing import Any, BinaryIO

# No photograph's header is longer, and a shorter one costs little whatever is in it: 15 million markers, 60 MB, took
# 2 GB and 20 s.
SHORT = 2**18
_PARTS = 100_000
_SECONDS = 2.0  # of this thread's own time


def open_header(path: Path, size: int) -> BinaryIO:
    """Open a file of ``size`` bytes to read its header; beyond 256 KB of it a read may raise, as that of `bounded`."""
    return _Reader(_File(path, size)) if size > SHORT else path.open("rb")


def bounded(read: Callable[[int | None], bytes], size: int) -> Callable[..., bytes]:
    """Return ``read`` of a file of ``size`` bytes, which raises ``OSError`` at too many parts, bytes or seconds."""
    parts, left, end = _PARTS, 2 * size + (16 << 20), thread_time() + _SECONDS

    def counted(count: int | None = -1, /) -> bytes:
        nonlocal parts, left
        content = read(count)
        parts -= 1
        left -= len(content)
        if parts < 0 or left < 0:
            raise OSError(errno.EFBIG, f"a header of more than {_PARTS:,} parts or twice the file's length")
        if not parts & 63 and thread_time() > end:  # a system call
            raise OSError(errno.ETIME, f"a header that takes more than {_SECONDS:g} s to read")
        return content

    return counted


class _File(io.FileIO):
    """Counts what its reader's buffer takes: to count every read makes the scan of photographs 15 % slower."""

    def __init__(self, path: Path, size: int) -> None:
        super().__init__(path)
        self.size, self.left = size, SHORT
        self.reader: Callable[[], _Reader | None] = lambda: None

    def readinto(self, buffer: Any, /) -> int:
        count = super().readinto(buffer)
        if self.left > 0:
            self.left -= count
            if self.left <= 0 and (reader := self.reader()):
                vars(reader)["read"] = bounded(reader.read, self.size)
        return count


class _Reader(io.BufferedReader):
    """A reader with room for attributes, which its file knows."""

    def __init__(self, file: _File) -> None:
        super().__init__(file)
        file.reader = weakref.ref(self)  # no circle, so that both go at once
