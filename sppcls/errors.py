"""The errors a user can cause, with their exit statuses, and any error formatted as one line."""

import difflib
import re
from collections.abc import Iterable


class SppclsError(Exception):
    """An error reported as one line on standard error (exit status 1)."""

    exit_status = 1


class ConfigError(SppclsError):
    """Wrong arguments or configuration (exit status 2)."""

    exit_status = 2


class DataError(SppclsError):
    """Missing, empty or broken data (exit status 3); ``reason`` says why without the file's name and the advice."""

    exit_status = 3

    def __init__(self, message: str, reason: str = "") -> None:
        super().__init__(message)
        self.reason = reason or message


def missing_extra(what: str, extra: str) -> ConfigError:
    """Return the error for a package that is not installed, with how to install it.

    >>> str(missing_extra("logger=wandb", "wandb"))
    "logger=wandb needs an extra: uv run --extra wandb ..., or pip install 'sppcls[wandb]'"
    """
    return ConfigError(f"{what} needs an extra: uv run --extra {extra} ..., or pip install 'sppcls[{extra}]'")


def counted(number: int, what: str) -> str:
    """Return a count with its noun.

    >>> counted(1, "file"), counted(1200, "file")
    ('1 file', '1,200 files')
    """
    return f"{number:,} {what}{'s' * (number != 1)}"


def did_you_mean(got: str, allowed: Iterable[str]) -> str:
    """Return ``"; did you mean 'x'?"`` for the closest allowed word, or list the allowed words if none is close.

    >>> did_you_mean("resnet81", ["resnet18", "tiny"])
    "; did you mean 'resnet18'?"
    >>> did_you_mean("qqq", ["keep", "crop"])
    '; allowed: crop, keep'
    """
    words = sorted(allowed)
    near = difflib.get_close_matches(got, words, n=1, cutoff=0.6)
    if near:
        return f"; did you mean {near[0]!r}?"
    shown = ", ".join(words[:12]) + (f" and {len(words) - 12} more" if len(words) > 12 else "")
    return f"; allowed: {shown}"


def one_line(error: BaseException) -> str:
    """Return an error as one line."""
    said = " ".join(str(error).split())
    if isinstance(error, SppclsError):
        return said
    killed = re.search(r"DataLoader worker \(pid\(?s?\)? [\d, ]+\) (is killed by|exited)[^.]*", said)
    if killed:
        return f"{killed[0]}; if memory ran out, lower data.num_workers or data.batch_size and resume"
    if type(error).__name__ in ("OutOfMemoryError", "MemoryError") or "not enough memory" in said:
        return f"out of memory: {said[:160]}; lower data.batch_size or the largest of schedule.scales"
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return f"{type(error).__name__}: {str(error).strip()}".splitlines()[0]
