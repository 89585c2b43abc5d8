"""The run folder: the names of its files, who holds it, its state, its summary and its log."""

import logging
import os
import platform
import shlex
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.metadata import version
from pathlib import Path
from typing import IO, Any, TextIO, TypedDict, cast

import yaml

from sppcls.checkpoints import CALIBRATED, CHECKPOINTS, LAST, clear_leftovers
from sppcls.errors import ConfigError
from sppcls.files import read_config_values, read_json, write_json, write_text
from sppcls.spec import Spec, parse_stored
from sppcls.terminal import close_output, is_only_logged, log

CONFIG, STATUS, SUMMARY, LOG, LOCK = "config.yaml", "status.json", "summary.json", "train.log", ".lock"
METRICS, GAP, MISTAKES, SKIPPED, REPORT = "metrics.csv", "gap.csv", "mistakes.json", "skipped.txt", "report.html"
INSIDE = "checkpoints"
# What a run, its report and its evaluations write: nothing else is ever removed.
FILES = (
    CONFIG, STATUS, SUMMARY, LOG, METRICS, GAP, MISTAKES, SKIPPED, REPORT, "summary.csv", "summary.md", "answers.npz",
    "images.npz", "evaluation.json", "evaluation.csv", "evaluation-classes.csv", "evaluation.svg",
)  # fmt: skip
_open_locks: set[IO[str]] = set()
if hasattr(os, "register_at_fork"):
    # A loader's worker outlives a killed run by some seconds, and would keep its folder locked.
    os.register_at_fork(after_in_child=lambda: [file.close() for file in _open_locks])


class GapRow(TypedDict):
    """The generalization gap at one scale: training less validation accuracy."""

    scale: int
    train_acc1: float
    generalization_gap: float


class Summary(TypedDict, total=False):
    """What summary.json holds of a finished run; accuracies are fractions, scales are in pixels."""

    part: str
    acc1: float | None
    generalization_gap: float | None
    train_acc1: float
    val_scale: int
    scales: list[dict[str, Any]]
    gaps: list[GapRow]
    scale_spread: float
    scale_consistency: float
    scale_area: float
    worst_scale: int
    agreement: list[list[float]]
    measures: dict[str, float | None]
    epochs: int
    seconds: float
    gap_seconds: float
    lr: float
    label_smoothing: float
    parameters: int
    seed: int
    classes: int
    train_images: int
    train_repeats: int
    train_megapixels: float
    val_images: int
    data_costs: list[dict[str, Any]]
    mixing: dict[str, Any]


class RunFolder:
    """One run's folder, held by this process until `close` or its end.

    It must not hold a run already unless ``resume`` or ``anew``, which removes what an earlier attempt has left there.
    """

    def __init__(self, path: str | Path, *, resume: bool = False, anew: bool = False) -> None:
        self.path = Path(path)
        self._environment: dict[str, object] = {}
        self._started = time.time()
        if not (resume or anew):
            self._refuse_content()
        self._refuse_links()
        try:
            (self.path / INSIDE).mkdir(parents=True, exist_ok=True)
            self._lock()
        except OSError as error:
            raise ConfigError(f"run_dir={path} cannot be written: {error.strerror}") from None
        try:
            if not (resume or anew):
                self._refuse_content()  # again: another run may have used it meanwhile
        except ConfigError:
            self.close()
            raise
        (self.path / INSIDE / CALIBRATED).unlink(missing_ok=True)  # of weights that are about to change
        clear_leftovers(self.path, FILES)
        clear_leftovers(self.path / INSIDE)
        for file in self._files() if anew and not resume else ():
            file.unlink(missing_ok=True)

    def _lock(self) -> None:
        self.held = (self.path / LOCK).open("w")
        _open_locks.add(self.held)
        try:
            import fcntl
        except ImportError:  # Windows has no such lock
            return
        for _ in range(20):  # for a second: the holder may only be checking, or about to exit
            with suppress(BlockingIOError):
                fcntl.flock(self.held, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            time.sleep(0.05)
        self.close()
        raise ConfigError(f"run_dir={self.path} is in use by another process; wait for it or name another folder")

    def close(self) -> None:
        """Release the folder."""
        _open_locks.discard(self.held)
        self.held.close()

    def _files(self) -> list[Path]:
        return [self.path / name for name in FILES] + [self.path / INSIDE / name for name in CHECKPOINTS]

    def _refuse_links(self) -> None:
        """Reject a folder with links in it: files are written and removed there, and it may come from a stranger."""
        for name in ("", INSIDE, "tensorboard", "wandb", "mlflow.db"):
            if (self.path / name).is_symlink():
                raise ConfigError(f"{self.path / name} is a link; name its target instead, or remove the link")
        for file in (self.path / LOCK, *self._files()):
            if file.is_symlink() or (file.exists() and not file.is_file()):
                raise ConfigError(f"{file} is not a regular file; remove it")

    def _refuse_content(self) -> None:
        if (self.path / INSIDE / LAST).exists() or (self.path / SUMMARY).exists():
            raise ConfigError(f"run_dir={self.path} already holds a run; name another, or use resume={self.path}")
        others = {path.name for path in self.path.iterdir()} if self.path.is_dir() else set()
        beginnings = {LOCK, INSIDE, LOG, CONFIG}  # of a run that was killed at startup
        unknown = any(name not in beginnings and not name.startswith(".config.") for name in others)
        if unknown and STATUS not in others:  # which says that it saved nothing: there is nothing to lose
            raise ConfigError(f"run_dir={self.path} contains other files; name an empty or a new folder")

    def write_config(self, spec: Spec) -> None:
        """Write config.yaml."""
        write_text(self.path / CONFIG, yaml.safe_dump(spec.model_dump(mode="json"), sort_keys=False))

    def write_status(self, state: str, error: str | None = None) -> None:
        """Write status.json: running, finished, failed or interrupted, and the error."""
        if state == "running":  # and never when a run ends, possibly in the middle of torch's import
            self._environment = _environment()
        status = {"state": state, "pid": os.getpid(), "started": self._started, "updated": time.time()}
        write_json(self.path / STATUS, status | self._environment | ({"error": error} if error else {}))


class _Screen(logging.StreamHandler[TextIO]):
    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802
        if isinstance(sys.exception(), BrokenPipeError):
            close_output()
        super().handleError(record)


@contextmanager
def logging_to(folder: Path) -> Iterator[None]:
    """Send the package's log to a run folder's train.log, and plain lines to standard output."""
    to_file = logging.FileHandler(folder / LOG)
    to_file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    handlers: list[logging.Handler] = [to_file, *([] if is_only_logged() else [_Screen(sys.stdout)])]
    before = log.level, log.propagate, log.handlers
    log.setLevel(logging.INFO)
    log.propagate, log.handlers = False, [*log.handlers, *handlers]
    try:
        yield
    finally:
        log.level, log.propagate, log.handlers = before
        to_file.close()


def fresh_folder() -> str:
    """Create and return a new run folder under runs/, named after the time."""
    name = f"runs/{time.strftime('%Y-%m-%d_%H-%M-%S')}"
    folder, number = Path(name), 1
    try:
        while True:
            with suppress(FileExistsError):
                folder.mkdir(parents=True)
                return str(folder)
            folder, number = Path(f"{name}-{number + 1}"), number + 1
    except OSError as error:
        raise ConfigError(f"run_dir={folder} cannot be written: {error.strerror}") from None


def is_held(path: Path) -> bool:
    """Return whether a process has the run folder locked."""
    lock = path / LOCK
    with suppress(ImportError, OSError):
        import fcntl

        if lock.is_file():  # a pipe would wait for a writer
            with lock.open("r+") as file:  # NFS only locks files opened for writing
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    return True
    return False


def state_of(run: Path) -> str:
    """Return running, finished, failed or interrupted, or missing if the folder has no status.

    A run without a lock is not running, and without a summary it is not finished: both count as interrupted.
    """
    state = str(read_json(run / STATUS).get("state", "missing"))
    killed = state == "running" and not is_held(run)
    return "interrupted" if killed or (state == "finished" and not read_summary(run)) else state


def _environment() -> dict[str, object]:
    """Return the command, the versions and the hardware, as the report shows them."""
    import torch

    names = ("sppcls", "torch", "torchvision", "pytorch-lightning", "numpy")
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    machine = {"host": platform.node(), "system": platform.platform(), "cores": os.cpu_count()}
    return {
        "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "versions": {"python": platform.python_version()} | {name: version(name) for name in names},
        "hardware": machine | {"threads": torch.get_num_threads(), "gpu": gpu},
    }


def read_config(run: str | Path) -> Spec:
    """Return the spec of a run folder; raises ``ConfigError`` if it is not one."""
    file = Path(run) / CONFIG
    try:
        return parse_stored(read_config_values(file))
    except ValueError as error:
        raise ConfigError(f"{run} is not a run folder: {error}") from None
    except ConfigError as error:
        raise ConfigError(f"{file}: {error}") from None


def read_summary(run: Path) -> Summary:
    """Return what summary.json holds, empty where there is none that can be read."""
    return cast(Summary, read_json(run / SUMMARY))
