"""How a program of this package begins and ends, and the signals that end it."""

import atexit
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, NoReturn


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


_NAMES = ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2")
_NUMBERS = tuple(getattr(signal, name) for name in _NAMES if hasattr(signal, name))
STATUSES = frozenset(128 + number for number in _NUMBERS)


class Interrupted(BaseException):
    """A signal has ended the run; ``status`` is the exit status, 130 for SIGINT and 143 for SIGTERM.

    ``held`` says that it ended where the program asked, all ranks together.
    """

    def __init__(self, signum: int, held: bool = False) -> None:
        self.status, self.held = 128 + signum, held
        super().__init__(signum)


_holding: list[tuple["Signals", int]] | None = None


@contextmanager
def signals_held() -> Iterator[None]:
    """Let a signal that comes meanwhile raise only at the end: what it would break in two cannot be taken back.

    Blocking it is not enough: where other threads do not, Python's handler runs in the main thread all the same.
    """
    global _holding
    came: list[tuple[Signals, int]] = []
    before, _holding = _holding, came
    try:
        yield
    finally:
        _holding = before
    for signals, signum in came:
        signals._on(signum, None)


class Signals:
    """Turns signals into ``Interrupted``, at once or, while they are deferred, where the program asks.

    A second signal ends the program at once. Signals that something else handles or ignores (nohup, a launcher's
    requeueing) are left to it.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self._deferred = False
        self._before: dict[int, Any] = {}
        self._hook: Any = None

    def __enter__(self) -> "Signals":
        if threading.current_thread() is threading.main_thread():
            self._hook, sys.unraisablehook = sys.unraisablehook, self._swallowed
            for signum in _NUMBERS:
                handler = signal.getsignal(signum)
                of_ours = isinstance(getattr(handler, "__self__", None), Signals)
                if of_ours or handler in (signal.SIG_DFL, signal.default_int_handler):
                    self._before[signum] = signal.signal(signum, self._on)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for signum, handler in self._before.items():
            signal.signal(signum, handler)
        if self._hook:
            sys.unraisablehook = self._hook

    def defer(self, deferred: bool = True) -> None:
        """Hold signals until `end` is called, or no longer; takes them back from whoever has taken them since."""
        self._deferred = deferred
        for signum in self._before:
            signal.signal(signum, self._on)

    def end(self) -> NoReturn:
        """Raise ``Interrupted`` for the signal that has come, here or to another rank."""
        raise Interrupted(self.received or signal.SIGTERM, held=True)

    def _swallowed(self, unraisable: Any) -> None:
        """Send the signal once more that came in a destructor, which lets no exception out."""
        if isinstance(unraisable.exc_value, Interrupted):
            threading.Timer(0.05, os.kill, (os.getpid(), unraisable.exc_value.status - 128)).start()
        else:
            self._hook(unraisable)

    def _on(self, signum: int, frame: FrameType | None) -> None:
        if _holding is not None:
            _holding.append((self, signum))
            return
        again, self.received = self.received is not None, signum
        if again or not self._deferred:
            raise Interrupted(signum)
