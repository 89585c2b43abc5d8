"""What a data set is to the plan and the loader: sizes and targets known beforehand, pixels on demand.

There are `FileSource` (files), `ArraySource` (images of one size in memory) and `Subset` in `sppcls.data.files`,
`DatasetSource` (any map-style data set) in `sppcls.data.datasets`, and any class of yours with these attributes.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    import torch


class Source(Protocol):
    """Labelled images whose sizes are known without reading pixels.

    Attributes:
        classes: Class names; a target is a position in it.
        targets: [N] int64.
        sizes: [N, 2] int64, the (H, W) of each image as a person sees it (EXIF orientation applied).
        names: [N] a name an image: its path, or ``shapes/train/17``.
    """

    classes: tuple[str, ...]
    targets: npt.NDArray[np.int64]
    sizes: npt.NDArray[np.int64]
    names: Sequence[str]

    def read(self, index: int, min_short: int | None = None) -> "torch.Tensor":
        """Return image ``index`` as [3, H, W] uint8 RGB.

        ``min_short`` allows a decoder to return a smaller image, of the same content and aspect, whose shorter
        side is still at least that many pixels. Raises ``DataError`` naming the file where it cannot be read.
        """
        ...
