"""A loader's worker processes: how they begin, which signals they obey, and how they end."""

import os
import signal
import threading
import time
from collections.abc import Iterator
from typing import Any

from torch.utils.data import DataLoader

from sppcls.signals import signals_held

_OF_THE_LEADER = {
    getattr(signal, name)
    for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2")
    if hasattr(signal, name) and hasattr(signal, "sigtimedwait")
}


def begin_worker(leader: int, _worker: int) -> None:
    """Leave signals that reach a whole group of processes to the leader, which needs its workers to save; end with it.

    A SIGTERM of the leader's own ends the worker, as multiprocessing does at exit: it then waits for its children.
    torch's workers look after their leader too, but take whoever is there as they begin for it: one whose leader was
    killed a moment before lives for ever.
    """

    def watch() -> None:
        while os.getppid() == leader:
            if not _OF_THE_LEADER:  # macOS cannot tell who sent a signal: torch's handlers stay
                time.sleep(1)
            elif (got := signal.sigtimedwait(_OF_THE_LEADER, 1)) and (got.si_signo, got.si_pid) == (15, leader):
                break
        os._exit(0)

    threading.Thread(target=watch, daemon=True).start()


def started(loader: "DataLoader[Any]") -> Iterator[Any]:
    """Return the iterator of a loader, whose workers begin with the leader's signals blocked and stay so."""
    with signals_held():
        if not _OF_THE_LEADER:
            return iter(loader)
        before = signal.pthread_sigmask(signal.SIG_BLOCK, _OF_THE_LEADER)
        try:
            return iter(loader)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)


def end_workers(batches: Any) -> None:
    """End the workers of an iterator that `started` has returned."""
    if hasattr(batches, "_shutdown_workers"):  # not without workers
        batches._shutdown_workers()


def close_workers(loader: "DataLoader[Any]") -> None:
    """End the persistent workers of a loader; its next iteration starts new ones."""
    batches, loader._iterator = loader._iterator, None
    end_workers(batches)
