"""Multi-scale image classification with spatial pyramid pooling.

``import sppcls`` needs only torch; everything that needs more is imported on first use.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sppcls.model_files import load_model
    from sppcls.models.classifier import SppClassifier
    from sppcls.ops import SpatialPyramidPool2d, region_pyramid_pool2d, spatial_pyramid_pool2d
    from sppcls.report.run_page import plots
    from sppcls.training.datamodule import MultiScaleDataModule
    from sppcls.training.module import LitSppClassifier
    from sppcls.training.run import train

_HOMES = {
    "SpatialPyramidPool2d": "sppcls.ops",
    "region_pyramid_pool2d": "sppcls.ops",
    "spatial_pyramid_pool2d": "sppcls.ops",
    "SppClassifier": "sppcls.models.classifier",
    "load_model": "sppcls.model_files",
    "plots": "sppcls.report.run_page",
    "LitSppClassifier": "sppcls.training.module",
    "MultiScaleDataModule": "sppcls.training.datamodule",
    "train": "sppcls.training.run",
}

__all__ = [
    "LitSppClassifier",
    "MultiScaleDataModule",
    "SpatialPyramidPool2d",
    "SppClassifier",
    "load_model",
    "plots",
    "region_pyramid_pool2d",
    "spatial_pyramid_pool2d",
    "train",
]


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'sppcls' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return [*__all__, *(name for name in globals() if name.startswith("__"))]
