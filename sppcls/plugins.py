"""Plugins of other packages, by entry points: see docs/extending.md."""

from collections.abc import Callable, Iterable
from importlib.metadata import entry_points
from typing import Any

from sppcls.errors import ConfigError, did_you_mean

Plugin = Callable[..., Any]  # what it takes and returns depends on its kind


def plugins(kind: str) -> dict[str, Callable[[], Plugin]]:
    """Return a loader for each name in the entry point group ``sppcls.KIND``."""
    return {point.name: point.load for point in entry_points(group=f"sppcls.{kind}")}


def plugin(kind: str, name: str, key: str, own: Iterable[str] = ()) -> Plugin:
    """Return what an installed package registers as ``name``; ``own`` are the built-in names.

    Raises ``ConfigError`` naming the setting ``key`` if there is none.
    """
    found = plugins(kind)
    if name not in found:
        raise ConfigError(f"{key}={name} is unknown{did_you_mean(name, [*own, *found] or ['none is installed'])}")
    return found[name]()
