"""Opens files one after the other, with little memory and time, and prints what came of each as a line of JSON."""

import contextlib
import copyreg
import io
import json
import os
import resource
import sys
import time
from pathlib import Path

from sppcls import app, commands
from sppcls.errors import SppclsError
from sppcls.model_files import load_model
from sppcls.models.backbones import build_trunk


def megabytes(key):
    """Return a figure of this process: VmRSS is what it holds, VmHWM the most it held."""
    status = Path("/proc/self/status").read_text()
    return int(status.split(f"{key}:")[1].split()[0]) >> 10


def train(*words):
    sys.argv = ["train.py", *words]
    app.main()


def resume(folder):
    train(f"resume={folder}", "trainer.max_epochs=2", "trainer.accelerator=cpu")


VERBS = ("evaluate", "export", "predict", "report")
OPENED = {
    "load": load_model,
    "weights": lambda path: build_trunk("tiny", weights=path),
    "train": train,
    "resume": resume,
    **{verb: (lambda *words, verb=verb: commands.main([verb, *words])) for verb in VERBS},
}


def opened(how, words):
    said, shown, start = io.StringIO(), io.StringIO(), time.perf_counter()
    Path("/proc/self/clear_refs").write_text("5")  # the most it held is from now on
    before, status = megabytes("VmRSS"), 0
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(shown):
        try:
            OPENED[how](*words)
        except SystemExit as end:
            status = end.code
        except SppclsError as error:  # of Python's own interface: what a command would print
            status, _ = error.exit_status, said.write(f"error: {error}\n")
        except BaseException as error:
            status, _ = -1, said.write(f"Traceback: {type(error).__name__}: {error}\n")
    seconds, rise = time.perf_counter() - start, megabytes("VmHWM") - before
    return {"status": status, "said": said.getvalue(), "shown": shown.getvalue(), "seconds": seconds, "rise": rise}


if __name__ == "__main__":
    import torch

    torch.set_num_threads(1)
    copyreg.add_extension("os", "mkdir", int(sys.argv[2]))
    resource.setrlimit(resource.RLIMIT_AS, (int(sys.argv[1]) << 20,) * 2)
    resource.setrlimit(resource.RLIMIT_CPU, (300, 300))
    for line in sys.stdin:
        name, folder, how, words = json.loads(line)
        os.chdir(folder)
        print(json.dumps({"name": name} | opened(how, words)), flush=True)
