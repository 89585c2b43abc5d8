"""``sppcls export``: write a trained network to files, verified against the checkpoint."""

import copy
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from sppcls.data.geometry import PIXELS
from sppcls.deploy.graph import OPSET, check_regions, save_pt2, trace, write_onnx
from sppcls.deploy.parity import Proof, model_card, proof_table, prove
from sppcls.deploy.runtime import open_model
from sppcls.errors import ConfigError, SppclsError, did_you_mean
from sppcls.files import checked_path, to_json, write_bytes, write_json, write_text
from sppcls.model_files import KEY, WEIGHTS, Model, describe, load
from sppcls.process import signals_held
from sppcls.signature import Signature
from sppcls.terminal import say, show, table

FILES = {"safetensors": WEIGHTS, "onnx": "model.onnx", "pt2": "model.pt2"}
OWN = (*FILES.values(), "config.json", "README.md", "parity.json")


def export(
    model: str,
    formats: Sequence[str],
    out: str | None = None,
    *,
    input: str = "normalized",
    probabilities: bool = False,
    half: bool = False,
    regions: bool = False,
    force: bool = False,
    checkpoint: str | None = None,
) -> Path:
    """Write a model in each format into a folder, verify each file, and return the folder.

    Raises:
        ConfigError: No such model or format, or an output folder that already exists or cannot be written.
        SppclsError: A file's output differs from the network's; then nothing is written.
    """
    for name in formats:
        if name not in FILES:
            raise ConfigError(f"--format {name!r} is unknown{did_you_mean(name, FILES)}")
    if (regions and "onnx" not in formats) or (
        (input != "normalized" or probabilities) and set(formats) == {"safetensors"}
    ):
        raise ConfigError("--regions needs onnx, --normalize and --probabilities need onnx or pt2; add one to --format")
    source = checked_path(model, "model")
    beside = source / "export" if source.is_dir() else source.with_name(f"{source.stem}-export")
    folder = beside if out is None else checked_path(out, "--out")
    _check_free(folder, force)
    loaded = load(model, checkpoint)
    signature = replace(loaded.network.signature, half=half)
    if signature.pixels > PIXELS:
        raise ConfigError(f"{model}: one image has {signature.pixels:,} pixels, at most {PIXELS:,} can be verified")
    graph = replace(signature, input=input, probabilities=probabilities)
    signatures = {"safetensors": signature, "onnx": replace(graph, regions=regions), "pt2": graph}
    if regions:
        check_regions(loaded.network, signature)
    with _staged(folder) as stage:
        proofs = {name: _proved(stage / FILES[name], name, loaded, signatures[name]) for name in dict.fromkeys(formats)}
        write_json(stage / "parity.json", {"model": Path(model).resolve().name, "formats": proofs})
        if "safetensors" in formats:
            write_json(stage / "config.json", _config(loaded, signature))
            write_text(stage / "README.md", model_card(loaded, Path(model), proofs))
    say(f"model: {loaded}")
    show(table("Verified against the checkpoint", *proof_table(proofs)), f"exported to {folder}")
    return folder


def _check_free(folder: Path, force: bool) -> None:
    if folder.is_symlink():  # its files are replaced and removed, and it may come from a stranger
        raise ConfigError(f"--out {folder} is a link; name its target, or a new folder")
    try:
        names = {path.name for path in folder.iterdir()} if folder.exists() else set()
    except OSError as error:
        raise ConfigError(f"--out {folder}: {error.strerror}; name a new folder") from None
    if names and not force:
        raise ConfigError(f"--out {folder} already exists; name another folder, or add --force")
    if names & set(OWN) and "parity.json" not in names:
        other = min(names & set(OWN))
        raise ConfigError(f"--out {folder} contains {other} and is not an export; --force replaces only exports")


@contextmanager
def _staged(folder: Path) -> Iterator[Path]:
    """Yield a staging folder next to ``folder``; its files are moved into place once all are written."""
    stage = None
    try:
        with signals_held():  # which would leave the folder between its making and its name here
            stage = _beside(folder)
        yield stage
        if not folder.exists():
            stage.chmod(0o755)
            stage.replace(folder)
            return
        for name in OWN:
            if (stage / name).exists():
                (stage / name).replace(folder / name)
            else:
                (folder / name).unlink(missing_ok=True)  # left from another model
    except OSError as error:
        raise SppclsError(f"--out {folder}: {error.strerror or error}; nothing was written") from None
    finally:
        if stage:
            shutil.rmtree(stage, ignore_errors=True)


def _beside(folder: Path) -> Path:
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        return Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    except OSError as error:
        raise ConfigError(f"--out {folder}: {error.strerror}; name a writable folder") from None


def _proved(path: Path, name: str, loaded: Model, signature: Signature) -> Proof:
    _write(path, name, loaded, signature)
    found = prove(path, loaded.network, open_model(path, trust=True), signature.half)
    worst = found["largest_difference"]
    if not worst <= found["tolerance"]:
        row = max(found["sizes"], key=lambda row: row["difference"])
        size = "{batch} x 3 x {height} x {width}".format(**row)
        raise SppclsError(
            f"{path.name}: output differs from the checkpoint's, logits by {worst:.2g} at {size}, allowed: "
            f"{found['tolerance']:g}; nothing was written"
        )
    if name == "onnx":
        found["opset"] = OPSET
    return found


def _write(path: Path, name: str, loaded: Model, signature: Signature) -> None:
    network = copy.deepcopy(loaded.network).half() if signature.half else loaded.network
    description = describe(network, None, loaded.metrics, signature)
    if name == "safetensors":
        from safetensors.torch import save

        tensors = {name: tensor.contiguous() for name, tensor in network.state_dict().items()}
        write_bytes(path, save(tensors, {"format": "pt", KEY: to_json(description)}))
    elif name == "onnx":
        write_onnx(trace(network, signature), signature, description, path)
    else:
        save_pt2(trace(network, signature), description, path)


def _config(loaded: Model, signature: Signature) -> dict[str, object]:
    """Return config.json in the Hub's layout: the description, and the names that the Hub looks for."""
    labels = dict(enumerate(signature.classes))
    described = describe(loaded.network, loaded.spec, None, signature)
    if described["spec"]:
        described["spec"]["data"]["root"] = None  # a path of this machine
    return {
        "library_name": "sppcls",
        "model_type": "sppcls",
        "architectures": ["SppClassifier"],
        "id2label": labels,
        "label2id": {label: index for index, label in labels.items()},
        KEY: described,
    }
