"""The run folder: who holds it, what state it is in, and its log."""

import logging
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
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
        path: The folder; must not hold a run already unless ``resume``.
    """

    def __init__(self, path: str | Path, *, resume: bool = False) -> None:
        self.path = Path(path)
        if not resume:
            self._refuse_what_is_there()
        try:
            (self.path / "checkpoints").mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"run_dir={path} cannot be made: {error.strerror}") from None
        self._started = time.time()

    def _refuse_what_is_there(self) -> None:
        if (self.path / "checkpoints" / "last.ckpt").exists() or (self.path / "summary.json").exists():
            raise ConfigError(f"run_dir={self.path} already holds a run; name another, or resume={self.path} to go on")
        started = (self.path / "status.json").exists()  # and saved nothing: there is nothing to lose
        if self.path.is_dir() and any(self.path.iterdir()) and not started:
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
        write_json(self.path / "status.json", status | ({"error": error} if error else {}))


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
