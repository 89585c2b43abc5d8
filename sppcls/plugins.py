"""What other packages add under a name, by entry points: see docs/extending.md."""

from collections.abc import Callable, Iterable
from importlib.metadata import entry_points
from typing import Any

from sppcls.errors import ConfigError, did_you_mean


def plugins(kind: str) -> dict[str, Callable[[], Callable[..., Any]]]:
    """Return what loads each name of the entry point group ``sppcls.KIND``."""
    return {point.name: point.load for point in entry_points(group=f"sppcls.{kind}")}


def plugin(kind: str, name: str, key: str, own: Iterable[str] = ()) -> Callable[..., Any]:
    """Return what an installed package offers as ``name``; ``own`` are the names that need no package.

    Raises ``ConfigError`` naming the setting ``key`` where there is none.
    """
    found = plugins(kind)
    if name not in found:
        raise ConfigError(f"{key}={name} is unknown{did_you_mean(name, [*own, *found] or ['none is installed'])}")
    return found[name]()
