"""A loader's worker processes: how they begin, which signals they obey, and how they end."""

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from multiprocessing import forkserver, resource_tracker
from typing import TYPE_CHECKING, Any

from sppcls.process import signals_held

if TYPE_CHECKING:
    from torch.utils.data import DataLoader

_OF_THE_LEADER = {
    getattr(signal, name)
    for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2")
    if hasattr(signal, name) and hasattr(signal, "sigtimedwait")
}

_served = False


def serve_workers() -> None:
    """Let workers come from a server without threads, which starts now, and not from forks of this process.

    A fork while another thread of a rank (gloo's) holds a lock may never return in the child.
    """
    global _served
    if _OF_THE_LEADER and not _served:
        _served = True
        multiprocessing.set_forkserver_preload([f"{__package__}.loader"])
        before = os.environ.copy()
        os.environ["OPENBLAS_NUM_THREADS"] = "1"
        with _leaders_signals_blocked():
            resource_tracker.ensure_running()  # which lets SIGINT and SIGTERM through again
        with _leaders_signals_blocked():
            forkserver.ensure_running()
        os.environ.clear()
        os.environ.update(before)


def worker_options(count: int) -> dict[str, Any]:
    """Return what a ``DataLoader`` is told of its workers."""
    begin = partial(_begin, os.getpid(), _served)
    context = "forkserver" if _served and count else None
    return {"num_workers": count, "worker_init_fn": begin, "multiprocessing_context": context}


def _begin(leader: int, served: bool, _worker: int) -> None:
    """Leave signals that reach a whole group of processes to the leader, which needs its workers to save; end with it.

    A SIGTERM of the leader's own ends the worker, as multiprocessing does at exit: it then waits for its children.
    torch's workers look after their parent too, but take whoever is there as they begin for it: one whose leader was
    killed a moment before lives for ever, as do those of a server.
    """
    parent = multiprocessing.parent_process()

    def led() -> bool:
        return parent is not None and parent.is_alive() if served else os.getppid() == leader

    def watch() -> None:
        while led():
            if not _OF_THE_LEADER:  # macOS cannot tell who sent a signal: torch's handlers stay
                time.sleep(1)
            elif (got := signal.sigtimedwait(_OF_THE_LEADER, 1)) and (got.si_signo, got.si_pid) == (15, leader):
                break
        os._exit(0)

    threading.Thread(target=watch, daemon=True).start()


@contextmanager
def _leaders_signals_blocked() -> Iterator[None]:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _OF_THE_LEADER)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def started(loader: "DataLoader[Any]") -> Iterator[Any]:
    """Return the iterator of a loader, whose workers begin with the leader's signals blocked and stay so."""
    with signals_held():
        if not _OF_THE_LEADER:
            return iter(loader)
        with _leaders_signals_blocked():
            return iter(loader)


def end_workers(batches: Any) -> None:
    """End the workers of an iterator that `started` has returned."""
    if hasattr(batches, "_shutdown_workers"):  # not without workers
        batches._shutdown_workers()


def close_workers(loader: "DataLoader[Any]") -> None:
    """End the persistent workers of a loader; its next iteration starts new ones."""
    batches, loader._iterator = loader._iterator, None
    end_workers(batches)
