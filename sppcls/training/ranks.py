"""Several processes for one run: started and watched here, or started by torchrun or srun and joined.

torch's own launcher cannot stand in: it passes no open file to a rank, which keeps the run folder locked where the
leader is killed, and it takes seconds to import in a leader that needs no torch.
"""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from pathlib import Path

from sppcls.data.catalog import Splits
from sppcls.data.loader import serve_workers
from sppcls.errors import SppclsError, one_line
from sppcls.files import read_json, write_json
from sppcls.process import STATUSES, Interrupted, Signals, leave
from sppcls.run_folder import LOG, RunFolder, logging_to, read_config
from sppcls.spec import Spec
from sppcls.terminal import log
from sppcls.training.preflight import Resumed, joined_rank, precheck, threads_of_each

_RESULTS = "SPPCLS_RANK_RESULTS"  # a folder, where a rank leaves RANK.done or the error in RANK.json


def train(spec: Spec, folder: Path, signals: Signals, splits: Splits, resumed: Resumed | None = None) -> None:
    """Train in this process, alone or as one of several ranks; only rank 0 writes into the folder."""
    if spec.data.num_workers and joined_rank() is not None:
        serve_workers()  # first: it imports what workers need while this process imports more
    from sppcls.training.fit import fit

    fit(spec, folder, signals, splits, resumed)


def follow(spec: Spec, signals: Signals) -> None:
    """Train as a rank led by another process; writes and prints nothing."""
    with Path(os.devnull).open("w") as nowhere, contextlib.redirect_stdout(nowhere):
        train(spec, Path(spec.run_dir), signals, precheck(spec))


def run_ranks(folder: RunFolder, count: int, signals: Signals) -> None:
    """Start ``count`` ranks of the run in ``folder`` and wait; signals go to all of them, and if one fails, all end.

    Raises:
        SppclsError: A rank has failed.
        Interrupted: A signal has ended them, after a save.
    """
    with tempfile.TemporaryDirectory() as name:
        signals.defer()
        results = Path(name)
        ranks = [_start(folder, rank, environment) for rank, environment in enumerate(_environments(count, name))]
        try:
            codes = _ended(ranks, signals, results)
        finally:
            signals.defer(False)
            for rank in ranks:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(rank.pid, signal.SIGKILL)  # with the server of its workers, which may still be importing
                rank.wait()
        ended = signals.received or next((code - 128 for code in codes if code and code in STATUSES), None)
        if ended:
            raise Interrupted(ended)
        if not all(_is_done(results, rank) for rank in range(count)):
            raise _failure(codes, results)
        for number, code in enumerate(codes):
            if code:
                log.warning("rank %d %s after finishing its work; the run is complete", number, _exit_of(code))


def _environments(count: int, results: str) -> list[dict[str, str]]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    package = str(Path(__file__).parents[2])  # also where train.py runs from a checkout that is not installed
    paths = os.pathsep.join([package, *filter(None, [os.environ.get("PYTHONPATH")])])
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(count), "GROUP_RANK": "0"}
    shared |= {"LOCAL_WORLD_SIZE": str(count), "OMP_NUM_THREADS": str(threads_of_each(count))}
    shared |= {"PYTHONPATH": paths, _RESULTS: results}
    return [os.environ | shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(count)]


def _start(folder: RunFolder, rank: int, environment: dict[str, str]) -> subprocess.Popen[bytes]:
    # A session of its own: Ctrl-C reaches a rank once, from here. It inherits the lock, so that nobody resumes the run
    # while a rank is still alive after its leader was killed.
    # Not -m: loader workers would import this file again as __main__.
    command = [sys.executable, "-c", "from sppcls.training.ranks import main; main()", str(folder.path)]
    held = [folder.held.fileno()] if rank == 0 else []
    return subprocess.Popen(command, env=environment, start_new_session=True, pass_fds=held)


def _ended(ranks: list[subprocess.Popen[bytes]], signals: Signals, results: Path) -> list[int | None]:
    """Return the exit statuses once all have ended or one has failed; None for those still running."""
    passed_on = None

    def running() -> bool:
        return None in [rank.poll() for rank in ranks]  # polls every rank, so that each one's end is noticed

    def failed() -> bool:
        return any(rank.returncode and not _is_done(results, number) for number, rank in enumerate(ranks))

    while running() and not failed():
        if signals.received != passed_on:
            passed_on = signals.received
            for rank in ranks:
                rank.terminate()  # whatever the signal: SIGINT makes a rank that is still importing print a traceback
        time.sleep(0.05)
    together = any(rank.returncode in STATUSES for rank in ranks)
    deadline = time.monotonic() + (30 if together else 1)  # some time for those that fail for the same reason
    while running() and time.monotonic() < deadline:
        time.sleep(0.05)
    return [rank.returncode for rank in ranks]


def _failure(codes: list[int | None], results: Path) -> SppclsError:
    """Return the root error: of a killed rank, else of one that reported an error, else the earliest."""
    for rank, code in enumerate(codes):
        if code is not None and code < 0 and not _is_done(results, rank):
            return SppclsError(f"rank {rank} {_exit_of(code)}; if memory ran out, lower data.batch_size")
    files = sorted(results.glob("*.json"), key=lambda file: file.stat().st_mtime_ns)
    errors = [read_json(file) for file in files]
    if not errors:
        return SppclsError(f"the ranks exited with {codes} without an error message; see train.log")
    first = min(errors, key=lambda error: not error["known"])
    failure = SppclsError(f"rank {first['rank']}: {first['line']}")
    failure.exit_status = first["status"]
    return failure


def _exit_of(code: int) -> str:
    return f"was killed ({signal.Signals(-code).name})" if code < 0 else f"exited with {code}"


def _is_done(results: Path, rank: int) -> bool:
    return (results / f"{rank}.done").exists()


def _end_with_leader() -> None:
    leader = os.getppid()

    def watch() -> None:
        while os.getppid() == leader:
            time.sleep(0.5)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()


def main() -> None:
    """Run one rank of the run whose folder is on the command line."""
    folder, rank, results = Path(sys.argv[1]), int(os.environ["RANK"]), Path(os.environ[_RESULTS])
    spec = read_config(folder)
    _end_with_leader()
    status = 0
    try:
        with Signals() as signals, logging_to(folder) if rank == 0 else contextlib.nullcontext():
            train(spec, folder, signals, precheck(spec)) if rank == 0 else follow(spec, signals)
        (results / f"{rank}.done").touch()
    except Interrupted as ended:
        status = ended.status
        if not ended.held:  # others may be blocked waiting for this rank, with nothing to save
            signal.signal(status - 128, signal.SIG_DFL)
            os.kill(os.getpid(), status - 128)
    except Exception as error:
        known = isinstance(error, SppclsError)
        status = error.exit_status if isinstance(error, SppclsError) else 1
        write_json(results / f"{rank}.json", {"rank": rank, "line": one_line(error), "status": status, "known": known})
        if not known and rank == 0:
            with (folder / LOG).open("a") as file:
                traceback.print_exception(error, file=file)
    leave(status, alone=False)
