"""Kills runs and saves at random moments and says what was left: `python killing.py runs|saves COUNT FOLDER [SEED]`.

One process that has imported everything forks the ones that are killed, so that a trial costs no start.
"""

import hashlib
import json
import mmap
import os
import random
import shutil
import signal
import sys
import time
from collections import Counter
from pathlib import Path

import torch

from sppcls import checkpoints
from sppcls.checkpoints import LAST, last_whole, save_whole
from sppcls.spec import parse
from sppcls.training.callbacks import Curves
from sppcls.training.run import run

STAGES = ("start", "train", "switch", "save", "end")


def values(folder, workers):
    return {
        "data": {"train_size": 44, "val_size": 20, "batch_size": 8, "num_workers": workers},
        "augment": {"mixup": 0.4, "brightness": 0.2},
        "model": {"width": 0.125, "levels": [2, 1]},
        "schedule": {"scales": [24, 32]},
        "optim": {"ema": 0.9},
        "trainer": {"max_epochs": 3, "accelerator": "cpu", "deterministic": True, "checkpoint_every_steps": 2},
        "metrics": {"gap_images": 12, "gap_every": 1, "test_scales": [32]},
        "run_dir": str(folder),
    }


def forked(work):
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 1)
        status = work()
    finally:
        os._exit(status)


def mark(stage, names):
    """Make the hooks of a run say where it is, in memory that the killer sees."""

    def during(owner, name, inside, after):
        real = getattr(owner, name)

        def call(*args, **kwargs):
            stage[0] = STAGES.index(inside)
            try:
                return real(*args, **kwargs)
            finally:
                stage[0] = STAGES.index(after)

        setattr(owner, name, call)

    for owner, name, inside, after in names:
        during(owner, name, inside, after)


def trial(folder, workers, chance, stage, killed):
    """Run to the end through kills at random moments; what is left must go on by itself each time."""
    spec = parse(values(folder, workers))
    while True:
        resumable = (folder / "checkpoints" / LAST).exists()
        going_on = spec.model_copy(update={"resume": str(folder)}) if resumable else spec
        stage[0] = 0
        pid = forked(lambda going_on=going_on, resumable=resumable: run(going_on, anew=not resumable))
        wanted = chance.choice((None, None, *STAGES[1:]))
        deadline = time.monotonic() + chance.uniform(0, 2.5)
        while time.monotonic() < deadline or (wanted and stage[0] != STAGES.index(wanted)):
            if os.waitpid(pid, os.WNOHANG)[0]:
                pid = 0
                break
            time.sleep(0.0005)
        if not pid:
            break
        time.sleep(chance.uniform(0, 0.01))
        os.kill(pid, signal.SIGKILL)
        _, status = os.waitpid(pid, 0)
        if os.WIFEXITED(status):
            break
        killed[STAGES[stage[0]]] += 1
    assert json.loads((folder / "status.json").read_text())["state"] == "finished", folder


def digest(folder):
    """Return the SHA-256 of all that a run has arrived at: weights, averages, optimiser, random numbers, metrics."""
    state = torch.load(folder / "checkpoints" / LAST, weights_only=True)
    names = ("state_dict", "current_model_state", "averaging_state", "optimizer_states", "lr_schedulers", "ranks")
    kept = [state[key] for key in names]
    whole = hashlib.sha256()
    for name, value in walk(kept):
        whole.update(name.encode())
        whole.update(value.numpy().tobytes() if isinstance(value, torch.Tensor) else repr(value).encode())
    rows = [row.split(",") for row in (folder / "metrics.csv").read_text().splitlines()]
    timed = {rows[0].index("seconds"), rows[0].index("images_per_s")}
    whole.update(repr([[cell for at, cell in enumerate(row) if at not in timed] for row in rows]).encode())
    return whole.hexdigest()


def walk(value, name=""):
    if isinstance(value, dict | list | tuple):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        for key, inner in items:
            yield from walk(inner, f"{name}.{key}")
    else:
        yield name, value


def runs(count, folder, seed):
    chance, stage, killed = random.Random(seed), mmap.mmap(-1, 1), Counter()
    wholes = {}
    for workers in (0, 2):
        whole = folder / f"whole{workers}"
        os.waitpid(forked(lambda whole=whole, workers=workers: run(parse(values(whole, workers)))), 0)
        wholes[workers] = digest(whole)
    mark(
        stage,
        [
            (checkpoints, "save_whole", "save", "train"),
            (Curves, "on_train_epoch_start", "switch", "switch"),
            (Curves, "on_train_batch_end", "train", "train"),
            (Curves, "on_train_end", "end", "end"),
        ],
    )
    ends = Counter()
    while sum(killed.values()) < count:
        workers = chance.choice((0, 2))
        trial(folder / "run", workers, chance, stage, killed)
        ends[digest(folder / "run") == wholes[workers]] += 1
        shutil.rmtree(folder / "run")
    same = len(set(wholes.values())) == 1
    return {"kills": dict(killed), "runs": sum(ends.values()), "other_weights": ends[False], "workers_agree": same}


def saves(count, folder, seed):
    chance, done = random.Random(seed), mmap.mmap(-1, 8)
    folder.mkdir()
    size, lost, unloadable = 40_000, 0, 0

    def keep_saving(first):
        for step in range(first, first + 100_000):
            state = {"state_dict": {str(k): torch.full((size,), float(step)) for k in range(4)}, "step": step}
            save_whole(folder / LAST, lambda file, state=state: torch.save(state, file))
            done[:] = step.to_bytes(8, "little")

    keep = forked(lambda: keep_saving(1))
    while int.from_bytes(done[:], "little") < 2:
        time.sleep(0.01)
    for _ in range(count):
        time.sleep(chance.uniform(0, 0.1))
        os.kill(keep, signal.SIGKILL)
        os.waitpid(keep, 0)
        acknowledged = int.from_bytes(done[:], "little")
        try:
            state = torch.load(last_whole(folder), weights_only=True)
            full = all(bool((tensor == state["step"]).all()) for tensor in state["state_dict"].values())
            lost += state["step"] < acknowledged or not full
            step = state["step"]
        except Exception as error:
            print(error, file=sys.stderr)
            unloadable, step = unloadable + 1, acknowledged
        checkpoints.clear_leftovers(folder)
        keep = forked(lambda step=step: keep_saving(step + 1))
    os.kill(keep, signal.SIGKILL)
    os.waitpid(keep, 0)
    return {"kills": count, "unloadable": unloadable, "lost": lost, "saves": acknowledged}


if __name__ == "__main__":
    torch.set_num_threads(1)
    what, count, folder, *seed = sys.argv[1:]
    work = {"runs": runs, "saves": saves}[what]
    print(json.dumps(work(int(count), Path(folder), int(seed[0]) if seed else 0)))
