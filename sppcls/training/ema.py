"""The moving average of the weights that ``optim.ema`` asks for."""

from collections.abc import Callable

import torch
from torch import Tensor


def ramped_average(decay: float) -> Callable[[Tensor, Tensor, Tensor | int], Tensor]:
    """Return (average, current, t) -> average after update t, with decay ``min(decay, (1 + t) / (10 + t))``.

    A constant decay near 1 would keep much of the first, untrained weights for as long as a short run lasts.

    >>> average = ramped_average(0.9)
    >>> [round(float(average(torch.ones(1), torch.zeros(1), t)), 3) for t in (1, 10, 79, 80, 1000)]
    [0.182, 0.55, 0.899, 0.9, 0.9]
    """

    def average(before: Tensor, current: Tensor, updates: Tensor | int) -> Tensor:
        done = torch.as_tensor(updates)  # stays on its device: to ask for its value would wait for the device
        kept = ((1 + done) / (10 + done)).clamp(max=decay)
        return before * kept + current * (1 - kept)

    return average
