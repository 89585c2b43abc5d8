"""An exported graph in the place of the network that it was made from, to be measured as that is."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sppcls.checkpoint import Model
from sppcls.deploy.runtime import Runtime, open_model


class GraphNetwork(nn.Module):
    """Log probabilities [N, K] of uint8 images [N, 3, H, W], with what `evaluate` asks a network for; on the CPU."""

    def __init__(self, runtime: Runtime) -> None:
        super().__init__()
        self.runtime = runtime
        for name in ("classes", "scales", "pool", "smallest", "input_size", "mean", "std"):
            setattr(self, name, getattr(runtime.signature, name))
        self.place = nn.Parameter(torch.zeros(0), requires_grad=False)  # says which device it is on

    def normalize(self, images: Tensor) -> Tensor:
        """Return the images as they are: the runtime prepares them."""
        return images

    def forward(self, images: Tensor) -> Tensor:
        """Return log probabilities, at least those of the smallest float32."""
        said = torch.from_numpy(self.runtime.probabilities(images.contiguous().numpy()))
        return said.clamp(min=torch.finfo(torch.float32).tiny).log()


def opened_graph(file: Path, device: str) -> Model:
    """Return an .onnx or .pt2 file as `sppcls.checkpoint.load` returns a checkpoint."""
    runtime = open_model(file, device)
    network: Any = GraphNetwork(runtime)
    return _GraphModel(network, runtime.signature, None, {}, file)


class _GraphModel(Model):
    def __str__(self) -> str:
        return str(self.file)
