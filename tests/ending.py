"""Ends programs in many ways at random moments: `python -m tests.ending KINDS COUNT SEED FOLDER [started]`.

Prints a JSON object a program. One process that has imported everything forks the programs, so that none costs a
start; each ends as the interpreter does. With ``started`` each is a command of its own, which a signal may meet at its
imports.
"""

import contextlib
import gc
import itertools
import json
import os
import random
import signal
import sys
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from tests.processes import PROC, Program, faults, patience

TRAIN = Path(__file__).parent.parent / "train.py"
SMALL = (
    "data=folder", "model.width=0.125", "model.levels=[2,1]", "schedule.scales=[16,24]",
    "trainer.accelerator=cpu", "metrics.test_scales=[16,24]", "metrics.gap_images=8",
)  # fmt: skip
KINDS = ("train", "evaluate", "sweep", "ranks")
SIGNALS = {"SIGINT": signal.SIGINT, "SIGTERM": signal.SIGTERM}
ENDS = ("finished", "failed", *SIGNALS)
LAST = {"train": "run folder: ", "ranks": "run folder: ", "evaluate": "written: ", "sweep": "report: "}
# Files of a run that tell where it is; None is the last line.
STAGES = ("status.json", "metrics.csv", "checkpoints/last.ckpt", "answers.npz", "summary.json", None)


class Case(NamedTuple):
    """A program, how it is to end, and at which moment: after some seconds, or as a file appears."""

    kind: str
    workers: int
    end: str
    epochs: int
    seconds: float
    stage: str | None
    timed: bool
    group: bool


def photographs(folder, names=("ant", "bee"), each=12, shape=(40, 48)):
    """Write a folder of class folders of small JPEGs."""
    chance = np.random.default_rng(0)
    for name, number in itertools.product(names, range(each)):
        (folder / name).mkdir(parents=True, exist_ok=True)
        Image.fromarray(chance.integers(0, 255, (*shape, 3), np.uint8)).save(folder / name / f"{number}.jpg")


def cases(kinds, count, seed):
    """Return every combination of kind, workers and end about as often as the others."""
    chance = random.Random(seed)
    every = list(itertools.product(kinds, (0, 1, 2, 4), ENDS))
    drawn = []
    while len(drawn) < count:
        drawn += chance.sample(every, len(every))
    for kind, workers, end in drawn[:count]:
        stage, timed, group = chance.choice(STAGES), chance.random() < 0.5, chance.random() < 0.5
        yield Case(kind, workers, end, chance.choice((1, 2, 3)), chance.random(), stage, timed, group)


def command(case, number):
    root = "broken" if case.end == "failed" and not kills(case) else "photos"
    if case.kind == "evaluate":
        return ["sppcls", "evaluate", "whole", "--data", root, f"--num-workers={case.workers}", f"--out=e{number}"]
    size = 2 if case.kind == "ranks" else 4  # so that each rank has a batch to validate
    own = [
        f"data.batch_size={size}",
        f"data.root={root}",
        f"data.num_workers={case.workers}",
        f"trainer.max_epochs={case.epochs}",
    ]
    if case.kind == "sweep":
        return [str(TRAIN), "-m", *SMALL, *own, "seed=0,1", f"sweep_dir=r{number}"]
    return [str(TRAIN), *SMALL, *own, f"run_dir=r{number}", f"trainer.devices={1 + (case.kind == 'ranks')}"]


def kills(case):
    """Say whether the program fails as one of its processes is killed, and not at a file that cannot be read."""
    return case.end == "failed" and case.timed and case.workers > 0 and case.kind == "train"


def begin(arguments, folder, started):
    program = arguments[0].removesuffix(".py").rpartition("/")[2]
    if started:
        start = [sys.executable, arguments[0]] if program == "train" else [Path(sys.executable).with_name("sppcls")]
        return Program.started([*start, *arguments[1:]], folder)
    from sppcls import commands

    return Program.forked(commands.train if program == "train" else commands.command, arguments, folder)


def wait_for_moment(case, program, place, whole):
    """Wait until the drawn moment or the end of the program; ``whole`` is how long one may take."""
    moment = time.monotonic() + case.seconds * whole
    found = place.parent.glob if case.kind != "sweep" else place.glob
    pattern = f"{place.name}/{case.stage}" if case.kind != "sweep" else f"*/{case.stage}"

    def reached():
        if case.timed or case.kind == "evaluate":
            return time.monotonic() > moment
        return LAST[case.kind] in program.out if case.stage is None else any(found(pattern))

    while program.process.poll() is None and not reached():
        time.sleep(0.002)


def kill_a_worker(program):
    """Kill a process that the program has begun, once there is one."""
    while program.process.poll() is None:
        if others := [pid for pid in program.family() if pid != program.process.pid]:
            with contextlib.suppress(ProcessLookupError):  # it has ended meanwhile
                os.kill(random.choice(others), signal.SIGKILL)
                return
        time.sleep(0.002)


def trial(case, number, folder, whole, started):
    program = begin(command(case, number), folder, started)
    if case.end in SIGNALS:
        wait_for_moment(case, program, folder / f"r{number}", whole)
        program.signal(SIGNALS[case.end], case.group)
    elif kills(case):
        kill_a_worker(program)
    ended = program.end(None, 120)
    return {**case._asdict(), "number": number, "status": ended.status, "silent": ended.silent, **judged(case, ended)}


def judged(case, ended):
    """Return what is wrong with an end; empty where nothing is."""
    done = LAST[case.kind] in ended.out
    wrong = []
    if ended.status not in allowed(case, done, ended.out + ended.err):
        wrong.append("status")
    if ended.silent > patience():
        wrong.append("silent")
    if faults(ended):
        wrong.append("said")
    return {"wrong": wrong, "out": ended.out[-600:], "err": ended.err[-3000:]} if wrong else {"wrong": wrong}


def allowed(case, done, said):
    """Return the statuses that are right.

    A signal that finds the program before it has said anything, or after its last line, may meet Python's own handler.
    """
    if case.end == "finished" or (kills(case) and done):  # its work was done before the kill
        return {0}
    if case.end == "failed":
        return {1} if kills(case) or case.kind == "sweep" else {3}
    number = SIGNALS[case.end]
    return {128 + number, *([0, -number] if done else []), *([] if said else [-number])}


def main():
    kinds, count, seed, folder, *more = sys.argv[1:]
    folder, started = Path(folder), bool(more)
    photographs(folder / "photos")
    photographs(folder / "broken")
    for broken in (folder / "broken").glob("*/*.jpg"):
        broken.write_bytes(broken.read_bytes()[:700])
    if not started:
        import sppcls.commands.evaluate
        import sppcls.report.sweep_page
        import sppcls.training.fit
        import sppcls.training.run  # noqa: F401

        gc.collect()
        gc.freeze()  # a program's end need not take apart what all have in common; nanobind says that it leaks
    assert len(list((PROC / "self" / "task").iterdir())) == 1
    begun = time.monotonic()
    whole = [
        str(TRAIN),
        *SMALL,
        "data.root=photos",
        "data.batch_size=4",
        "data.num_workers=2",
        "trainer.max_epochs=3",
        "run_dir=whole",
    ]
    begin(whole, folder, started).end(seconds=120)
    whole = time.monotonic() - begun
    for number, case in enumerate(cases(kinds.split(","), int(count), int(seed))):
        print(json.dumps(trial(case, number, folder, whole, started)), flush=True)


if __name__ == "__main__":
    main()
