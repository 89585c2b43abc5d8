"""One network on tensors of several shapes together: layer by layer, with batch norm over all of them."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial, partialmethod
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sppcls.errors import ConfigError

_PER_IMAGE = {"mul", "div"}  # that may take a number an image, [N, 1, 1, 1]
_STATISTICS = {"mean", "var", "std", "var_mean", "std_mean"}  # refused over the images
_POINTWISE = {F.relu, F.relu6, F.silu, F.hardswish, F.hardsigmoid, F.gelu, F.leaky_relu}  # of one value each
_NORMS = (nn.modules.batchnorm._BatchNorm,)


def joint(net: nn.Module, tensors: Sequence[Tensor]) -> list[Tensor]:
    """Return what ``net`` gives for each tensor [N_i, C, H_i, W_i]; in training batch norm is over all of them.

    So the result is that of one batch, up to rounding: a layer that takes statistics over the batch sees all images.

    Raises:
        ConfigError: The network uses sizes in a way that holds for one tensor only.
    """
    if len(tensors) == 1 or not any(isinstance(module, _NORMS) and module.training for module in net.modules()):
        return [net(tensor) for tensor in tensors]
    try:
        return list(net(Parts(tensors)).tensors)
    except Exception as error:  # a network may raise anything
        if "memory" in str(error):
            raise
        what = str(error).partition("\n")[0]
        raise ConfigError(
            f"this network cannot take the several tensors of a mixed step ({what}); use data.mix=0 data.batches=auto"
        ) from error


class Parts:
    """Tensors that every torch function is applied to in turn; ``batch_norm`` is applied to all their pixels at once.

    ``shape[0]`` is the number of all images: what a layer draws for each image, [N, 1, 1, 1], is dealt to the parts.
    A function in place changes these parts, not their tensors. What holds for one tensor only raises ``TypeError``.
    """

    def __init__(self, tensors: Iterable[Tensor]) -> None:
        self._tensors = tuple(tensors)
        self._sizes = [(len(part), *part.shape[2:]) for part in self._tensors]
        self._flat: Tensor | None = None  # all pixels, [1, C, pixels, 1]: the parts are views of it

    def of_flat(self, flat: Tensor) -> "Parts":
        """Return the parts of these sizes that are views of one tensor; it is cut when they are asked for."""
        parts = Parts(())
        parts._sizes, parts._flat = self._sizes, flat
        return parts

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """The parts, [N_i, C, H_i, W_i]."""
        if not self._tensors and self._flat is not None:
            pixels = self._flat.permute(0, 2, 3, 1).flatten(0, 2)
            cut = torch.split(pixels, [n * h * w for n, h, w in self._sizes])
            parts = zip(cut, self._sizes, strict=True)
            self._tensors = tuple(part.view(*size, -1).permute(0, 3, 1, 2) for part, size in parts)
        return self._tensors

    @property
    def shape(self) -> tuple[Any, ...]:
        """(N, C, H, W) with N over all parts; a side that differs is an object that cannot be reckoned with."""
        sides = [set(of) for of in zip(*(part.shape[1:] for part in self.tensors), strict=True)]
        return (len(self), *(side.pop() if len(side) == 1 else object() for side in sides))

    def size(self, dim: int | None = None) -> Any:
        """Return `shape`, or one side of it."""
        return self.shape if dim is None else self.shape[dim]

    def new_empty(self, *size: Any, **how: Any) -> Tensor:
        """Return one tensor, as what a layer draws for all images."""
        return self.tensors[0].new_empty(*size, **how)

    def __getattr__(self, name: str) -> Any:
        """Return a method that is applied to each part, or what is the same for all, such as ``device``."""
        found = getattr(self.tensors[0], name)
        return partial(self._call, getattr(Tensor, name)) if callable(found) else found

    def __len__(self) -> int:
        return sum(map(len, self.tensors))

    def _call(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        return self.__torch_function__(function, (), (self, *args), kwargs)

    __getitem__ = partialmethod(_call, Tensor.__getitem__)
    __add__ = __radd__ = partialmethod(_call, torch.add)
    __mul__ = __rmul__ = partialmethod(_call, torch.mul)
    __sub__, __rsub__ = partialmethod(_call, torch.sub), partialmethod(_call, torch.rsub)
    __truediv__ = partialmethod(_call, torch.div)

    @classmethod
    def __torch_function__(
        cls,
        function: Callable[..., Any],
        types: object,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs, name = dict(kwargs or {}), function.__name__
        if function is F.batch_norm:
            return _batch_norm(*args, **kwargs)
        if function in (torch.cat, torch.concat):
            joined = zip(*(parts.tensors for parts in args[0]), strict=True)
            return Parts(function(list(of_part), *args[1:], **kwargs) for of_part in joined)
        if "batch_norm" in name or (name in _STATISTICS and _over_images(*args[1:2], **kwargs)):
            raise TypeError(f"{name} over the images")
        parts: Parts = next(value for value in (*args, *kwargs.values()) if isinstance(value, Parts))
        if function in _POINTWISE and parts._flat is not None:
            return parts.of_flat(function(parts._flat, *args[1:], **kwargs))
        if kwargs.get("inplace"):
            return parts._become(parts._map(function, args, kwargs | {"inplace": False}))
        if name.endswith("_") and not name.startswith("__"):
            return parts._become(parts._map(getattr(Tensor, name[:-1]), args, kwargs))
        return parts._map(function, args, kwargs)

    def _become(self, found: "Parts") -> "Parts":
        self._tensors, self._flat = found.tensors, None
        return self

    def _map(self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        dealt = function.__name__ in _PER_IMAGE
        columns = [self._column(value, dealt) for value in args]
        named = {name: self._column(value, dealt) for name, value in kwargs.items()}
        every = range(len(self.tensors))
        found = [function(*(c[i] for c in columns), **{name: c[i] for name, c in named.items()}) for i in every]
        if isinstance(found[0], tuple | list):  # of chunk or split
            return tuple(map(Parts, zip(*found, strict=True)))
        if isinstance(found[0], Tensor):
            return Parts(found)
        if any(one != found[0] for one in found):
            raise TypeError(f"{function.__name__} differs")
        return found[0]

    def _column(self, value: Any, dealt: bool) -> Sequence[Any]:
        """Return what each part gets of an argument."""
        if isinstance(value, Parts):
            return value.tensors
        if dealt and isinstance(value, Tensor) and value.ndim == 4 and value.shape == (len(self), 1, 1, 1):
            return torch.split(value, list(map(len, self.tensors)))
        return [value] * len(self.tensors)


def _over_images(dim: Any = None, **_: Any) -> bool:
    """Return whether a reduction over these dimensions mixes images."""
    dims = dim if isinstance(dim, tuple | list) else (dim,)
    return not all(isinstance(one, int) and one % 4 != 0 for one in dims)


def _batch_norm(x: Parts, *args: Any, **kwargs: Any) -> Parts:
    """Normalise all pixels of all parts as one tensor, in channels-last memory."""
    channels = x.tensors[0].shape[1]
    pixels = torch.cat([part.permute(0, 2, 3, 1).reshape(-1, channels) for part in x.tensors])
    return x.of_flat(F.batch_norm(pixels[None, :, None].permute(0, 3, 1, 2), *args, **kwargs))
