"""How a program of this package starts and exits, and its signal handling."""

import atexit
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType, TracebackType
from typing import NoReturn


def own_process() -> None:
    """Prepare a process of this package: plots go to files, and closed output (``>&-``) is discarded."""
    os.environ["MPLBACKEND"] = "svg"  # one inherited from a notebook may not be importable here
    sys.stdout = sys.stdout or Path(os.devnull).open("w")  # noqa: SIM115
    sys.stderr = sys.stderr or Path(os.devnull).open("w")  # noqa: SIM115


def leave(status: int, alone: bool = True) -> NoReturn:
    """Exit at once, after running the exit handlers; a failed rank skips them.

    The interpreter's own shutdown spends up to a second on tearing down modules. In a rank it also destroys threads
    of a collective that may still be waiting for a failed rank, and then aborts or hangs.
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
_Handler = Callable[[int, FrameType | None], object] | int | None
_NUMBERS = tuple(getattr(signal, name) for name in _NAMES if hasattr(signal, name))
STATUSES = frozenset(128 + number for number in _NUMBERS)


class Interrupted(BaseException):
    """A signal has ended the run; ``status`` is the exit status, 130 for SIGINT and 143 for SIGTERM.

    ``held`` says that it ended at a point chosen by the program, with all ranks together.
    """

    def __init__(self, signum: int, held: bool = False) -> None:
        self.status, self.held = 128 + signum, held
        super().__init__(signum)


_holding: list[tuple["Signals", int]] | None = None


@contextmanager
def signals_held() -> Iterator[None]:
    """Delay signals until the end of the block, which must not be interrupted halfway.

    Blocking is not enough: if other threads do not block it, Python's handler still runs in the main thread.
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
    """Turns signals into ``Interrupted``, at once or, while deferred, when the program calls `end`.

    A second signal ends the program at once. Signals that something else handles or ignores (nohup, a launcher's
    requeueing) are left to it.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self._deferred = False
        self._before: dict[int, _Handler] = {}
        self._hook: Callable[[sys.UnraisableHookArgs], object] | None = None

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
        """Defer signals until `end` is called, or stop deferring; reinstalls the handlers if others replaced them."""
        self._deferred = deferred
        for signum in self._before:
            signal.signal(signum, self._on)

    def end(self) -> NoReturn:
        """Raise ``Interrupted`` for the signal received here or by another rank."""
        raise Interrupted(self.received or signal.SIGTERM, held=True)

    def _swallowed(self, unraisable: "sys.UnraisableHookArgs") -> None:
        """Resend a signal that arrived in a destructor, which swallows exceptions."""
        if isinstance(unraisable.exc_value, Interrupted):
            threading.Timer(0.05, os.kill, (os.getpid(), unraisable.exc_value.status - 128)).start()
        elif self._hook:
            self._hook(unraisable)

    def _on(self, signum: int, frame: FrameType | None) -> None:
        if _holding is not None:
            _holding.append((self, signum))
            return
        again, self.received = self.received is not None, signum
        if again or not self._deferred:
            raise Interrupted(signum)
