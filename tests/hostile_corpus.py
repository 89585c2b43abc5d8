"""The corpus: hostile files under a folder, how each is opened, and what a person is told of it."""

import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import torch
from hostile_pickles import CODE
from PIL import Image

from sppcls.model_files import KEY

MEMORY = 700  # MB that opening a file may take: a VGG's layers, which no file has to hold, are 500
SECONDS = 20  # of a clock that other programs slow
ADDRESSES = 6000  # MB of addresses that the process may have at all


@dataclass(frozen=True)
class Case:
    """A file and its opening; ``harmless`` says why it is one that opens.

    Attributes:
        says: Pattern of the line that refuses it.
        names: The file or key that the line has to name.
    """

    folder: Path
    how: str
    words: list[str]
    says: str
    names: str
    harmless: str = ""


class Corpus:
    """Hostile files, by name; what their payloads would make are folders in ``canaries``."""

    def __init__(self, root, model, run=None, exported=None):
        self.root, self.model, self.run, self.exported = root, torch.load(model), run, exported
        self.cases, self.canaries, self.image = {}, root / "canaries", root / "image.png"
        self.canaries.mkdir()
        Image.new("RGB", (48, 40)).save(self.image)

    def add(self, name, how, make, says="", *more, file="a.ckpt", names=None, harmless=""):
        """Add what ``make(path, canary)`` writes, or returns in the path's place."""
        assert name not in self.cases
        folder = self.root / str(len(self.cases))
        folder.mkdir()
        path = make(folder / file, self.canaries / re.sub(r"\W+", "_", name)) or folder / file
        words = [str(word) for word in (path, *more)]
        self.cases[name] = Case(folder, how, words, says, words[0] if names is None else names, harmless)

    def described(self, **changes):
        """Return a maker of a checkpoint that describes itself otherwise."""
        return lambda path, _: torch.save(self.model | {KEY: self.model[KEY] | changes}, path)

    def copied(self, name, change):
        """Return a maker of a run folder of which one file is changed, and no sum tells."""

        def make(path, canary):
            folder = path.with_name("run")
            shutil.copytree(self.run, folder)
            (folder / "checkpoints" / "SHA256SUMS").unlink()
            change(folder / name, canary)
            return folder

        return make

    def opened(self):
        """Open every file in one process of little memory; return what came of each, by name."""
        lines = "\n".join(json.dumps([name, str(c.folder), c.how, c.words]) for name, c in self.cases.items())
        driver = [sys.executable, str(Path(__file__).with_name("hostile_driver.py")), str(ADDRESSES), str(CODE)]
        environment = os.environ | {"OMP_NUM_THREADS": "1", "XDG_CACHE_HOME": str(self.root / "cache")}
        out, err = self.root / "out", self.root / "err"
        with out.open("w") as told, err.open("w") as lost:
            subprocess.run(driver, input=lines, stdout=told, stderr=lost, text=True, env=environment, timeout=600)
        rows = [json.loads(line) for line in out.read_text().splitlines()]
        assert len(rows) == len(self.cases), err.read_text()[-2000:]
        return {row.pop("name"): row for row in rows}

    def faults(self, rows):
        """Return what is wrong with how each was opened, and every canary."""
        wrong = [f"{name}: {fault}" for name, case in self.cases.items() for fault in _faults(case, rows[name])]
        return wrong + [f"canary {path.name}" for path in self.canaries.iterdir()]


def _faults(case, row):
    lines = row["said"].splitlines()
    if row["seconds"] > SECONDS or row["rise"] > MEMORY:
        yield f"{row['seconds']:.1f} s and {row['rise']} MB"
    if not all(line.isprintable() for line in (*lines, *row["shown"].splitlines())):
        yield "commands the terminal"
    if case.harmless:
        if row["status"] != 0 or not all(line.startswith("model: ") for line in lines):
            yield f"is harmless, and ended with {row['status']}: {row['said']}"
    elif row["status"] not in (1, 2, 3) or len(lines) != 1 or not lines[0].startswith("error: "):
        yield f"status {row['status']}: {row['said'][-300:]}"
    elif not (re.search(case.says, lines[0]) and case.names in lines[0] and len(lines[0]) < 900):
        yield f"not {case.says!r} of {case.names}: {lines[0][:900]}"
