"""The run folder: its files, who holds it, what state it is in, and its log."""

import itertools
import logging
import os
import platform
import shlex
import sys
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from importlib.metadata import version
from pathlib import Path
from typing import IO, Any, TextIO

import yaml

from sppcls.checkpoints import CHECKPOINTS, clear_leftovers
from sppcls.errors import ConfigError
from sppcls.files import read_config_values, write_json, write_text
from sppcls.spec import Spec, parse
from sppcls.terminal import close_output, is_only_logged, log

# What a run, its report and its evaluations write: nothing else is ever removed.
FILES = (
    "config.yaml", "status.json", "summary.json", "summary.csv", "summary.md", "metrics.csv", "gap.csv", "answers.npz",
    "mistakes.json", "images.npz", "skipped.txt", "train.log", "report.html", "evaluation.json", "evaluation.csv",
    "evaluation-classes.csv", "evaluation.svg",
)  # fmt: skip
_open_locks: set[IO[str]] = set()
if hasattr(os, "register_at_fork"):
    # A loader's worker outlives a run that is killed by some seconds, and would hold its folder as long.
    os.register_at_fork(after_in_child=lambda: [file.close() for file in _open_locks])


class RunFolder:
    """One run's folder: config.yaml, status.json, train.log, and what training puts there.

    Args:
        path: The folder; must not hold a run already unless ``resume`` or ``anew``.
        anew: Take away what an earlier attempt has left there.
    """

    def __init__(self, path: str | Path, *, resume: bool = False, anew: bool = False) -> None:
        self.path = Path(path)
        if not (resume or anew):
            self._refuse_what_is_there()
        self._refuse_links()
        try:
            (self.path / "checkpoints").mkdir(parents=True, exist_ok=True)
            self._lock()
        except OSError as error:
            raise ConfigError(f"run_dir={path} cannot be written: {error.strerror}") from None
        try:
            if not (resume or anew):
                self._refuse_what_is_there()  # again: another run may have come and gone meanwhile
        except ConfigError:
            self.close()
            raise
        clear_leftovers(self.path, FILES)
        clear_leftovers(self.path / "checkpoints")
        if anew and not resume:
            self._clear()
        self._started = time.time()
        self._environment: dict[str, Any] = {}

    def _lock(self) -> None:
        """Hold the folder until this process ends, however it ends."""
        self.held = (self.path / ".lock").open("w")
        _open_locks.add(self.held)
        try:
            import fcntl
        except ImportError:  # Windows has no such lock
            return
        for _ in range(20):  # for a second: somebody may only be looking, or be about to end
            with suppress(BlockingIOError):
                fcntl.flock(self.held, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            time.sleep(0.05)
        self.close()
        raise ConfigError(f"run_dir={self.path} is in use by another process; wait for it or name another")

    def _clear(self) -> None:
        for file in self._files():
            file.unlink(missing_ok=True)

    def _files(self) -> list[Path]:
        inside = [self.path / name for name in FILES]
        return inside + [self.path / "checkpoints" / name for name in CHECKPOINTS]

    def _refuse_links(self) -> None:
        """Refuse a folder whose parts are elsewhere: they are written into and removed, and it may be a stranger's."""
        for name in ("", "checkpoints", "tensorboard", "wandb", "mlflow.db"):
            if (self.path / name).is_symlink():
                raise ConfigError(f"{self.path / name} is a link; name the folder that it leads to, or remove it")
        for file in (self.path / ".lock", *self._files()):
            if file.is_symlink() or (file.exists() and not file.is_file()):
                raise ConfigError(f"{file} is no regular file; remove it")

    def close(self) -> None:
        """Let the folder go."""
        _open_locks.discard(self.held)
        self.held.close()

    def _refuse_what_is_there(self) -> None:
        if (self.path / "checkpoints" / "last.ckpt").exists() or (self.path / "summary.json").exists():
            raise ConfigError(f"run_dir={self.path} already holds a run; name another, or resume={self.path} to go on")
        others = {path.name for path in self.path.iterdir()} if self.path.is_dir() else set()
        beginnings = {".lock", "checkpoints", "train.log", "config.yaml"}  # of a run that was killed as it began
        unknown = any(name not in beginnings and not name.startswith(".config.") for name in others)
        if unknown and "status.json" not in others:  # which says that it saved nothing: there is nothing to lose
            raise ConfigError(f"run_dir={self.path} is a folder with other things in it; name an empty or a new one")

    def logging(self) -> AbstractContextManager[None]:
        """Send the package's log to train.log, and plain lines to standard output."""
        return logging_to(self.path)

    def write_config(self, spec: Spec) -> None:
        """Write config.yaml."""
        write_text(self.path / "config.yaml", yaml.safe_dump(spec.model_dump(mode="json"), sort_keys=False))

    def write_status(self, state: str, error: str | None = None, **more: Any) -> None:
        """Write status.json: running, finished, failed or interrupted, and the error."""
        status = {"state": state, "pid": os.getpid(), "started": self._started, "updated": time.time(), **more}
        if state == "running":  # and never as a run ends, which may be in the midst of torch's import
            self._environment = environment()
        write_json(self.path / "status.json", status | self._environment | ({"error": error} if error else {}))


class _Screen(logging.StreamHandler[TextIO]):
    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802
        if isinstance(sys.exception(), BrokenPipeError):
            close_output()
        super().handleError(record)


@contextmanager
def logging_to(folder: Path) -> Iterator[None]:
    """Send the package's log to a run folder's train.log, and plain lines to standard output."""
    to_file = logging.FileHandler(folder / "train.log")
    to_file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    handlers: list[logging.Handler] = [to_file, *([] if is_only_logged() else [_Screen(sys.stdout)])]
    before = log.level, log.propagate
    log.setLevel(logging.INFO)
    log.propagate = False
    for handler in handlers:
        log.addHandler(handler)
    try:
        yield
    finally:
        for handler in handlers:
            log.removeHandler(handler)
        to_file.close()
        log.level, log.propagate = before


def fresh_folder() -> str:
    """Make and return a run folder under runs/ that no other run has, named after the time."""
    name = f"runs/{time.strftime('%Y-%m-%d_%H-%M-%S')}"
    for number in itertools.count(1):
        folder = Path(name if number == 1 else f"{name}-{number}")
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            continue
        except OSError as error:
            raise ConfigError(f"run_dir={folder} cannot be written: {error.strerror}") from None
        return str(folder)
    raise AssertionError("counting does not end")


def is_held(path: Path) -> bool:
    """Return whether a process has the run folder open."""
    try:
        import fcntl

        if not (path / ".lock").is_file():  # a pipe would wait for a writer
            return False
        with (path / ".lock").open("r+") as lock:  # NFS locks what is open to write
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except (ImportError, OSError):
        return False
    return False


def environment() -> dict[str, Any]:
    """Return the command, the versions and the hardware, as the report shows them."""
    import torch

    names = ("sppcls", "torch", "torchvision", "pytorch-lightning", "numpy")
    return {
        "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "versions": {"python": platform.python_version()} | {name: version(name) for name in names},
        "hardware": {
            "host": platform.node(),
            "system": platform.platform(),
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        },
    }


def read_config(run: str | Path) -> Spec:
    """Return the spec of a run folder; raises ``ConfigError`` where it is none."""
    file = Path(run) / "config.yaml"
    try:
        return parse(read_config_values(file))
    except ValueError as error:
        raise ConfigError(f"{run} is not a run folder: {error}") from None
    except ConfigError as error:
        raise ConfigError(f"{file}: {error}") from None
