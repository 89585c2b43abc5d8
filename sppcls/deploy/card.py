"""The model card: what a model is, what it was measured at, and what it is not good for."""

import json
import shlex
import sys
from pathlib import Path
from typing import Any

from sppcls.atomic import read_bytes
from sppcls.checkpoint import Model
from sppcls.terminal import ece_column, markdown, markdown_text, printable

_LIMITS = """- It says one of its {count} classes of any image, also of an image of none of them.
- It was trained at {scales} pixels (shorter side). At other sizes it answers too, and is less often right.
- Its figures are of those images. Of other cameras, places or people nothing is known; measure with
  `sppcls evaluate MODEL --data DIR` before you rely on it."""


def model_card(loaded: Model, model: Path, proofs: dict[str, Any]) -> str:
    """Return README.md of an exported folder, with the figures of the run that ``model`` is of, where it is one."""
    run = model if model.is_dir() else model.parent.parent
    summary, status = _read(run / "summary.json"), _read(run / "status.json")
    made = shlex.join(Path(word).name if "/" in word else word for word in sys.argv)  # no path of this machine
    commands = "\n".join(printable(str(line)).replace("```", "") for line in (status.get("command"), made) if line)
    signature, recipe = loaded.signature, loaded.network.recipe or {}
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
        f"## Files\n\nEach was run back against the checkpoint (parity.json):\n\n{markdown(*proof_table(proofs))}",
        f"## Use\n\n```\nsppcls predict FOLDER IMAGE...\n```\n\n```python\n{_USE}```",
        f"## How it was made\n\n```\n{commands}\n```",
    ]
    return "\n\n".join(parts) + "\n"


_USE = """from sppcls import load_model
model = load_model("FOLDER")
logits = model(model.normalize(images))  # uint8 [N, 3, H, W]
"""


def _read(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(read_bytes(path, 64 << 20))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _data(loaded: Model, summary: dict[str, Any]) -> str:
    if loaded.spec is None:
        return "Unknown: it was not trained by `train.py`."
    images = f"{summary['train_images']} training and {summary['val_images']} validation images, " if summary else ""
    return f"`{loaded.spec.data.name}`: {images}met by `fit={loaded.spec.data.fit}`."


def _accuracy(summary: dict[str, Any], loaded: Model) -> str:
    if not summary.get("scales"):
        known = [f"- {name}: {value:.4g}" for name, value in sorted(loaded.metrics.items())]
        return "\n".join(["Of the epoch that it was saved at:", "", *known]) if known else "Not measured."
    rows = [
        (f"{row['scale']}{' (trained)' if row['trained'] else ''}", f"{row['acc1']:.1%}", f"{row['ece']:.3f}")
        for row in summary["scales"]
    ]
    lines = markdown(("test scale", "top-1", ece_column(summary)), rows)
    gap = summary.get("generalization_gap")
    said = "" if gap is None else f"\n\nGeneralization gap at {summary['val_scale']}: {gap * 100:+.1f} points."
    return f"Validation images of the run's last checkpoint:\n\n{lines}{said}"


def proof_table(proofs: dict[str, Any]) -> tuple[tuple[str, ...], list[list[str]]]:
    """Return columns and a row a file: how near its answers are to the checkpoint's."""
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
