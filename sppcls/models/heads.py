"""What classifies the pooled bins."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class LevelsHead(nn.Module):
    """One classifier per level, normalised separately so that none dominates; their logits are averaged."""

    def __init__(self, lengths: Sequence[int], classes: int, hidden: Sequence[int], dropout: float) -> None:
        super().__init__()
        self.levels = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(n), nn.Dropout(dropout), _layers(n, classes, hidden, dropout)) for n in lengths
        )

    def forward(self, bins: Sequence[Tensor]) -> Tensor:
        """Return logits [N, K] from one [N, C * n * n] per level."""
        return torch.stack([level(x) for level, x in zip(self.levels, bins, strict=True)]).mean(0)


class StackHead(nn.Module):
    """One stack of layers on all bins together, as in the paper (there ``hidden=(4096, 4096), dropout=0.5``)."""

    def __init__(self, lengths: Sequence[int], classes: int, hidden: Sequence[int], dropout: float) -> None:
        super().__init__()
        self.layers = _layers(sum(lengths), classes, hidden, dropout)

    def forward(self, bins: Sequence[Tensor]) -> Tensor:
        """Return logits [N, K] from one [N, C * n * n] per level."""
        logits: Tensor = self.layers(torch.cat(list(bins), 1))
        return logits


def _layers(inputs: int, outputs: int, hidden: Sequence[int], dropout: float) -> nn.Sequential:
    layers: list[nn.Module] = []
    for width in hidden:
        layers += [nn.Linear(inputs, width), nn.ReLU(inplace=True), nn.Dropout(dropout)]
        inputs = width
    return nn.Sequential(*layers, nn.Linear(inputs, outputs))


HEADS: dict[str, type[LevelsHead | StackHead]] = {"levels": LevelsHead, "stack": StackHead}
