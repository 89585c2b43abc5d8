"""What verbs share: options, and argument types, which reject a wrong value in one line that says what is allowed."""

import argparse
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from sppcls.errors import ConfigError
from sppcls.files import path_fault

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

T = TypeVar("T", bound="DataclassInstance")


def scale_list(text: str) -> tuple[int, ...]:
    """Return test scales such as 64,96,128."""
    try:
        found = tuple(int(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"got {text!r}, allowed: comma-separated integers such as 64,96,128") from None
    if min(found) < 8 or max(found) > 8192:
        raise argparse.ArgumentTypeError(f"got {text!r}, allowed: 8 to 8192 pixels")
    return found


def at_least(least: int, most: int = 2**31) -> Callable[[str], int]:
    """Return the argument type of integers from ``least`` to ``most``."""

    def whole(text: str) -> int:
        if not (text.isascii() and text.isdecimal() and len(text) < 12 and least <= int(text) <= most):
            upto = f" and at most {most}" if most < 2**31 else ""
            raise argparse.ArgumentTypeError(f"got {text[:40]!r}, allowed: an integer of at least {least}{upto}")
        return int(text)

    return whole


def path_text(text: str) -> str:
    """Return a valid path."""
    if fault := path_fault(text):
        raise argparse.ArgumentTypeError(f"got {text[:60]!r}: {fault}")
    return text


def checkpoint_option(verb: argparse.ArgumentParser) -> None:
    """Add ``--checkpoint`` to a verb that takes a run."""
    every = ("last", "best", "calibrated")
    verb.add_argument("--checkpoint", choices=every, help="which one of a run (calibrated if there is one, else last)")


def trust_option(verb: argparse.ArgumentParser) -> None:
    """Add ``--trust``, of the verbs that can open a file which runs code."""
    verb.add_argument("--trust", action="store_true", help="allow a .pt2 file, which can run code; only one you made")


def filled(kind: type[T], given: argparse.Namespace) -> T:
    """Return a dataclass with the values of the options that are named as its fields."""
    return kind(**{field.name: getattr(given, field.name) for field in fields(kind)})


@contextmanager
def writing(option: str, place: Path | str) -> Iterator[None]:
    """Raise a ``ConfigError`` naming the option where something cannot be written."""
    try:
        yield
    except OSError as error:
        raise ConfigError(f"{option} {place}: {error.strerror}; name a place that can be written") from None
