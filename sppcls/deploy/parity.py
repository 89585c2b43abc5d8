"""Verification of an exported file against its network, and the model card."""

import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import NotRequired, TypedDict

import numpy as np
import torch

from sppcls.deploy.graph import proof_side, traced_size
from sppcls.deploy.runtime import Boxes, Images, Runtime, softmax
from sppcls.errors import SppclsError
from sppcls.files import read_json
from sppcls.model_files import Model
from sppcls.models.classifier import SppClassifier
from sppcls.models.norm import ScaleNorm2d
from sppcls.run_folder import STATUS, Summary, read_summary
from sppcls.signature import Signature
from sppcls.terminal import ece_column, markdown, markdown_text, printable

TOLERANCE = 1e-4
HALF_TOLERANCE = 0.05


class Compared(TypedDict):
    """How a file's output differs from the network's at one size."""

    batch: int
    height: int
    width: int
    difference: float
    agreement: float


class Proof(TypedDict):
    """How close a file's output is to the network's, over all sizes."""

    file: str
    bytes: int
    largest_difference: float
    top1_agreement: float
    tolerance: float
    sizes: list[Compared]
    opset: NotRequired[int]


def parity_sizes(signature: Signature) -> list[tuple[int, int, int]]:
    """Return (batch, H, W) of ten inputs: smallest, square, wide, tall, odd, largest (twice the scale, at 4:3).

    A ``fixed`` network has only one size and is run at several batch sizes.
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


def prove(path: Path, network: SppClassifier, candidate: Runtime, half: bool = False) -> Proof:
    """Run a file and its network on the same images of every size, and on boxes if a graph takes them.

    ``half`` says that its weights were rounded to float16. Where ``candidate`` gives probabilities, they are compared
    with the softmax of the network's logits. Raises ``SppclsError`` at a size that the file does not run at.
    """
    signature, rows = candidate.signature, list[Compared]()
    for batch, height, width in [*parity_sizes(signature), *_sizes_of_norms(network, signature)]:
        images, boxes = _images(batch, height, width), _boxes(height, width)
        try:
            pixels, got = network.normalize(torch.from_numpy(images)), [candidate.run(images)]
            with torch.inference_mode():
                want = [network(pixels)]
                if signature.regions and candidate.regions:
                    want.append(network.classify_regions(pixels[:1], [torch.from_numpy(boxes)]))
                    got.append(candidate.regions(images[:1], boxes))
        except Exception as error:  # any error of its engine
            line = " ".join(str(error).split())[:200]
            raise SppclsError(
                f"{path.name} does not run at {batch} x 3 x {height} x {width} ({line}); nothing was written"
            ) from None
        wanted, found = torch.cat(want).numpy(), np.concatenate(got)
        wanted = softmax(wanted) if signature.probabilities else wanted
        row: Compared = {
            "batch": batch,
            "height": height,
            "width": width,
            "difference": float(np.abs(wanted - found).max()),
            "agreement": float((wanted.argmax(1) == found.argmax(1)).mean()),
        }
        rows.append(row)
    return {
        "file": path.name,
        "bytes": path.stat().st_size,
        "largest_difference": float(np.max([row["difference"] for row in rows])),
        "top1_agreement": sum(row["agreement"] * row["batch"] for row in rows) / sum(row["batch"] for row in rows),
        "tolerance": HALF_TOLERANCE if half else TOLERANCE,
        "sizes": rows,
    }


def _sizes_of_norms(network: SppClassifier, signature: Signature) -> list[tuple[int, int, int]]:
    """Return a size at each scale that has batch norm of its own, up to the largest of `parity_sizes`."""
    scales = {scale for layer in network.modules() if isinstance(layer, ScaleNorm2d) for scale in layer.scales}
    return [(1, s, s + 9) for s in sorted(scales) if signature.smallest <= s <= 2 * proof_side(signature)]


def _images(batch: int, height: int, width: int) -> Images:
    """Return images with structure at two scales: for pure noise a network's output is the same at any size."""
    rng = np.random.default_rng([batch, height, width])
    patches = rng.integers(0, 256, (batch, 3, -(-height // 16), -(-width // 16)))
    coarse = patches.repeat(16, 2).repeat(16, 3)[:, :, :height, :width]
    return (coarse + rng.integers(-40, 41, coarse.shape)).clip(0, 255).astype(np.uint8)


def _boxes(height: int, width: int) -> Boxes:
    """Return fifty boxes, of all sizes from one pixel to the whole image."""
    rng = np.random.default_rng([height, width])
    size = np.array([width, height])
    start = rng.uniform(0, size, (50, 2)) * (rng.random((50, 2)) < 0.8)
    return np.concatenate([start, start + rng.random((50, 2)) ** 2 * (size - start).clip(1e-3)], 1).clip(
        0, [*size, *size]
    )


_LIMITS = """- It assigns one of its {count} classes to every image, even to images of something else.
- It was trained at {scales} pixels (shorter side). It accepts other sizes, with lower accuracy.
- Its figures are for those images. It is untested on other cameras, places or people; measure with
  `sppcls evaluate MODEL --data DIR` before you rely on it."""


def model_card(loaded: Model, model: Path, proofs: Mapping[str, Proof]) -> str:
    """Return README.md of an exported folder, with the figures of the run if ``model`` belongs to one."""
    run = model if model.is_dir() else model.parent.parent
    summary, status = read_summary(run), read_json(run / STATUS)
    made = shlex.join(Path(word).name if "/" in word else word for word in sys.argv)  # no path of this machine
    commands = "\n".join(printable(str(line)).replace("```", "") for line in (status.get("command"), made) if line)
    signature, recipe = loaded.network.signature, loaded.network.recipe or {}
    shape = f"{recipe.get('backbone')}, pool {signature.pool}, levels {', '.join(map(str, loaded.network.levels))}"
    scales = ", ".join(map(str, signature.scales)) or "unknown"
    names = markdown_text(", ".join(signature.classes[:20])) + (", ..." if len(signature.classes) > 20 else "")
    parts = [
        "---\nlibrary_name: sppcls\npipeline_tag: image-classification\ntags: [image-classification, sppcls]\n---",
        f"# {run.resolve().name or 'model'}",
        f"An image classifier for images of any size and aspect ({shape}).",
        f"## Classes\n\n{len(signature.classes)}: {names}",
        f"## Data\n\n{_data(loaded, summary)}",
        f"## Accuracy\n\n{_accuracy(summary, loaded)}",
        "## Limits\n\n" + _LIMITS.format(count=len(signature.classes), scales=scales),
        f"## Files\n\nEach was verified against the checkpoint (parity.json):\n\n{markdown(*proof_table(proofs))}",
        f"## Use\n\n```\nsppcls predict FOLDER IMAGE...\n```\n\n```python\n{_USE}```",
        f"## Commands\n\n```\n{commands}\n```",
    ]
    return "\n\n".join(parts) + "\n"


_USE = """from sppcls import load_model
model = load_model("FOLDER")
logits = model(model.normalize(images))  # uint8 [N, 3, H, W]
"""


def _data(loaded: Model, summary: Summary) -> str:
    if loaded.spec is None:
        return "Unknown: it was not trained with `train.py`."
    images = f"{summary['train_images']} training and {summary['val_images']} validation images, " if summary else ""
    return f"`{loaded.spec.data.name}`: {images}fitted with `fit={loaded.spec.data.fit}`."


def _accuracy(summary: Summary, loaded: Model) -> str:
    if not summary.get("scales"):
        known = [f"- {name}: {value:.4g}" for name, value in sorted(loaded.metrics.items())]
        return "\n".join(["At the epoch it was saved:", "", *known]) if known else "Not measured."
    rows = [
        (f"{row['scale']}{' (trained)' if row['trained'] else ''}", f"{row['acc1']:.1%}", f"{row['ece']:.3f}")
        for row in summary["scales"]
    ]
    lines = markdown(("test scale", "top-1", ece_column(summary)), rows)
    gap = summary.get("generalization_gap")
    said = "" if gap is None else f"\n\nGeneralization gap at {summary['val_scale']}: {gap * 100:+.1f} points."
    return f"On the validation images, with the run's last checkpoint:\n\n{lines}{said}"


def proof_table(proofs: Mapping[str, Proof]) -> tuple[tuple[str, ...], list[list[str]]]:
    """Return columns and one row per file: how close its output is to the checkpoint's."""
    rows = [
        [
            found["file"],
            f"{found['bytes'] / 1e6:.1f}",
            f"{found['largest_difference']:.1e}",
            f"{found['tolerance']:g}",
            f"{found['top1_agreement']:.1%}",
            str(len(found["sizes"])),
        ]
        for found in proofs.values()
    ]
    return ("file", "MB", "largest difference", "allowed", "top-1 agreement", "sizes"), rows
