"""Opens files one after the other, with little memory and time, and prints what came of each as a line of JSON."""

import contextlib
import io
import json
import os
import resource
import sys
import time

from sppcls import app, cli
from sppcls.checkpoint import load_model
from sppcls.errors import SppclsError
from sppcls.models.backbones import build_trunk


def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10


def train(*words):
    sys.argv = ["train.py", *words]
    app.main()


OPENED = {
    "load": load_model,
    "weights": lambda path: build_trunk("tiny", weights=path),
    "train": train,
    "resume": lambda folder, *more: train(f"resume={folder}", "trainer.max_epochs=2", "trainer.accelerator=cpu", *more),
    **{verb: (lambda *words, verb=verb: cli.main([verb, *words])) for verb in ("evaluate", "predict", "report")},
}


def opened(how, words):
    said, start = io.StringIO(), time.perf_counter()
    status = 0
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
        try:
            OPENED[how](*words)
        except SystemExit as end:
            status = end.code
        except SppclsError as error:
            status, _ = error.exit_status, said.write(f"error: {error}\n")
        except BaseException as error:  # a traceback, for a person
            status, _ = -1, said.write(f"Traceback: {type(error).__name__}: {error}\n")
    return {"status": status, "said": said.getvalue(), "seconds": time.perf_counter() - start, "peak": peak()}


if __name__ == "__main__":
    import torch
    import torchvision  # noqa: F401

    torch.set_num_threads(1)
    resource.setrlimit(resource.RLIMIT_AS, (int(sys.argv[1]) << 20,) * 2)
    resource.setrlimit(resource.RLIMIT_CPU, (120, 120))
    print(json.dumps({"peak": peak()}), flush=True)
    for line in sys.stdin:
        name, folder, how, words = json.loads(line)
        os.chdir(folder)
        print(json.dumps({"name": name} | opened(how, words)), flush=True)
