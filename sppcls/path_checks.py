"""Names of files and folders as people and files give them, looked at before they reach the disk."""

import os
from pathlib import Path

from sppcls.errors import ConfigError


def path_fault(text: str) -> str | None:
    """Return why no file or folder can have this path, or None: a zero byte, or more than the system takes.

    >>> path_fault("runs/a\\0b"), path_fault("runs/a")
    ('it has a zero byte; take it out', None)
    """
    if "\0" in text:
        return "it has a zero byte; take it out"
    raw = os.fsencode(text)
    longest = max(map(len, raw.split(b"/")))
    if longest > 255 or len(raw) > 4095:
        return f"it is too long ({longest} bytes in one name, {len(raw)} in all); allowed: 255 and 4095"
    return None


def checked_path(path: str | os.PathLike[str], what: str) -> Path:
    """Return a path; raises ``ConfigError`` naming ``what`` it is where no file or folder can have it."""
    if fault := path_fault(os.fspath(path)):
        raise ConfigError(f"{what} {os.fspath(path)[:60]!r}: {fault}")
    return Path(path)


def is_name(text: object) -> bool:
    """Return whether a text names something inside a folder: printable, one part of a path, and no way out.

    >>> [is_name(text) for text in ("seed-1", "..", "../a", "a/b", "/a", "a\\x1b[2J", "")]
    [True, False, False, False, False, False, False]
    """
    inside = isinstance(text, str) and text not in ("", ".", "..") and not {"/", "\\"} & set(text)
    return inside and str(text).isprintable() and len(os.fsencode(str(text))) <= 255
