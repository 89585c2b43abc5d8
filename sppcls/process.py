"""How a program of this package begins and ends."""

import atexit
import os
import sys
from pathlib import Path
from typing import NoReturn


def own_process() -> None:
    """Prepare a process that is ours: plots go into files, and output that is closed (``>&-``) goes nowhere."""
    os.environ["MPLBACKEND"] = "svg"  # a notebook's, inherited, need not be importable here
    sys.stdout = sys.stdout or Path(os.devnull).open("w")  # noqa: SIM115
    sys.stderr = sys.stderr or Path(os.devnull).open("w")  # noqa: SIM115


def leave(status: int, alone: bool = True) -> NoReturn:
    """End the process at once, after what others asked to be run at its end; of a rank that failed, without that.

    The interpreter's own end takes up to a second to take apart what was imported. Of a rank it also destroys threads
    of a collective that may still wait for another one that has failed, and then aborts or waits with it.
    """
    if alone or not status:
        atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):  # closed, or its reader is gone
            status = status or 141
    os._exit(status)
