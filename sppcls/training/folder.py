"""The run folder: who holds it, what state it is in, and its log."""

import logging
import os
import platform
import shlex
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml

from sppcls.atomic import write_json, write_text
from sppcls.errors import ConfigError
from sppcls.spec import Spec, parse

log = logging.getLogger("sppcls")


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
        try:
            (self.path / "checkpoints").mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"run_dir={path} cannot be made: {error.strerror}") from None
        self._lock()
        if anew and not resume:
            self._clear()
        self._started = time.time()

    def _lock(self) -> None:
        """Hold the folder until this process ends, however it ends."""
        self._held = (self.path / ".lock").open("w")
        try:
            import fcntl

            fcntl.flock(self._held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except ImportError:  # Windows has no such lock
            return
        except BlockingIOError:
            self._held.close()
            raise ConfigError(
                f"run_dir={self.path} is in use by another process; wait for it or name another"
            ) from None

    def _clear(self) -> None:
        for file in (*self.path.glob("checkpoints/*"), *(path for path in self.path.iterdir() if path.is_file())):
            if file.name != ".lock":
                file.unlink()

    def close(self) -> None:
        """Let the folder go."""
        self._held.close()

    def _refuse_what_is_there(self) -> None:
        if (self.path / "checkpoints" / "last.ckpt").exists() or (self.path / "summary.json").exists():
            raise ConfigError(f"run_dir={self.path} already holds a run; name another, or resume={self.path} to go on")
        started = (self.path / "status.json").exists()  # and saved nothing: there is nothing to lose
        if self.path.is_dir() and any(path.name != ".lock" for path in self.path.iterdir()) and not started:
            raise ConfigError(f"run_dir={self.path} is a folder with other things in it; name an empty or a new one")

    @contextmanager
    def logging(self) -> Iterator[None]:
        """Send the package's log to train.log, and plain lines to standard output."""
        to_file = logging.FileHandler(self.path / "train.log")
        to_file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        to_screen = logging.StreamHandler(sys.stdout)
        before = log.level, log.propagate
        log.setLevel(logging.INFO)
        log.propagate = False
        for handler in (to_file, to_screen):
            log.addHandler(handler)
        try:
            yield
        finally:
            for handler in (to_file, to_screen):
                log.removeHandler(handler)
            to_file.close()
            log.level, log.propagate = before

    def write_config(self, spec: Spec) -> None:
        """Write config.yaml."""
        write_text(self.path / "config.yaml", yaml.safe_dump(spec.model_dump(mode="json"), sort_keys=False))

    def write_status(self, state: str, error: str | None = None, **more: Any) -> None:
        """Write status.json: running, finished, failed or interrupted, and the error."""
        status = {"state": state, "pid": os.getpid(), "started": self._started, "updated": time.time(), **more}
        write_json(self.path / "status.json", status | environment() | ({"error": error} if error else {}))


def is_held(path: Path) -> bool:
    """Return whether a process has the run folder open."""
    try:
        import fcntl

        with (path / ".lock").open() as lock:
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
    path = Path(run) / "config.yaml"
    try:
        values = yaml.safe_load(path.read_text())
    except (OSError, yaml.YAMLError) as error:
        raise ConfigError(f"{run} is not a run folder: {path.name}: {str(error).splitlines()[0]}") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{run} is not a run folder: config.yaml holds no mapping")
    return parse(values)
