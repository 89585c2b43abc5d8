"""Plugins of other packages, by entry points: see docs/extending.md."""

from collections.abc import Callable, Iterable
from functools import wraps
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from sppcls.errors import ConfigError, SppclsError, did_you_mean

Plugin = Callable[..., Any]  # what it takes and returns depends on its kind


def plugins(kind: str) -> dict[str, EntryPoint]:
    """Return the entry points of the group ``sppcls.KIND`` by name."""
    return {point.name: point for point in entry_points(group=f"sppcls.{kind}")}


def plugin(kind: str, name: str, key: str, own: Iterable[str] = ()) -> Plugin:
    """Return what an installed package registers as ``name``; ``own`` are the built-in names.

    Raises ``ConfigError`` naming the setting ``key`` if there is none. So does what it returns where the package fails.
    """
    found = plugins(kind)
    if name not in found:
        known = did_you_mean(name, [*own, *found] or ["none is installed"])
        raise ConfigError(f"{key}={name} is unknown{known} (if another package adds it, install that package)")
    return _reported(found[name], f"{key}={name}")


def _reported(point: EntryPoint, what: str) -> Plugin:
    """Load a plugin, and name it and its package in each error of theirs."""
    where = f"{what} (package {getattr(getattr(point, 'dist', None), 'name', 'unknown')})"
    try:
        made: Plugin = point.load()
    except Exception as error:  # whatever the import of a package raises
        raise ConfigError(f"{where} cannot be imported: {type(error).__name__}: {error}") from error

    @wraps(made)
    def call(*args: Any, **kwargs: Any) -> Any:
        try:
            return made(*args, **kwargs)
        except SppclsError:
            raise
        except Exception as error:  # whatever the package raises
            raise ConfigError(f"{where} failed: {type(error).__name__}: {error}") from error

    return call
