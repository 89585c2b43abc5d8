"""Batches of a plan from any number of workers, epoch after epoch, resumable at any batch, and how workers end."""

import multiprocessing
import os
import signal
import threading
import time
import weakref
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from multiprocessing import forkserver, resource_tracker
from typing import TYPE_CHECKING, Any, overload

from sppcls.data.steps import Batch, EpochPlan, Step
from sppcls.errors import DataError
from sppcls.process import STATUSES, signals_held

if TYPE_CHECKING:  # the server of workers begins before torch is imported
    from torch.utils.data import DataLoader

    from sppcls.data.batch import ImageBatch, MixedBatch
    from sppcls.data.images import BatchDataset

Batches = Generator["ImageBatch", None, None]
Steps = Generator["ImageBatch | MixedBatch", None, None]


@overload
def batches_of(dataset: "BatchDataset", batches: Iterable[Batch], num_workers: int = 0) -> Batches: ...
@overload
def batches_of(dataset: "BatchDataset", batches: Iterable[Batch | Step], num_workers: int = 0) -> Steps: ...
def batches_of(dataset: "BatchDataset", batches: Iterable[Batch | Step], num_workers: int = 0) -> Any:
    """Yield planned batches as tensors; the workers stop with the generator, also if it is closed early."""
    running = started(_data_loader(dataset, list(batches), num_workers))
    try:
        yield from running
    finally:
        end_workers(running)


def _data_loader(
    dataset: "BatchDataset",
    sampler: Iterable[Batch | Step],
    num_workers: int,
    pin_memory: bool = False,
    persistent: bool = False,
) -> "DataLoader[ImageBatch | MixedBatch]":
    # A generator of its own: starting to iterate draws a number, which must not be taken from the network's training.
    import torch
    from torch.utils.data import DataLoader

    return DataLoader(
        dataset,
        batch_size=None,
        sampler=sampler,
        num_workers=num_workers,
        pin_memory=pin_memory,
        persistent_workers=persistent,
        worker_init_fn=partial(_begin, os.getpid(), _served),
        multiprocessing_context="forkserver" if _served and num_workers else None,
        generator=torch.Generator(),
    )


class _Share:
    """The batches to hand out, as a sampler that is read anew whenever an epoch starts."""

    batches: Iterator[Batch | Step] = iter(())

    def __iter__(self) -> Iterator[Batch | Step]:
        return self.batches


class PlannedLoader:
    """Iterates over a rank's batches of an epoch; each new iteration is the next epoch, at that epoch's scale.

    Its length is that of the epoch. Workers persist: all that changes travels inside the batch that they
    are handed. ``state_dict`` counts batches handed out, not batches prefetched, so a loader that loads it resumes with
    the very next batch. At an unreadable image ``on_error="fail"`` raises ``DataError``; ``skip`` continues, the
    image's target is -1 and ``skipped`` names it.
    """

    batch_sampler = None  # Lightning asks, having found `sampler`

    def __init__(
        self,
        dataset: "BatchDataset",
        plan: Callable[[int], EpochPlan],
        *,
        rank: int = 0,
        num_workers: int = 0,
        pin_memory: bool = False,
        on_error: str = "fail",
        skipped: dict[str, str] | None = None,
    ) -> None:
        self.dataset, self.plan, self.rank = dataset, plan, rank
        self.epoch, self.position = 0, 0
        self.skipped = {} if skipped is None else skipped
        self._on_error, self._resumed, self._share = on_error, False, _Share()
        first = plan(0)
        self.world, self._steps = first.world, (0, self._of(first))
        self._workers = _data_loader(dataset, self._share, num_workers, pin_memory, persistent=num_workers > 0)
        # In a garbage cycle the workers' queues would be freed first, and each worker waited for in vain for 5 s.
        weakref.finalize(self, close_workers, self._workers).atexit = False

    def close(self) -> None:
        """Stop the workers; the next iteration starts new ones."""
        close_workers(self._workers)

    @property
    def sampler(self) -> "PlannedLoader":
        """Where Lightning looks for ``set_epoch``."""
        return self

    def set_epoch(self, epoch: int) -> None:
        """Make ``epoch`` the next one to iterate; the current epoch is not affected."""
        if epoch != self.epoch:
            self.epoch, self.position = epoch, 0

    def __len__(self) -> int:
        if self._steps[0] != self.epoch:
            self._steps = self.epoch, self._of(self.plan(self.epoch))
        return self._steps[1]

    def _of(self, plan: EpochPlan) -> int:
        return len(range(self.rank, len(plan), plan.world))

    def __iter__(self) -> "Iterator[ImageBatch | MixedBatch]":
        # A generator's body runs at the first batch, so an epoch set after iter() still counts.
        if self.position and not self._resumed:
            self.epoch, self.position = self.epoch + 1, 0
        self._resumed = False
        self._share.batches = self.plan(self.epoch).of_rank(self.rank, self.position)
        for batch in started(self._workers):
            self.position += 1
            for index, reason in batch.pop("broken"):
                if self._on_error == "fail":
                    raise DataError(f"{reason}; data.on_error=skip skips such files")
                self.skipped[str(self.dataset.source.names[index])] = reason
            yield batch

    def state_dict(self) -> dict[str, int]:
        """Return the epoch, and how many of its batches were handed out to each of how many ranks."""
        return {"epoch": self.epoch, "position": self.position, "world": self.world}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Resume after the batches that ``state`` has counted."""
        self.epoch, self.position = state["epoch"], state["position"]
        self._resumed = True
        if self.position >= len(self):
            self.epoch, self.position = self.epoch + 1, 0


_OF_THE_LEADER = {status - 128 for status in STATUSES} if hasattr(signal, "sigtimedwait") else set[int]()
_THREADS = "OPENBLAS_NUM_THREADS"

_served = False


def serve_workers() -> None:
    """Start workers from a fork server without threads, launched now, instead of forking this process.

    A fork while another thread of a rank (gloo's) holds a lock may deadlock the child.
    """
    global _served
    if _OF_THE_LEADER and not _served:
        _served = True
        multiprocessing.set_forkserver_preload([f"{__package__}.images"])
        before = os.environ.get(_THREADS)
        os.environ[_THREADS] = "1"
        with _leaders_signals_blocked():
            resource_tracker.ensure_running()  # which lets SIGINT and SIGTERM through again
        with _leaders_signals_blocked():
            forkserver.ensure_running()
        del os.environ[_THREADS]
        os.environ |= {_THREADS: before} if before else {}


def _begin(leader: int, served: bool, _worker: int) -> None:
    """Ignore signals sent to the whole process group, as the leader needs its workers to save; exit with the leader.

    A SIGTERM from the leader itself ends the worker: multiprocessing sends it at exit, then waits for its children.
    torch's workers also watch their parent, but take whatever process they find at startup for it: one whose leader was
    killed a moment before would live forever, as would those of a fork server.
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


def started(loader: "DataLoader[ImageBatch | MixedBatch]") -> "Iterator[ImageBatch | MixedBatch]":
    """Return the iterator of a loader, whose workers start and stay with the leader's signals blocked."""
    with signals_held():
        if not _OF_THE_LEADER:
            return iter(loader)
        with _leaders_signals_blocked():
            return iter(loader)


def end_workers(batches: object) -> None:
    """Stop the workers of an iterator returned by `started`."""
    if hasattr(batches, "_shutdown_workers"):  # not without workers
        batches._shutdown_workers()


def close_workers(loader: "DataLoader[ImageBatch | MixedBatch]") -> None:
    """Stop the persistent workers of a loader; its next iteration starts new ones."""
    batches, loader._iterator = loader._iterator, None
    end_workers(batches)
