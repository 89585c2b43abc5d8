"""Programs that must end: each in a session of its own, watched to its end, with the stacks of one that does not."""

import contextlib
import os
import re
import shlex
import signal
import subprocess
import sys
import tempfile
import time
import uuid
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

MARK = "SPPCLS_TEST_PROGRAM"
PROC = Path("/proc")
_FAULT = re.compile(r"Traceback|Warning\b|Exception ignored|Fatal Python|terminate called|^Aborted|core dumped")
LONGEST = 60_000  # characters of an output that a failure shows
GRACE = 5  # seconds in which helpers of multiprocessing notice that their leader has ended
# faulthandler's list of modules, and what nanobind says at the end of a program whose objects are frozen
_NOISE = re.compile(r"^Extension modules: [^\n]*\n|^nanobind: .*", re.M | re.S)


@dataclass(frozen=True)
class Ended:
    """How a program ended; ``silent`` is the time from its last output, or a later signal, to its end, in seconds.

    ``seconds`` is how long it ran in all.
    """

    status: int
    out: str
    err: str
    silent: float
    seconds: float


class _Fork:
    def __init__(self, pid):
        self.pid, self.returncode = pid, None

    def poll(self):
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self.returncode = os.waitstatus_to_exitcode(status) if pid else None
        return self.returncode


class Program:
    """A program that runs. Its output goes to files, which nobody has to read for it to go on and whose age is known.

    Make it by ``started`` or ``forked``.
    """

    def __init__(self, said):
        self.said, self.mark, self.last = said, uuid.uuid4().hex, time.time()
        self.begun = self.last
        self._out, self._err = _unnamed_file(self), _unnamed_file(self)
        self.process = None
        if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as in a shell's background job, and so in its children
            signal.signal(signal.SIGINT, signal.default_int_handler)

    @classmethod
    def started(cls, command: Sequence[str], folder: Path, **environment: str) -> "Program":
        """Start a command in a folder."""
        self = cls(shlex.join(map(str, command)))
        self.process = subprocess.Popen(
            list(map(str, command)),
            cwd=folder,
            env=self._environment() | environment,
            stdin=subprocess.DEVNULL,
            stdout=self._out,
            stderr=self._err,
            start_new_session=True,
        )
        return self

    @classmethod
    def forked(cls, main: Callable[[], None], command: Sequence[str], folder: Path) -> "Program":
        """Fork a program from this process, which has imported it; it ends as the interpreter does.

        What ``main`` raises passes through the frames that called this: none may catch it or clean up.
        """
        self = cls(shlex.join(map(str, command)))
        begun, begin = os.pipe()
        pid = os.fork()
        if not pid:
            os.setsid()
            os.dup2(self._out, 1)
            os.dup2(self._err, 2)
            os.chdir(folder)
            os.environ.update(self._environment())
            sys.argv = list(map(str, command))
            os.write(begin, b"1")
            os.close(begin)
            main()
            sys.exit()
        os.close(begin)
        os.read(begun, 1)  # a signal would be lost in what Python does after a fork
        os.close(begun)
        self.process = _Fork(pid)
        return self

    def _environment(self):
        kept = {name: value for name, value in os.environ.items() if name != "COVERAGE_PROCESS_START"}
        ours = {MARK: self.mark, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1", "PYTHONFAULTHANDLER": "1"}
        return kept | ours

    @property
    def out(self) -> str:
        return _content(self._out)

    @property
    def err(self) -> str:
        return _NOISE.sub("", _content(self._err))

    def signal(self, number: int, group: bool = False) -> None:
        """Send a signal to the program or, as a terminal does, to its whole process group."""
        if self.process.poll() is None:
            self.last = time.time()
            (os.killpg if group else os.kill)(self.process.pid, number)

    def until(self, true: Callable[[], bool], seconds: float = 120) -> None:
        """Wait until something is true while the program runs; a program that ends before fails the test."""
        deadline = time.monotonic() + patience(seconds)
        while not true():
            assert self.process.poll() is None, (
                f"ended with {self.process.returncode}: {self.said}\n{self.err[-LONGEST:]}"
            )
            assert time.monotonic() < deadline, f"waited {seconds} s in vain for {self.said}\n{self.stacks()}"
            time.sleep(0.01)

    def end(self, status: int | None = 0, seconds: float = 240, grace: float = GRACE) -> Ended:
        """Wait for the end; a wrong status, an end that does not come and a process that is left fail the test."""
        deadline = time.monotonic() + patience(seconds)
        while self.process.poll() is None:
            assert time.monotonic() < deadline, f"not ended after {seconds} s: {self.said}\n{self.stacks()}"
            time.sleep(0.01)
        silent = time.time() - max(self.last, *(os.fstat(file).st_mtime for file in (self._out, self._err)))
        found = Ended(self.process.returncode, self.out, self.err, silent, time.time() - self.begun)
        deadline = time.monotonic() + patience(grace)
        while self.family() and time.monotonic() < deadline:
            time.sleep(0.02)
        if left := self.family():
            raise AssertionError(f"{len(left)} processes are left by {self.said}\n{self.stacks()}")
        if status is not None:
            assert found.status == status, f"{found.status} for {status}: {self.said}\n{found.err[-LONGEST:]}"
        return found

    def family(self) -> list[int]:
        """Return the processes of the program's session, and those elsewhere that have its environment."""
        if not PROC.is_dir():
            return []
        return [int(entry.name) for entry in PROC.iterdir() if entry.name.isdigit() and self._has(entry)]

    def _has(self, entry):
        try:
            state, _, _, session = (entry / "stat").read_text().rpartition(")")[2].split()[:4]
            marked = f"{MARK}={self.mark}".encode() in (entry / "environ").read_bytes().split(b"\0")
        except OSError:  # ended meanwhile
            return False
        return state != "Z" and (int(session) == self.process.pid or marked)

    def stacks(self) -> str:
        """End every process of the program; returns what it said, and their stacks at that moment."""
        family = self.family()
        for pid in family:
            _send(pid, signal.SIGSTOP)  # none sees the end of another
        for pid in family:
            command = (PROC / str(pid) / "cmdline").read_bytes().replace(b"\0", b" ")[:200]
            os.write(self._err, b"\n==== stacks of %d: %s\n" % (pid, command))
            _send(pid, signal.SIGABRT)
            _send(pid, signal.SIGCONT)
            deadline = time.monotonic() + 2
            while pid in self.family() and time.monotonic() < deadline:
                time.sleep(0.02)
                self.process.poll()
        for pid in self.family():
            _send(pid, signal.SIGKILL)
        while self.process.poll() is None:
            time.sleep(0.02)
        return f"{self.out[-2000:]}\n{self.err[-LONGEST:]}"


def run_to_end(command: Sequence[str], folder: Path, status: int | None = 0, seconds: float = 240, **env: str) -> Ended:
    """Run a command to its end, as ``Program.end`` wants it."""
    return Program.started(command, folder, **env).end(status, seconds)


def end_all(programs: Sequence[Program], seconds: float = 240) -> list[Ended]:
    """Wait for the end of programs that work together; where one fails, the stacks of all are shown."""
    deadline = time.monotonic() + patience(seconds)
    while any(program.process.poll() is None for program in programs) and time.monotonic() < deadline:
        time.sleep(0.01)
    statuses = [program.process.returncode for program in programs]
    assert not any(status is None or status for status in statuses), "\n\n".join(
        f"{program.said} ended with {status}\n{program.stacks()}"
        for program, status in zip(programs, statuses, strict=True)
    )
    return [program.end() for program in programs]


def _send(pid, number):
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def patience(seconds: float = 5) -> float:
    """Return how long something may take that takes so many seconds: more where others use the machine."""
    return seconds * max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1))


def faults(ended: Ended) -> list[str]:
    """Return the lines of an output that nobody should see: tracebacks and Python's warnings."""
    lines = (ended.out + ended.err).splitlines()
    # torch's own advice where there are fewer processors than workers
    return [line for line in lines if _FAULT.search(line) and "DataLoader will create" not in line]


def _unnamed_file(owner):
    file, path = tempfile.mkstemp()
    os.unlink(path)  # noqa: PTH108
    weakref.finalize(owner, os.close, file).atexit = False
    return file


def _content(file):
    return os.pread(file, os.fstat(file).st_size, 0).decode(errors="replace")
