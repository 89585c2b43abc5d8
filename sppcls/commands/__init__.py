"""``sppcls VERB``: one file per verb, imported only when the verb is called.

Its ``options`` adds the options to a parser, its ``run`` does the work for them and returns the exit status.
"""

import argparse
import os
import re
import signal
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from importlib.metadata import version
from typing import NoReturn

from sppcls.errors import SppclsError, did_you_mean, one_line
from sppcls.process import Interrupted, Signals, leave, own_process
from sppcls.terminal import say

VERBS = {
    "train": "train a network or run a sweep; sppcls train --help lists all settings",
    "evaluate": "measure accuracy, calibration and cost at each scale",
    "predict": "label images with a run, a checkpoint or any export",
    "export": "export to safetensors, onnx or pt2, verified against the checkpoint",
    "tune": "train the head and norms of a run further, for one test scale",
    "quantize": "quantize an ONNX export to 8 bits and compare its accuracy",
    "report": "tables, plots and an offline HTML page for a run or a sweep",
    "probe": "train a linear SVM on frozen features (the paper's protocol)",
    "data": "inspect a data set: contents, broken files, duplicates",
    "cache": "list or remove cached pixels and image sizes",
    "bench": "benchmark this package against a straightforward baseline",
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one verb and exit with its exit status."""
    own_process()
    given = list(sys.argv[1:] if arguments is None else arguments)
    if given[:1] == ["train"]:
        sys.argv = ["sppcls train", *given[1:]]
        import_module("sppcls.app").main()
    try:
        with Signals():  # so that half-written files are removed
            options = _parser(given[:1]).parse_args(given)
            status = options.run(options)
    except Interrupted as ended:
        sys.exit(ended.status)
    except BrokenPipeError:
        # The reader has closed the pipe; Python would complain again on flush.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    except Exception as error:
        if os.environ.get("SPPCLS_DEBUG") == "1":
            raise
        say(f"error: {one_line(error)}")
        sys.exit(error.exit_status if isinstance(error, SppclsError) else 1)
    sys.exit(status)


def command() -> None:
    """Run ``sppcls`` as a program."""
    _as_program(main)


def train() -> None:
    """Run ``train.py`` as a program."""
    _as_program(lambda: import_module("sppcls.app").main())


def _as_program(run: Callable[[], None]) -> None:
    """Run and exit; Ctrl-C during the imports or at the end prints no traceback."""
    status: object = 0
    try:
        run()
    except KeyboardInterrupt:
        status = 130
    except SystemExit as ended:
        status = ended.code
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    leave(status if isinstance(status, int) else 0)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        if wrong := re.match(r"argument (\S+): invalid choice: '(.*)' \(choose from (.*)\)", message, re.S):
            meant = did_you_mean(wrong[2], re.findall(r"[\w-]+", wrong[3]))
            message = f"{wrong[1]} {wrong[2][:40]!r} is unknown{meant}"
        end = "" if message.endswith("?") else ";"
        say(f"error: {message}{end} see {self.prog} --help")
        sys.exit(2)


def _parser(called: Sequence[str] = ()) -> argparse.ArgumentParser:
    """Return the parser of all verbs, with the options of the one being called."""
    parser = _Parser(prog="sppcls", description="Image classification at any image size.")
    parser.add_argument("--version", action="version", version=f"sppcls {version('sppcls')}")
    verbs = parser.add_subparsers(required=True, metavar="VERB")
    for name, said in VERBS.items():
        verb = verbs.add_parser(name, help=said, description=said)
        if name in called:
            module = import_module(f"sppcls.commands.{name}")
            verb.set_defaults(run=module.run)
            module.options(verb)
    return parser
