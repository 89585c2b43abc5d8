"""Whether an exported file answers as the network that it was made from, at sizes that it was not traced at."""

from typing import Any

import numpy as np
import torch

from sppcls.deploy.graph import proof_side, traced_size
from sppcls.deploy.runtime import Boxes, Floats, Images, Runtime, softmax
from sppcls.errors import SppclsError
from sppcls.models.classifier import SppClassifier
from sppcls.signature import Signature

TOLERANCE = 1e-4
HALF_TOLERANCE = 0.05


def parity_sizes(signature: Signature) -> list[tuple[int, int, int]]:
    """Return (batch, H, W) of ten inputs: smallest, square, wide, tall, odd, largest (twice the scale, at 4:3).

    A ``fixed`` network has one size only, and is run at several batches.
    """
    if signature.input_size:
        return [(batch, *signature.input_size) for batch in (1, 3, 2, 5)]
    least, side = signature.smallest, proof_side(signature)
    sizes = [
        (least, least),
        (least, 2 * least + 1),
        (side, side),
        (side, side * 4 // 3),
        (side * 3 // 2, side),
        (side + 1, side + 17),
        (2 * side - 3, max(side // 2, least)),
        (max(side * 3 // 4, least), side * 3),
        (side * 2, side * 8 // 3),
        (side * 5 // 4 + 2, side * 5 // 4 + 2),
    ]
    return [(1 if n % 2 == 0 else 3, *size) for n, size in enumerate(sizes) if size != traced_size(signature)]


def prove(name: str, network: SppClassifier, candidate: Runtime) -> dict[str, Any]:
    """Run a file and its network on the same images of every size, and boxes where a graph takes them.

    Where ``candidate`` gives probabilities, they are compared with the softmax of the network's logits. Raises
    ``SppclsError`` at a size that the file does not run at.
    """
    signature, rows = candidate.signature, []
    for batch, height, width in parity_sizes(signature):
        images, boxes = _images(batch, height, width), _boxes(height, width)
        try:
            pixels, got = network.normalize(torch.from_numpy(images)), [candidate.run(images)]
            with torch.inference_mode():
                want = [network(pixels)]
                if signature.regions and candidate.regions:
                    want.append(network.classify_regions(pixels[:1], [torch.from_numpy(boxes)]))
                    got.append(candidate.regions(images[:1], boxes))
        except Exception as error:  # whatever its engine raises
            line = " ".join(str(error).split())[:200]
            raise SppclsError(
                f"{name} does not run at {batch} x 3 x {height} x {width} ({line}); nothing is written"
            ) from None
        row = _compared(torch.cat(want).numpy(), np.concatenate(got), signature.probabilities)
        rows.append({"batch": batch, "height": height, "width": width} | row)
    return {
        "largest_difference": float(np.max([row["difference"] for row in rows])),
        "top1_agreement": sum(row["agreement"] * row["batch"] for row in rows) / sum(row["batch"] for row in rows),
        "tolerance": HALF_TOLERANCE if signature.half else TOLERANCE,
        "sizes": rows,
    }


def _compared(want: Floats, got: Floats, probabilities: bool) -> dict[str, float]:
    want = softmax(want) if probabilities else want
    agreement = float((want.argmax(1) == got.argmax(1)).mean())
    return {"difference": float(np.abs(want - got).max()), "agreement": agreement}


def _images(batch: int, height: int, width: int) -> Images:
    """Return images with structure at two scales: of noise alone a network says the same whatever the size."""
    rng = np.random.default_rng([batch, height, width])
    patches = rng.integers(0, 256, (batch, 3, -(-height // 16), -(-width // 16)))
    coarse = patches.repeat(16, 2).repeat(16, 3)[:, :, :height, :width]
    return (coarse + rng.integers(-40, 41, coarse.shape)).clip(0, 255).astype(np.uint8)


def _boxes(height: int, width: int) -> Boxes:
    """Return fifty boxes, of every size from a pixel's to the image's."""
    rng = np.random.default_rng([height, width])
    size = np.array([width, height])
    start = rng.uniform(0, size, (50, 2)) * (rng.random((50, 2)) < 0.8)
    return np.concatenate([start, start + rng.random((50, 2)) ** 2 * (size - start).clip(1e-3)], 1).clip(
        0, [*size, *size]
    )
