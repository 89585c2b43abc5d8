"""The default trunk: learns from a few thousand small images in under a minute on two cores."""

from collections.abc import Callable
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
    if norm not in _NORMS:
        raise ConfigError(f"tiny: no norm {norm!r}{did_you_mean(norm, _NORMS)}")
    if width <= 0:
        raise ConfigError(f"tiny: got width {width}, allowed: above 0 (1 gives 128 channels)")
    # Multiples of 8 suit the vector units and GroupNorm alike.
    first, second, last = (8 * max(1, round(channels * width / 8)) for channels in (16, 48, 128))
    return nn.Sequential(
        _conv(3, first, 2, norm), _conv(first, second, 2, norm), _conv(second, last, 2, norm), _Residual(last, norm)
    )
