"""Batch norm a scale: one network whose statistics, and weights if wanted, are those of the size it is looking at."""

from bisect import bisect_left
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sppcls.errors import ConfigError
from sppcls.models.parts import Parts

MOST = 64  # sets of a network: a file of a few bytes must not ask for much memory


class Seen:
    """The (H, W) of the images that a network looks at, which all its norms share."""

    def __init__(self) -> None:
        self.size: tuple[int, int] = (1, 1)

    def look(self, images: Tensor | Parts) -> None:
        """Note the size of [N, 3, H, W]; of several tensors, which share a scale, that with the shortest side."""
        tensors = images.tensors if isinstance(images, Parts) else (images,)
        sizes = [(tensor.shape[2], tensor.shape[3]) for tensor in tensors]
        self.size = sizes[0] if len(sizes) == 1 else min(sizes, key=min)


class ScaleNorm2d(nn.BatchNorm2d):
    """S batch norms in one, each as `torch.nn.BatchNorm2d`, of which the images' shorter side chooses one.

    It is the one whose scale is nearest in ratio, so that it depends on the tensor's shape alone. In training every set
    may be chosen; in eval mode those that have been trained, or all of a network whose norm was never trained.

    Args:
        like: The norm that every set starts as, or the sets that each set starts as the nearest of.
        scales: Of the S sets: ascending shorter sides in pixels.
        seen: The size of the images, which the network notes at the start of its forward pass.
        apart: A weight and a bias for each set, [S, C], not [C].

    Source: private norm as in Wang et al., "Resolution Switchable Networks", ECCV 2020.
    """

    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor

    def __init__(self, like: nn.BatchNorm2d, scales: Sequence[int], seen: Seen, *, apart: bool = True) -> None:
        super().__init__(like.num_features, like.eps, like.momentum, like.affine)
        self.scales, self.seen, self.apart = tuple(scales), seen, apart
        rows = [like.nearest(scale) if isinstance(like, ScaleNorm2d) else 0 for scale in self.scales]
        self.running_mean, self.running_var = (_stacked(of, rows) for of in (like.running_mean, like.running_var))
        # Statistics from before are those of no scale here, so as long as no set is trained any may be chosen.
        self.num_batches_tracked = torch.zeros(len(rows), dtype=torch.long, device=self.running_mean.device)
        for name in ("weight", "bias") if like.affine else ():
            old = getattr(like, name)
            new = _stacked(old, rows) if apart else old.detach().clone()
            setattr(self, name, nn.Parameter(new, requires_grad=old.requires_grad))
        self.train(like.training)

    def train(self, mode: bool = True) -> Self:
        """Set the mode, and with it which sets may be chosen."""
        super().train(mode)
        self._open()
        return self

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self._open()

    def _open(self) -> None:
        trained: list[int] = self.num_batches_tracked.nonzero().flatten().tolist()
        every = list(range(len(self.scales)))
        # By mode: trainers set the mode without `train` when they return from validation.
        self._sets = {True: every, False: trained or every}
        # The middle of two scales in ratio, squared: so it is compared in whole numbers, here and in an export.
        self._between = {
            mode: [a * b for a, b in pairwise(self.scales[i] for i in sets)] for mode, sets in self._sets.items()
        }

    def choose_trained(self) -> None:
        """Choose in training, too, only what may be chosen in eval mode: of no other set are the weights of use."""
        self._sets[True], self._between[True] = self._sets[False], self._between[False]

    def nearest(self, side: int) -> int:
        """Return the set for images of this shorter side; in the middle the smaller."""
        return self._sets[self.training][bisect_left(self._between[self.training], side * side)]

    def forward(self, input: Tensor) -> Tensor:
        """Return the map [N, C, H, W] normalised, and in training renew the statistics of the chosen set."""
        if torch.compiler.is_exporting() and self._between[False]:
            return self._of_any_size(input)
        chosen, momentum = self.nearest(min(self.seen.size)), self.momentum
        if self.training:
            self.num_batches_tracked[chosen] += 1
            if momentum is None:
                momentum = 1 / float(self.num_batches_tracked[chosen])
        weight, bias = (one[chosen] if one is not None and one.ndim == 2 else one for one in (self.weight, self.bias))
        mean, var = self.running_mean[chosen], self.running_var[chosen]
        return F.batch_norm(input, mean, var, weight, bias, self.training, momentum or 0.0, self.eps)

    def _of_any_size(self, input: Tensor) -> Tensor:
        """Return the same in eval mode, as operators that choose the set where the graph runs."""
        side = torch.sym_min(*self.seen.size)
        above = (torch.tensor(self._between[False], device=input.device) < side * side).sum().reshape(1)
        chosen = torch.tensor(self._sets[False], device=input.device).index_select(0, above)
        mean, var, weight, bias = (
            one.index_select(0, chosen).squeeze(0) if one is not None and one.ndim == 2 else one
            for one in (self.running_mean, self.running_var, self.weight, self.bias)
        )
        return F.batch_norm(input, mean, var, weight, bias, False, 0.0, self.eps)

    def extra_repr(self) -> str:
        """Return the layer's facts."""
        return f"{self.num_features}, scales={self.scales}, apart={self.apart}"


def norm_per_scale(net: nn.Module, scales: Sequence[int], *, apart: bool = True, name: str = "this network") -> Seen:
    """Give every ``BatchNorm2d`` of a network sets for ``scales``, in place; return what must `Seen.look` at images.

    Raises:
        ConfigError: No scale or too many, or a network without batch norm.

    >>> seen = norm_per_scale(net := nn.Sequential(nn.BatchNorm2d(3)), (64, 32))
    >>> seen.size, net[0].scales, net[0].nearest(45), net[0].nearest(46)
    ((1, 1), (32, 64), 0, 1)
    """
    scales, seen = sorted(set(scales)), Seen()
    if not 1 <= len(scales) <= MOST:
        raise ConfigError(f"model.norm_per_scale: got {len(scales)} scales; allowed: 1 to {MOST}, such as [32,64,128]")
    found = {path: layer for path, layer in net.named_modules() if _has_statistics(layer)}
    if not found or "" in found:
        raise ConfigError(
            f"model.norm_per_scale: {name} has no batch norm; leave it out, or use model.norm=batch where there is one"
        )
    for path, layer in found.items():
        parent, _, child = path.rpartition(".")
        setattr(net.get_submodule(parent), child, ScaleNorm2d(layer, scales, seen, apart=apart))
    return seen


def has_batch_norm(net: nn.Module) -> bool:
    """Return whether a network has a batch norm that can be given sets."""
    return any(map(_has_statistics, net.modules()))


def _has_statistics(layer: nn.Module) -> bool:
    return isinstance(layer, nn.BatchNorm2d) and layer.running_mean is not None


def _stacked(of: Tensor | None, rows: Sequence[int]) -> Tensor:
    """Return [S, C] of one tensor [C], which all share, or of [S', C] these rows."""
    assert of is not None
    return (of[list(rows)] if of.ndim == 2 else of.expand(len(rows), -1)).detach().clone()
