"""What other packages add under a name, by entry points: backbones, optimisers, callbacks."""

from collections.abc import Callable, Iterable
from importlib.metadata import entry_points
from typing import Any

from sppcls.errors import ConfigError, did_you_mean


def plugin(kind: str, name: str, key: str, own: Iterable[str] = ()) -> Callable[..., Any]:
    """Return what an installed package offers as ``name`` in the group ``sppcls.kind``.

    Raises ``ConfigError`` naming the setting where there is none; ``own`` are the names that need no package.
    """
    found = {point.name: point for point in entry_points(group=f"sppcls.{kind}")}
    if name not in found:
        raise ConfigError(f"{key}={name} is unknown{did_you_mean(name, [*own, *found] or ['none is installed'])}")
    loaded: Callable[..., Any] = found[name].load()
    return loaded
