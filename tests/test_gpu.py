"""What only a CUDA device can show: run with ``pytest -m gpu``."""

import pytest
import torch

from sppcls.ops import spatial_pyramid_pool2d

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]


@pytest.mark.parametrize("levels", [(6, 3, 2, 1), (4, 2, 1)])
def test_pooling_on_cuda_equals_the_cpu_and_is_deterministic(levels):
    x = torch.randn(4, 32, 13, 17, requires_grad=True)
    there = x.detach().cuda().requires_grad_()
    torch.use_deterministic_algorithms(True)
    try:
        ours, theirs = spatial_pyramid_pool2d(x, levels), spatial_pyramid_pool2d(there, levels)
        ours.square().sum().backward()
        theirs.square().sum().backward()
    finally:
        torch.use_deterministic_algorithms(False)
    assert torch.equal(ours, theirs.cpu())
    assert torch.allclose(x.grad, there.grad.cpu())
