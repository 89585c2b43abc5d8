"""The classifier: a trunk, a pyramid on its map, and a head."""

from collections.abc import Sequence
from importlib import import_module
from itertools import accumulate
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sppcls.errors import did_you_mean
from sppcls.models.backbones import Trunk, build_trunk
from sppcls.models.heads import HEADS
from sppcls.models.parts import joint
from sppcls.ops import region_pyramid_pool2d, spatial_pyramid_levels2d
from sppcls.signature import ALIGN, Signature, checked_classes, checked_size

_NORMS = (nn.modules.batchnorm._BatchNorm, nn.GroupNorm, nn.LayerNorm)


class SppClassifier(nn.Module):
    """Classify images of any size: trunk -> spatial pyramid pooling -> head.

    Args:
        trunk: a name for `build_trunk`, or any module that maps [N, 3, H, W] to [N, C, h, w].
        classes: the names of the K classes, in the order of the logits.
        pool: ``spp``, a pyramid; ``gap``, the average over the map; ``fixed``, the paper's baseline without SPP: one
            input size, its map max-pooled to 6x6.
        levels, mode: the pyramid's grid sizes and pooling mode; ``spp`` only.
        head: ``levels``, one normalised classifier per level, logits averaged, or ``stack``, the paper's layers on all
            bins together. Either works with every pool, so that a comparison of pools compares only pools.
        hidden: widths of hidden layers in the head.
        dropout: probability, before (``levels``) and after (both) the hidden layers.
        input_size: (H, W) or a side, in pixels; ``fixed`` only.
        scales: the training scales, stored for later use.
        align: ``pad``: repeat the last row and column of images up to a multiple of the trunk's stride, since a strided
            convolution meets false edges off it. ``stretch``: images are given in such sizes (`multiple`). ``none``.

    Attributes:
        levels: the grid sizes in use: (1,) for ``gap``, (6,) for ``fixed``.
        mean, std, smallest: of the trunk: the normalisation of images, in units of 0..1, and their smallest side.
        fit, max_aspect: how images are fitted to a scale: as in training, if it was trained or loaded.
        frozen: whether `freeze_trunk` was called.

    Raises:
        ValueError: an invalid argument.
        ConfigError: an unknown trunk name.

    >>> model = SppClassifier(nn.Conv2d(3, 8, 3, stride=2), ["cat", "dog"], levels=(2, 1))
    >>> model(torch.zeros(5, 3, 20, 31)).shape
    torch.Size([5, 2])
    """

    def __init__(
        self,
        trunk: str | nn.Module,
        classes: Sequence[str],
        *,
        pool: Literal["spp", "gap", "fixed"] = "spp",
        levels: Sequence[int] = (4, 2, 1),
        mode: Literal["max", "avg"] = "max",
        head: Literal["levels", "stack"] = "levels",
        hidden: Sequence[int] = (),
        dropout: float = 0.2,
        input_size: int | tuple[int, int] | None = None,
        scales: Sequence[int] = (),
        align: str = "none",
    ) -> None:
        super().__init__()
        self.classes = checked_classes(classes)
        self.input_size = checked_size(pool, input_size)
        if align not in ALIGN:
            raise ValueError(f"align is {align!r}{did_you_mean(align, ALIGN)}")
        if head not in HEADS:
            raise ValueError(f"head is {head!r}{did_you_mean(head, HEADS)}")
        self.pool, self.scales, self.align, self.frozen = pool, tuple(scales), align, False
        self.levels = {"spp": tuple(levels), "gap": (1,), "fixed": (6,)}[pool]
        self.mode = {"spp": mode, "gap": "avg", "fixed": "max"}[pool]
        spatial_pyramid_levels2d(torch.zeros(1, 1, 1, 1), self.levels, self.mode)  # rejects wrong levels and modes now
        net = build_trunk(trunk) if isinstance(trunk, str) else trunk
        self.trunk = net if isinstance(net, Trunk) else Trunk(net)
        self.mean, self.std, self.smallest = self.trunk.mean, self.trunk.std, self.trunk.smallest
        self.fit, self.max_aspect = "warp" if pool == "fixed" else "keep", 4.0
        lengths = [self.trunk.channels * n * n for n in self.levels]
        self.head = HEADS[head](lengths, len(self.classes), hidden, dropout)
        self._recipe = {"head": head, "hidden": tuple(hidden), "dropout": dropout}

    @property
    def signature(self) -> Signature:
        """How images are prepared for this network, and what it returns."""
        return Signature(
            classes=self.classes,
            scales=self.scales,
            pool=self.pool,
            fit=self.fit,
            max_aspect=self.max_aspect,
            mean=self.mean,
            std=self.std,
            smallest=self.smallest,
            stride=self.trunk.stride,
            input_size=self.input_size,
            align=self.align,
        )

    @property
    def multiple(self) -> int:
        """What the sides of images should be multiples of."""
        return self.signature.multiple

    @property
    def recipe(self) -> dict[str, object] | None:
        """Names and numbers that this network can be rebuilt from; None if its trunk was not built by name."""
        if self.trunk.recipe is None:
            return None
        return self.trunk.recipe | {"pool": self.pool, "levels": self.levels, "mode": self.mode} | self._recipe

    def forward(self, images: Tensor | Sequence[Tensor]) -> Tensor:
        """Return logits [N, K] of one tensor as `features` takes it, or of several, with batch norm over all."""
        if isinstance(images, Tensor):
            return self.classify_map(self.features(images))
        pooled = zip(
            *(spatial_pyramid_levels2d(found, self.levels, self.mode) for found in self._maps(images)), strict=True
        )
        logits: Tensor = self.head([torch.cat(level) for level in pooled])
        return logits

    def classify_map(self, features: Tensor) -> Tensor:
        """Return logits [N, K] of feature maps [N, C, h, w], whole or parts of them."""
        logits: Tensor = self.head(spatial_pyramid_levels2d(features, self.levels, self.mode))
        return logits

    def classify_regions(self, images: Tensor | Sequence[Tensor], boxes: Sequence[Tensor]) -> Tensor:
        """Return logits [sum K_i, K] of regions of images, in one pass of the trunk; boxes as `region_pyramid_pool2d`.

        Of several tensors, as `forward` takes them, the boxes are those of all their images in order.

        Raises:
            ValueError: a box that is invalid or not inside its image; ``pool="fixed"``.
        """
        if self.pool == "fixed":
            raise ValueError("pool='fixed' takes images of one size and no regions; crop them, or use pool='spp'")
        tensors = [images] if isinstance(images, Tensor) else list(images)
        starts = [0, *accumulate(map(len, tensors[:-1]))]
        shares = map(slice, starts, [*starts[1:], None])
        pooled = []
        for features, some, own in zip(self._maps(tensors), tensors, shares, strict=True):
            how = (self.levels, self.trunk.stride, self.mode, (some.shape[2], some.shape[3]))
            pooled.append(region_pyramid_pool2d(features, boxes[own], *how))
        lengths = [self.trunk.channels * n * n for n in self.levels]
        # A few hundred at a time stay in the CPU cache, which halves the time.
        return torch.cat([self.head(torch.split(some, lengths, 1)) for some in torch.split(torch.cat(pooled), 256)])

    def normalize(self, images: Tensor) -> Tensor:
        """Return uint8 images [N, 3, H, W] as `forward` takes them: float, less ``mean``, over ``std``."""
        mean, std = (torch.tensor(v, device=images.device).view(3, 1, 1) * 255 for v in (self.mean, self.std))
        return images.to(torch.float32, copy=True).sub_(mean).div_(std)

    def features(self, images: Tensor) -> Tensor:
        """Return the feature map [N, C, h, w] of images [N, 3, H, W], float, normalised with ``mean`` and ``std``.

        Raises:
            TypeError: images that are not of a float type.
            ValueError: another shape, a side below ``smallest``, or with ``pool="fixed"`` another size.
        """
        features: Tensor = self.trunk(self._checked(images))
        return features

    def _maps(self, images: Sequence[Tensor]) -> list[Tensor]:
        return joint(self.trunk, [self._checked(some) for some in images])

    def _checked(self, images: Tensor) -> Tensor:
        if not images.is_floating_point():
            raise TypeError(f"images are {images.dtype}; scale them to 0..1 and normalise them with .mean and .std")
        if images.ndim != 4 or images.shape[1] != 3:
            raise ValueError(f"images are {list(images.shape)}; expected [N, 3, H, W]")
        height, width = images.shape[2:]
        if height < self.smallest or width < self.smallest:
            raise ValueError(
                f"images are {height}x{width} pixels (H x W); the smallest side for this trunk is {self.smallest}"
            )
        if self.input_size is not None and (height, width) != self.input_size:
            fixed = "{}x{}".format(*self.input_size)
            raise ValueError(f"pool='fixed' takes images of {fixed} pixels (H x W) only, got {height}x{width}")
        return pad_to_stride(images, self.trunk.stride) if self.align == "pad" and self.input_size is None else images

    def predict(self, images: object, scale: int | None = None, top: int = 5) -> Any:
        """Return the most likely classes of images, preprocessed and formatted as in ``sppcls predict --json``.

        Args:
            images: A file, a Pillow image or an array [H, W, 3] uint8 RGB; or a folder, a pattern like ``*.jpg``, or a
                list of any of these.
            scale: Shorter side in pixels; by default the largest training scale.
            top: How many classes to return.

        Returns:
            ``{"path", "label", "top": [{"label", "probability"}, ...]}``, or a list of these where several images may
            be meant; the path is None if it is not a file.

        Raises:
            ConfigError: A scale that it cannot take.
            DataError: An image that cannot be read.
            TypeError: Images that are none of the above.
        """
        # Imported here for convenience: models otherwise know nothing about files and do not import Pillow.
        return import_module("sppcls.deploy.predict").labels(self, images, scale, top)

    def freeze_trunk(self, norms: bool = True) -> None:
        """Train only the head: no gradients for the trunk, and its batch norm stays in eval mode after `train`.

        Without ``norms`` its normalisation layers are trained as well.
        """
        self.trunk.requires_grad_(False)
        self.frozen = norms
        if norms:
            self.trunk.eval()
        else:
            layers = [layer for layer in self.trunk.modules() if isinstance(layer, _NORMS)]
            nn.ModuleList(layers).requires_grad_(True)

    def train(self, mode: bool = True) -> Self:
        """Set the training mode of the parts that are not frozen."""
        super().train(mode)
        if self.frozen:
            self.trunk.eval()
        return self


def pad_to_stride(images: Tensor, stride: int) -> Tensor:
    """Return images [N, 3, H, W] with their last row and column repeated up to the next multiple of ``stride``.

    >>> pad_to_stride(torch.arange(3.0).expand(1, 3, 1, 3), 4)[0, 0, :2].tolist()
    [[0.0, 1.0, 2.0, 2.0], [0.0, 1.0, 2.0, 2.0]]
    """
    below, right = -images.shape[2] % stride, -images.shape[3] % stride
    if not torch.compiler.is_exporting() and below == right == 0:
        return images
    return F.pad(images, (0, right, 0, below), mode="replicate")
