"""Networks to train from scratch: this package's small one, and those of the paper."""

from collections.abc import Callable, Sequence
from functools import partial

from torch import Tensor, nn

from sppcls.errors import ConfigError, did_you_mean

_NORMS: dict[str, Callable[[int], nn.Module]] = {"batch": nn.BatchNorm2d, "group": partial(nn.GroupNorm, 8)}


def _conv(inputs: int, outputs: int, stride: int, norm: str) -> nn.Sequential:
    conv = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
    return nn.Sequential(conv, _NORMS[norm](outputs), nn.ReLU(inplace=True))


class _Residual(nn.Module):
    def __init__(self, channels: int, norm: str) -> None:
        super().__init__()
        self.conv = _conv(channels, channels, 1, norm)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.conv(x)
        return out


def tiny(width: float = 1.0, norm: str = "batch") -> nn.Module:
    """Build a fully convolutional trunk, [N, 3, H, W] -> [N, C, ceil(H / 8), ceil(W / 8)], C = 128 * width.

    Three halving convolutions and a residual one: at width 1, 0.2 million weights and 3.7 thousand multiply-adds an
    input pixel. C is rounded to a multiple of 8. ``norm`` is "batch" or "group" (no statistics shared in a batch).
    Raises ``ConfigError`` at another norm or a width that is not above 0.

    >>> import torch
    >>> tiny()(torch.zeros(2, 3, 48, 67)).shape
    torch.Size([2, 128, 6, 9])
    """
    return _halving("tiny", ((16, 0), (48, 0), (128, 1)), width, norm)


def small(width: float = 1.0, norm: str = "batch") -> nn.Module:
    """Build a residual trunk, [N, 3, H, W] -> [N, C, ceil(H / 16), ceil(W / 16)], C = 256 * width.

    Four halving convolutions and five residual ones: at width 1, 1.9 million weights and 15 thousand multiply-adds an
    input pixel. Otherwise as `tiny`.

    >>> import torch
    >>> small(width=0.25)(torch.zeros(2, 3, 48, 67)).shape
    torch.Size([2, 64, 3, 5])
    """
    return _halving("small", ((32, 0), (64, 1), (128, 2), (256, 2)), width, norm)


def _halving(name: str, stages: Sequence[tuple[int, int]], width: float, norm: str) -> nn.Module:
    """Build stages of (channels, residual convolutions), each of which begins with a convolution of stride 2."""
    if norm not in _NORMS:
        raise ConfigError(f"{name}: unknown norm {norm!r}{did_you_mean(norm, _NORMS)}")
    if width <= 0:
        raise ConfigError(f"{name}: got width {width}, allowed: above 0 (1 gives {stages[-1][0]} channels)")
    layers, before = list[nn.Module](), 3
    for wide, residuals in stages:
        channels = 8 * max(1, round(wide * width / 8))  # multiples of 8 suit both vector units and GroupNorm
        layers += [_conv(before, channels, 2, norm), *(_Residual(channels, norm) for _ in range(residuals))]
        before = channels
    return nn.Sequential(*layers)


_NORM = "norm"
# (channels, kernel, stride) is a convolution padded by floor(kernel / 2), (kernel, stride) a max pool. Only pools that
# are neither padded nor rounded up give the maps that the paper states: 13x13 (ZF-5) and 18x18 (Overfeat) at 224.
_Layer = tuple[int, int, int] | tuple[int, int] | str
TABLE: dict[str, tuple[_Layer, ...]] = {
    "zf5": ((96, 7, 2), _NORM, (3, 2), (256, 5, 2), _NORM, (3, 2), (384, 3, 1), (384, 3, 1), (256, 3, 1)),
    "convnet5": ((96, 11, 4), _NORM, (256, 5, 1), _NORM, (3, 2), (384, 3, 1), (3, 2), (384, 3, 1), (256, 3, 1)),
    "overfeat5": ((96, 7, 2), (3, 3), _NORM, (256, 5, 1), (2, 2), *((512, 3, 1),) * 3),
    "overfeat7": ((96, 7, 2), (3, 3), _NORM, (256, 5, 1), (2, 2), *((512, 3, 1),) * 5),
}


def paper_trunk(name: str, width: float = 1.0, norm: str = "lrn") -> nn.Sequential:
    """Build one of the paper's networks without its classifier: [N, 3, H, W] -> [N, C, h, w].

    The total stride of ``zf5`` and ``convnet5`` is 16, of ``overfeat5`` and ``overfeat7`` 12. ``width`` is a factor on
    every layer's channels; ``norm`` is ``lrn`` as in the paper or ``batch``; anything else raises ``ConfigError``.

    Source: He et al., "Spatial Pyramid Pooling in Deep Convolutional Networks", table 1. The initialisation is that of
    He et al. 2015; without it seven layers do not start to learn.

    >>> paper_trunk("zf5", width=0.1)[0]
    Conv2d(3, 10, kernel_size=(7, 7), stride=(2, 2), padding=(3, 3))
    """
    if norm not in ("lrn", "batch"):
        raise ConfigError(f"model.norm is {norm!r}; {name} takes 'lrn' or 'batch'")
    channels, layers = 3, list[nn.Module]()
    for layer in TABLE[name]:
        match layer:
            case (int(wide), int(kernel), int(stride)):
                wide = max(1, round(wide * width))
                layers += [nn.Conv2d(channels, wide, kernel, stride, kernel // 2), nn.ReLU(inplace=True)]
                channels = wide
            case (int(kernel), int(stride)):
                layers.append(nn.MaxPool2d(kernel, stride))
            case _:
                layers.append(nn.BatchNorm2d(channels) if norm == "batch" else nn.LocalResponseNorm(5))
    return nn.Sequential(*layers).apply(_initialise)


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
        if module.bias is not None:
            nn.init.zeros_(module.bias)
