"""Imports go down the layers, and what is heavy or rare is imported late."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "sppcls"
# Each room and what it may import of the package besides itself; `errors` is everyone's.
MAY_IMPORT = {
    "ops": set(),
    "models": {"ops", "signature"},
    "data": set(),
    "spec": {"settings", "training_settings", "wrong_values"},
    "wrong_values": set(),
    "settings": set(),
    "training_settings": {"settings"},
    "signature": set(),
    "build": {"models", "data", "spec", "settings"},
    "model_files": {"build", "spec", "settings", "models", "signature", "checkpoints"},
    "checkpoints": set(),
    "run_folder": {"spec", "settings", "checkpoints"},
    "measure": {"ops", "build", "spec", "settings", "models", "data", "model_files", "signature", "deploy"},
    "training": {
        "build",
        "signature",
        "spec",
        "settings",
        "training_settings",
        "models",
        "data",
        "model_files",
        "checkpoints",
        "measure",
        "report",
        "run_folder",
    },
    "report": {"measure", "data", "build", "run_folder", "spec"},
    "deploy": {"model_files", "run_folder", "build", "signature", "models", "data"},
    "bench": {"ops", "models", "data", "build", "spec", "settings", "training", "measure", "checkpoints"},
    "help": {"spec", "settings"},
    "app": {"spec", "settings", "training", "checkpoints", "help", "run_folder"},
    "commands": {
        "bench",
        "build",
        "model_files",
        "run_folder",
        "spec",
        "training",
        "measure",
        "report",
        "deploy",
        "data",
        "signature",
    },
    "__main__": {"commands"},
    "__init__": {"ops", "models", "model_files", "training", "report"},
    "errors": set(),
    "files": set(),
    "terminal": set(),
    "process": set(),
    "plugins": set(),
}
EVERYONES = {"errors", "files", "terminal", "process", "plugins"}
ONLY_IN = {
    "pytorch_lightning": {"training"},
    "lightning_fabric": {"training"},
    "hydra": {"app"},
    "omegaconf": {"app"},
    "pydantic": {"wrong_values", "spec", "settings", "training_settings"},
    "matplotlib": {"report"},
    "jinja2": {"report"},
    "scipy": {"measure"},
    "sklearn": {"measure"},
}


def imports(file: Path):
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module or ""


@pytest.mark.parametrize("file", sorted(PACKAGE.rglob("*.py")), ids=lambda f: str(f.relative_to(PACKAGE)))
def test_a_file_has_at_most_250_lines(file):
    assert len(file.read_text().splitlines()) <= 250


def room(file: Path) -> str:
    return file.relative_to(PACKAGE).parts[0].removesuffix(".py")


@pytest.mark.parametrize("file", sorted(PACKAGE.rglob("*.py")), ids=lambda f: str(f.relative_to(PACKAGE)))
def test_imports_go_down(file):
    for name in imports(file):
        parts = name.split(".")
        if parts[0] == "sppcls":
            assert len(parts) > 1, f"{file.name}: import from the module itself"
            assert parts[1] in MAY_IMPORT[room(file)] | {room(file)} | EVERYONES, f"{file.name} imports {name}"
        elif parts[0] in ONLY_IN:
            assert room(file) in ONLY_IN[parts[0]], f"{file.name} imports {name}"
        if room(file) == "ops":
            assert parts[0] in {"torch", "sppcls", "collections", "typing", "functools", "math", "itertools"}


def loaded(statement: str) -> set[str]:
    code = f"import sys; {statement}; print(' '.join(m for m in sys.modules if '.' not in m))"
    return set(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split())


HEAVY = {"pytorch_lightning", "hydra", "omegaconf", "matplotlib", "torchvision", "timm", "PIL", "torchmetrics"}


def test_the_package_needs_torch_alone():
    assert "torch" not in loaded("import sppcls")
    assert not loaded("from sppcls import spatial_pyramid_pool2d, SppClassifier") & (HEAVY | {"pydantic", "rich"})


def test_help_loads_nothing_heavy():
    assert not loaded("import sppcls.commands as c; c._parser().format_help()") & (
        HEAVY | {"torch", "numpy", "pydantic"}
    )


def test_no_config_names_code():
    configs = list((PACKAGE.parent / "conf").rglob("*.yaml"))
    assert configs
    assert not [c for c in configs if "_target_" in c.read_text()]
