"""Anti-aliased striding (BlurPool): maps are blurred where they are strided, so that a shift changes little."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sppcls.errors import ConfigError

Stride = tuple[int, int]


class BlurredConv2d(nn.Conv2d):
    """A strided convolution of a blurred map, [N, C, H, W]; sizes and names of tensors are those without the blur.

    Zhang convolves at stride 1 and blurs what comes out. The two commute except at the edge and for the ReLU that he
    has between them, but blurring first is convolved at the stride: no pixel is computed to be thrown away.
    """

    blur: Tensor

    def forward(self, input: Tensor) -> Tensor:
        """Return the convolved map."""
        return super().forward(_blurred(input, self.blur, (1, 1)))


class BlurredMaxPool2d(nn.MaxPool2d):
    """A max pool at stride 1, blurred at its stride; [N, C, h, w] is that of the pool without the blur.

    Where the pool rounds up, the map has to hold one whole window.
    """

    blur: Tensor

    def forward(self, input: Tensor) -> Tensor:
        """Return the pooled map."""
        dense = F.max_pool2d(input, self.kernel_size, 1, self.padding, self.dilation)
        return _blurred(dense, self.blur, _pair(self.stride), whole=self.ceil_mode)


def blur_strides(net: nn.Module, name: str = "this network") -> None:
    """Blur, in place, before each strided ``Conv2d`` and after each ``MaxPool2d``; average pools already blur.

    The filter has no weights, so files of the ordinary network fit. Source: Zhang, "Making Convolutional Networks
    Shift-Invariant Again", ICML 2019.

    Raises:
        ConfigError: Nothing is strided, or by a layer of another kind.

    >>> net = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2), nn.MaxPool2d(2))
    >>> blur_strides(net)
    >>> net(torch.zeros(1, 3, 9, 12)).shape
    torch.Size([1, 8, 2, 2])
    """
    found = list(_strided(net))
    for layer in found:
        if type(layer) not in _BLURRED or not _ends_inside(layer):
            raise ConfigError(
                f"model.blur_pool=true: {name} is strided by {layer}, which cannot be blurred; leave it out"
            )
    if not found:
        raise ConfigError(f"model.blur_pool=true: {name} has no strided convolution or max pool to blur; leave it out")
    for layer in found:
        layer.__class__ = _BLURRED[type(layer)]  # so it keeps its weights, name, hooks and modes
        layer.register_buffer("blur", _triangles(_pair(layer.stride)), persistent=False)


_BLURRED: dict[type, Any] = {nn.Conv2d: BlurredConv2d, nn.MaxPool2d: BlurredMaxPool2d}


def _strided(net: nn.Module) -> Iterator[nn.Conv2d | nn.MaxPool2d]:
    for layer in net.modules():
        if isinstance(layer, nn.Conv2d | nn.MaxPool2d) and max(_pair(layer.stride)) > 1:
            yield layer


def _ends_inside(layer: nn.Conv2d | nn.MaxPool2d) -> bool:
    """Return whether the last window of a pool that rounds up always starts on the map: others drop that window."""
    sides = zip(*(_pair(value) for value in (layer.kernel_size, layer.padding, layer.stride)), strict=True)
    return not getattr(layer, "ceil_mode", False) or all(stride <= kernel - pad for kernel, pad, stride in sides)


def _pair(value: int | str | tuple[int, ...]) -> Stride:
    return value if isinstance(value, tuple) else (value, value)  # type: ignore[return-value]


def _triangles(stride: Stride) -> Tensor:
    """Return a filter [1, 1, 2 * s - 1, 2 * s - 1], at stride 2 [1, 2, 1] / 4 along both axes.

    A triangle is zero at the frequencies that a stride of s turns into a constant; narrower ones are not.
    """
    rows, columns = (torch.tensor([s - abs(i) for i in range(1 - s, s)]) / s**2 for s in stride)
    return (rows[:, None] * columns)[None, None]


def _blurred(x: Tensor, blur: Tensor, stride: Stride, *, whole: bool = False) -> Tensor:
    """Return [N, C, H, W] blurred and strided; ``whole`` rounds the number of cells up.

    The edge is replicated, since zeros would be an edge that the image does not have.
    """
    down, right = blur.shape[2] // 2, blur.shape[3] // 2
    more = (stride[0] - 1, stride[1] - 1) if whole else (0, 0)
    padded = F.pad(x, (right, right + more[1], down, down + more[0]), mode="replicate")
    channels = x.shape[1]
    return F.conv2d(padded, blur.expand(channels, -1, -1, -1), None, stride, groups=channels)
