"""Trunks by name: from normalised images [N, 3, H, W] to a feature map [N, C, h, w] of any size."""

from bisect import bisect_left
from collections import OrderedDict
from collections.abc import Callable, Sequence
from functools import partial
from inspect import signature
from itertools import takewhile
from typing import Any

import torch
from torch import Tensor, nn

from sppcls.errors import ConfigError, did_you_mean, missing_extra
from sppcls.models.blur import blur_strides
from sppcls.models.lite import efficientnet_lite0
from sppcls.models.norm import Seen, norm_per_scale
from sppcls.models.trunks import TABLE, paper_trunk, small, tiny
from sppcls.models.weights import load_weights, reason
from sppcls.plugins import plugin, plugins

Triple = tuple[float, float, float]
IMAGENET_MEAN: Triple = (0.485, 0.456, 0.406)
IMAGENET_STD: Triple = (0.229, 0.224, 0.225)

# A builder's parameters are the settings that its network takes, out of width, norm and weights ("pretrained").
Builder = Callable[..., nn.Module]
_OWN: dict[str, Builder] = {"tiny": tiny, "small": small, "efficientnet_lite0": efficientnet_lite0}
_OWN |= {name: partial(paper_trunk, name) for name in TABLE}
_TRANSFORMERS = ("vit_", "swin_", "maxvit_")
_TAIL = ("avgpool", "classifier", "fc")
# A multiple of every usual total stride (12, 16, 20, 24, 32, 64), so that a map grows by exactly _STEP / stride.
_STEP = 960


class Trunk(nn.Module):
    """A network without its classifier: normalised float images [N, 3, H, W] -> feature map [N, C, h, w].

    Attributes:
        channels: C.
        stride: input pixels from one map cell to the next.
        smallest: the smallest side, in pixels, of a square input that gives a map of at least one cell.
        mean, std: per channel, in units of 0..1, for normalising images: those of ``net`` or else ImageNet's.
        recipe: the arguments of `build_trunk`, ``backbone, width, norm, ...``; None if built in another way.

    Raises:
        ValueError: ``net`` does not output a map that grows with its input.

    >>> trunk = Trunk(nn.Conv2d(3, 8, 3, stride=2))
    >>> trunk.channels, trunk.stride, trunk.smallest
    (8, 2, 3)
    """

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net
        self.recipe: dict[str, object] | None = None
        self.mean: Triple = tuple(getattr(net, "mean", IMAGENET_MEAN))
        self.std: Triple = tuple(getattr(net, "std", IMAGENET_STD))
        self.smallest = _smallest(net)
        self.channels, self.stride = _channels_and_stride(net, self.smallest)
        self._seen: Seen | None = None

    def forward(self, images: Tensor) -> Tensor:
        """Return the feature map."""
        if self._seen is not None:
            self._seen.look(images)
        features: Tensor = self.net(images)
        return features

    def norm_per_scale(self, scales: Sequence[int], affine: str = "apart", name: str = "this network") -> None:
        """Give its batch norms sets of statistics for these scales, and, unless ``affine`` is shared, of weights."""
        self._seen = norm_per_scale(self.net, scales, apart=affine == "apart", name=name)
        if self.recipe is not None:
            self.recipe |= {"norm_per_scale": tuple(sorted(set(scales))), "norm_affine": affine}


def build_trunk(
    name: str,
    *,
    width: float = 1.0,
    norm: str | None = None,
    blur_pool: bool = False,
    norm_scales: Sequence[int] = (),
    norm_affine: str = "apart",
    weights: str | None = None,
) -> Trunk:
    """Build a trunk by its name.

    Args:
        name: ``tiny``, ``small``; the paper's ``zf5``, ``convnet5``, ``overfeat5``, ``overfeat7``;
            ``efficientnet_lite0``; any convolutional network of torchvision; ``timm:NAME`` with the extra ``timm``; or
            one of the entry point group ``sppcls.backbones``: a ``callable(width: float) -> nn.Module`` that maps
            [N, 3, H, W] to [N, C, h, w] and may have ``mean`` and ``std``. Names of this package take precedence.
        width: factor on the number of channels; only for ``tiny``, ``small``, the paper's and registered networks.
        norm: ``lrn`` or ``batch`` for the paper's networks, ``batch`` or ``group`` for ours; the first by default.
        blur_pool: blur its maps where they are strided (`sppcls.models.blur`); files of weights stay the same.
        norm_scales: scales with batch norm of their own (`sppcls.models.norm`); ``norm_affine`` is apart or shared.
        weights: ``pretrained`` (ImageNet, from the library that has the network) or a local file (`load_weights`).

    Raises:
        ConfigError: unknown name, a setting that the network does not take, no feature map, or mismatched weights.
    """
    if not width > 0:
        raise ConfigError(f"model.width={width}; allowed: a factor above 0, such as 0.5")
    pretrained = weights == "pretrained"
    net = _network(name, width=None if width == 1 else width, norm=norm, weights=weights if pretrained else None)
    if blur_pool:
        blur_strides(net, f"model.backbone={name}")
    try:
        trunk = Trunk(net)
    except ValueError as error:
        raise ConfigError(f"model.backbone={name}: {error}; choose a convolutional network such as resnet18") from error
    if weights is not None and not pretrained:
        load_weights(net, weights)
    trunk.recipe = {"backbone": name, "width": width, "norm": norm, "blur_pool": blur_pool}
    if norm_scales:
        trunk.norm_per_scale(norm_scales, norm_affine, f"model.backbone={name}")
    return trunk


def backbone_names() -> list[str]:
    """Return every name that `build_trunk` takes, without those of timm."""
    return sorted({*_OWN, *_torchvision_names(), *plugins("backbones")})


def _network(name: str, **settings: object) -> nn.Module:
    build, given = _find(name), {key: value for key, value in settings.items() if value is not None}
    for key, value in given.items():
        if key not in signature(build).parameters:
            raise ConfigError(f"model.{key}={value!r} is not supported by {name}; leave it out")
    return build(**given)


def _find(name: str) -> Builder:
    if name in _OWN:
        return _OWN[name]
    if name.startswith("timm:"):
        return partial(_timm, name.removeprefix("timm:"))
    if name in _torchvision_names():
        return partial(_torchvision, name)
    if name in plugins("backbones"):
        return partial(_from_package, name)
    if name.startswith(_TRANSFORMERS):
        raise ConfigError(
            f"model.backbone={name} is a transformer, not a convolutional network, and has no feature map "
            "at every input size; choose a convolutional network such as resnet18"
        )
    raise ConfigError(f"model.backbone={name!r} is unknown{did_you_mean(name, backbone_names())}")


def _from_package(name: str, width: float = 1.0) -> nn.Module:
    net = plugin("backbones", name, "model.backbone")(width=width)
    if not isinstance(net, nn.Module):
        raise ConfigError(
            f"model.backbone={name}: its package returned {type(net).__name__}; it must return an nn.Module"
        )
    return net


def _torchvision_names() -> list[str]:
    from torchvision import models

    return [name for name in models.list_models(module=models) if not name.startswith(_TRANSFORMERS)]


def _torchvision(name: str, weights: str | None = None) -> nn.Module:
    from torchvision import models

    known = models.get_model_weights(name).DEFAULT
    inception = name in ("googlenet", "inception_v3")
    options = {"init_weights": True, "aux_logits": False} if inception and not weights else {}
    try:
        net = models.get_model(name, weights=known if weights else None, **options)
    except (OSError, RuntimeError) as error:
        file, folder = known.url.rsplit("/", 1)[-1], f"{torch.hub.get_dir()}/checkpoints"
        raise ConfigError(
            f"model.weights=pretrained: the download for {name} failed ({reason(error)}); "
            f"put {file} into {folder}, or set model.weights to a local file"
        ) from error
    cut: Any = _before_pooling(net)
    # The forward of these two networks first converts ImageNet's normalisation to this one; the cut leaves that out.
    preset = None if inception else known.transforms()
    cut.mean, cut.std = (preset.mean, preset.std) if preset else ((0.5,) * 3, (0.5,) * 3)
    return cut  # type: ignore[no-any-return]


def _before_pooling(net: nn.Module) -> nn.Sequential:
    """Chain the children of a torchvision network up to its pooling, under their own names."""
    children = takewhile(lambda child: child[0] not in _TAIL, net.named_children())
    cut = OrderedDict((name, child) for name, child in children if not name.lower().startswith("aux"))
    if type(net).__name__ == "DenseNet":  # the only one with a function between its layers and its pooling
        cut["relu"] = nn.ReLU(inplace=True)
    return nn.Sequential(cut)


def _timm(name: str, weights: str | None = None) -> nn.Module:
    try:
        import timm
    except ImportError as error:
        raise missing_extra(f"model.backbone=timm:{name}", "timm") from error
    if not timm.is_model(name):
        raise ConfigError(f"model.backbone=timm:{name} is unknown to timm{did_you_mean(name, timm.list_models())}")
    try:
        net: Any = timm.create_model(name, pretrained=weights is not None, num_classes=0, global_pool="")
    except Exception as error:  # timm and its hub raise their own errors, and not every network can drop its pooling
        what = "no pretrained weights available; set model.weights to a file" if weights else "not usable as a trunk"
        raise ConfigError(f"model.backbone=timm:{name}: {what} ({reason(error)})") from error
    net.mean, net.std = net.pretrained_cfg["mean"], net.pretrained_cfg["std"]
    return net  # type: ignore[no-any-return]


def _map_shape(net: nn.Module, height: int, width: int) -> torch.Size:
    # Real images of a few pixels: the meta device costs four seconds of imports, and rejects tensors made in forward.
    like = next(net.parameters(), torch.empty(0))
    modes = [(module, module.training) for module in net.modules()]
    try:
        net.eval()
        with torch.no_grad():
            out = net(like.new_zeros(1, 3, height, width))
    finally:
        for module, mode in modes:
            module.training = mode
    if not isinstance(out, Tensor) or out.ndim != 4 or 0 in out.shape:
        raise ValueError(f"it returns {list(out.shape) if isinstance(out, Tensor) else type(out).__name__}")
    return out.shape


def _smallest(net: nn.Module) -> int:
    def gives_map(side: int) -> bool:
        try:
            _map_shape(net, side, side)
        except Exception:  # a network that fails at every size fails again below, with its reason
            return False
        return True

    top = next((side for side in (1, 2, 4, 8, 16, 32, 64, 128) if gives_map(side)), 256)
    sides = range(top // 2 + 1, top)
    return sides.start + bisect_left(sides, True, key=gives_map)


def _channels_and_stride(net: nn.Module, smallest: int) -> tuple[int, int]:
    width = 257  # not a multiple of 32, which networks that need one reject
    try:
        near, far = (_map_shape(net, smallest, side) for side in (width, width + _STEP))
    except Exception as error:  # a network may raise anything
        raise ValueError(f"no feature map [N, C, h, w] from {smallest}x{width} pixels: {reason(error)}") from error
    if near[:3] != far[:3] or near[3] == far[3]:
        raise ValueError(f"no feature map [N, C, h, w]: it returns {list(near)}, and {list(far)} for wider images")
    return near[1], round(_STEP / (far[3] - near[3]))
