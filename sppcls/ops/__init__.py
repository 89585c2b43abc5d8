"""Pooling operations on torch tensors; needs only torch."""

from sppcls.ops.bins import bin_edges, bins, check_levels, sliding_window
from sppcls.ops.pyramid import SpatialPyramidPool2d, spatial_pyramid_levels2d, spatial_pyramid_pool2d
from sppcls.ops.regions import region_cells, region_pyramid_pool2d

__all__ = [
    "SpatialPyramidPool2d",
    "bin_edges",
    "bins",
    "check_levels",
    "region_cells",
    "region_pyramid_pool2d",
    "sliding_window",
    "spatial_pyramid_levels2d",
    "spatial_pyramid_pool2d",
]
