"""One line that says what is wrong with a value of the settings."""

from collections.abc import Callable, Mapping
from typing import Any

from pydantic import ValidationError

from sppcls.errors import counted

_TRIED = {"bool", "int", "str", "constrained-int", "constrained-float"}  # types that pydantic adds to a key
_PARSED = ("bool_parsing", "int_parsing", "float_parsing")


def first_line(error: ValidationError, unknown_key: Callable[[str], str], prefix: str = "") -> str:
    """Return the message for the first wrong value; ``unknown_key`` gives that for a key, which begins with ``prefix``.

    Of a value that may be a list or a word it is what is wrong in the list.
    """
    errors = error.errors()
    first = next((one for one in errors if _in_list(one)), errors[0])
    parts = [part for part in first["loc"] if isinstance(part, str) and "[" not in part]  # no index, no type
    key = prefix + ".".join(parts[:-1] if {*first["loc"][-1:]} & _TRIED else parts)
    if first["type"] == "extra_forbidden":
        return unknown_key(key)
    if first["type"] == "tuple_type":
        write = f"; write {key}=[{first['input']}]" if isinstance(first["input"], int | float) else ""
        return f"{key}={first['input']!r:.100}: expected a list{write}"
    if first["type"] == "too_short":
        return f"{key}={first['input']!r:.100}: expected at least {counted(first['ctx']['min_length'], 'value')}"
    said = first["msg"].removeprefix("Value error, ")
    if first["type"] in _PARSED and not _in_list(first):  # of a number or a word, such as optim.lr
        said += "".join(f", or {one['ctx']['expected']}" for one in errors if one["type"] == "literal_error")
    if first["type"] == "value_error":
        return f"{key}: {said}" if key else said
    got = f"{key}: got {first['input']!r:.100}, " if _in_list(first) else f"{key}={first['input']!r:.100}: "
    return f"{got}{said[0].lower()}{said[1:]}"


def _in_list(error: Mapping[str, Any]) -> bool:
    return error["type"] == "too_short" or any(isinstance(part, int) for part in error["loc"][-1:])
