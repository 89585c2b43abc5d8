"""The commands of README.md and of the pages in docs/, and how each is made small."""

import re
import shlex
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
README = "\n".join(page.read_text() for page in PAGES if page.name not in ("decisions.md", "results.md"))
RUN, SWEEP = "runs/2026-11-22_14-15-00", "sweeps/made"

# The beginning of a command that is not run, and why.
NOT_RUN = {
    "pip install uv && uv run pytest": "these tests",
    "pip install --no-deps sppcls": "a registry has to have the package",
    "pip install onnxruntime": "installed here; the program below it is run by tests/test_export.py",
    "pip install --require-hashes": "installs everything anew",
    "uv run pytest": "tests/test_hostile.py itself",
    "uv run sppcls bench": "measures for minutes; the benches have tests of their own",
    "#SBATCH": "needs SLURM",
    "srun": "needs SLURM",
    "uv run torchrun": "needs two machines; test_two_nodes_by_torchrun in tests/test_ranks.py is two nodes on one",
    "uv run train.py model=resnet18 model.weights=pretrained": "downloads weights",
    "uv run train.py -m ... hydra/launcher=submitit_slurm": "needs SLURM",
    "uv run train.py -m ... hydra/launcher=ray": "needs the extra ray; tests/test_launchers.py where it is installed",
}

# The beginning of a command (the first that fits) and what is added to it.
TINY = "data.train_size=44 data.val_size=20 data.batch_size=8 trainer.max_epochs=1 metrics.gap_images=12"
FEW = "data.train_per_class=8 data.val_per_class=4"
NARROW = f"{TINY} metrics.test_scales=[64] model.width=0.125"
ADDED = {
    "sppcls cache": "",
    "sppcls train": NARROW,
    "uv run train.py --help": "",
    "$ uv run train.py 'model.levls": "",
    "uv run train.py resume=": "trainer.max_epochs=2",
    "uv run --extra lite train.py experiment=caltech101": f"{TINY} {FEW} schedule.scales=[64,96] "
    "metrics.test_scales=[96] metrics.gap_scales=[96]",
    "uv run train.py data=folder data.root=photos data.train_per_class=": f"{NARROW} {FEW}",
    "uv run train.py experiment=ablate_sizes": f"{NARROW} {FEW} data.classes=null seed=0",
    "uv run train.py experiment=factorial": f"{NARROW} data.train_per_class=5 data.val_per_class=3 "
    "data.test_per_class=4 data.classes=null seed=0 ~sweep.tune",
    "uv run train.py experiment=ablate_batches": f"{NARROW} {FEW} data.classes=null seed=0",
    "uv run train.py experiment=ablate_": f"{NARROW} seed=0",
    "uv run train.py": NARROW,
    "pip install uv && uv run train.py": NARROW,
    "uv run --extra lite --extra probe sppcls probe": "--train-per-class 5 --test-per-class 5 --splits 1 --scales 64",
    "uv run sppcls tune": "--epochs 1",
    "uv run sppcls": "",
    "uv run --extra onnx sppcls quantize": "--images 4",
    "uv run --extra onnx sppcls": "",
    "sppcls predict model/model.onnx": "",
}

_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.M | re.S)
_COMMAND = re.compile(r"(\$ )?(uv|pip|srun|sppcls)\s|#SBATCH\s")
_INLINE = re.compile(r"`((?:uv run|pip|sppcls) [^`]+)`")


def blocks(language: str = "") -> list[list[str]]:
    """Return the lines of every fenced block of a language."""
    return [text.splitlines() for found, text in _FENCE.findall(README) if found == language]


def commands() -> list[str]:
    """Return every command in the README, without its comment."""
    fenced = [line for block in blocks() for line in block if _COMMAND.match(line)]
    inline = _INLINE.findall(_FENCE.sub("", README))
    return list(dict.fromkeys(re.split(r"\s\s+#", line)[0].rstrip() for line in (*fenced, *inline)))


def other_lines() -> list[str]:
    """Return the lines of fenced blocks that are no command and no output of one."""
    shown = [block for block in blocks() if not block[0].startswith("$") and not any("━" in line for line in block)]
    return [line for block in shown for line in block if not _COMMAND.match(line)]


def begins(command: str, beginnings: dict[str, str]) -> str | None:
    """Return what belongs to the first beginning that fits the command."""
    return next((found for beginning, found in beginnings.items() if command.startswith(beginning)), None)


def made_small(command: str) -> list[str]:
    """Return the command as it is run: by this interpreter, with names that exist, and small."""
    named = command.replace("runs/...", RUN).replace("sweeps/...", SWEEP).replace("-m ...", "-m seed=0,1")
    words = shlex.split(re.sub(r"^(\$ )?(pip install uv && )?(uv run )?(--extra \w+ )*", "", named))
    program = [sys.executable, str(ROOT / words[0])] if words[0] == "train.py" else [script(words[0])]
    return [*program, *words[1:], *shlex.split(begins(command, ADDED) or "")]


def script(name: str) -> str:
    """Return the path of a program that is installed beside this interpreter."""
    return str(Path(sys.executable).with_name(name))
