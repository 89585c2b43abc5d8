"""What ended a run, in one line that says what to do."""

import re

from sppcls.errors import SppclsError


def one_line(error: BaseException) -> str:
    """Return an error as one line."""
    said = " ".join(str(error).split())
    if isinstance(error, SppclsError):
        return said
    killed = re.search(r"DataLoader worker \(pid\(?s?\)? [\d, ]+\) (is killed by|exited)[^.]*", said)
    if killed:
        return f"{killed[0]}; where memory ran out, lower data.num_workers or data.batch_size, then resume="
    if type(error).__name__ in ("OutOfMemoryError", "MemoryError") or "not enough memory" in said:
        return f"out of memory: {said[:160]}; lower data.batch_size or the largest of schedule.scales"
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return f"{type(error).__name__}: {str(error).strip()}".splitlines()[0]
