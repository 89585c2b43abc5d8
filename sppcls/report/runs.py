"""Run folders read back as values: settings, state, summary, curves; nothing else is needed, and nothing is run."""

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from math import isfinite
from pathlib import Path
from typing import Any

from sppcls.errors import ConfigError, SppclsError, did_you_mean
from sppcls.files import is_name, read_bytes, read_config_values
from sppcls.measure.answers import Answers, load_answers

MANIFEST = "sweep.json"  # of a sweep
# Of a run's settings, those that say where and how it ran, or which of several alike it is.
_BESIDE = ("seed", "run_dir", "sweep_dir", "resume", "plan_only", "sweep.", "logger.")
_HOW = ("data.num_workers", "data.cache", "metrics.")
_LIMIT = 64 << 20  # bytes of a table or an object; a thousand classes are mistaken for one another in 4 MB


@dataclass(frozen=True)
class Run:
    """What a run folder holds; what a run that is not finished lacks is empty."""

    folder: Path
    config: dict[str, Any]
    status: dict[str, Any]
    summary: dict[str, Any]
    epochs: list[dict[str, str]]
    gaps: list[dict[str, str]]
    mistakes: dict[str, Any]

    @property
    def state(self) -> str:
        """Return running, finished, failed, interrupted, or unknown."""
        return str(self.status.get("state", "unknown"))

    @property
    def finished(self) -> bool:
        """Return whether there is a summary to report."""
        whole = isinstance(self.summary.get("scales"), list) and "val_scale" in self.summary
        return self.state == "finished" and whole

    @property
    def seed(self) -> int:
        """Return the seed; runs of two variants are paired by it."""
        return int(self.config.get("seed", 0))

    @cached_property
    def answers(self) -> Answers | None:
        """Return the answers that the run kept, or None where there are none that can be read."""
        try:
            return load_answers(self.folder)
        except SppclsError:
            return None

    def last_lines(self, count: int = 5) -> list[str]:
        """Return the end of train.log."""
        path = self.folder / "train.log"
        if not path.is_file():
            return []
        with path.open("rb") as file:
            file.seek(max(path.stat().st_size - (64 << 10), 0))
            return file.read(64 << 10).decode(errors="replace").splitlines()[-count:]


def read_manifest(folder: Path) -> dict[str, Any]:
    """Return what a sweep.json holds, empty where there is none; raises ``ConfigError`` at a job that is none.

    The folder may be a stranger's: a job's name is that of a folder in it, and what such a folder holds is removed
    where the job starts anew.
    """
    values = read_json(folder / MANIFEST)
    jobs = values.get("jobs", {})
    if values and not isinstance(values.get("jobs"), dict):
        raise ConfigError(f"{folder / MANIFEST} is no manifest of a sweep: it has no jobs; name another folder")
    for name, entry in jobs.items():
        if not is_name(name) or not isinstance(entry, dict):
            raise ConfigError(f"{folder / MANIFEST}: {name[:60]!r} is no name of a job's folder; remove it")
    return values


def is_run(folder: Path) -> bool:
    """Return whether a folder is a run's."""
    return (folder / "config.yaml").is_file() and (folder / "status.json").is_file()


def read_run(folder: Path) -> Run:
    """Return a run folder's values; raises ``ConfigError`` where its config cannot be read."""
    try:
        config = read_config_values(folder / "config.yaml")
    except ValueError as error:
        raise ConfigError(f"{folder} is not a run folder: {error}") from None
    if not isinstance(config.get("seed", 0), int) or not isinstance(config.get("sweep") or {}, dict):
        raise ConfigError(f"{folder} is not a run folder: config.yaml has another seed or sweep than a run's")
    status, summary, mistakes = (read_json(folder / f"{name}.json") for name in ("status", "summary", "mistakes"))
    return Run(folder, config, status, summary, _rows(folder / "metrics.csv"), _gaps(folder / "gap.csv"), mistakes)


def read_runs(folder: Path) -> list[Run]:
    """Return the runs in a sweep's folder, in its order; raises ``ConfigError`` where there is none."""
    if not folder.is_dir():
        raise ConfigError(f"no folder {folder}; name a run or a sweep")
    order = list(read_manifest(folder).get("jobs", {}))
    paths = sorted(folder.iterdir(), key=lambda p: (order.index(p.name) if p.name in order else len(order), p.name))
    runs = [_read_or_unreadable(path) for path in paths if is_run(path)]
    if not runs:
        raise ConfigError(f"{folder} holds no run: neither it nor a folder in it has config.yaml and status.json")
    if all(run.state == "unreadable" for run in runs):
        raise ConfigError(str(runs[0].status["error"]))
    return runs


def _read_or_unreadable(folder: Path) -> Run:
    """Return a run, or where its config is damaged one without values, so that the others can be reported."""
    try:
        return read_run(folder)
    except ConfigError as error:
        return Run(folder, {}, {"state": "unreadable", "error": str(error)}, {}, [], [], {})


def read_json(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file, empty where there is none that can be read."""
    try:
        loaded = json.loads(read_bytes(path, _LIMIT), parse_constant=lambda _: None)  # NaN, which is no JSON
    except (OSError, ValueError, RecursionError):
        return {}
    return loaded if isinstance(loaded, dict) else {}


def _rows(path: Path) -> list[dict[str, str]]:
    """Return a table's rows, an epoch and scale once: one that was begun again after a kill counts as it ended."""
    try:
        table = csv.DictReader(io.StringIO(read_bytes(path, _LIMIT).decode(), newline=""))
        rows = [row for row in table if None not in row and None not in row.values()]
    except (OSError, UnicodeDecodeError, csv.Error):
        return []
    return list({(row.get("epoch"), row.get("scale") if "gap" in row else None): row for row in rows}.values())


def _gaps(path: Path) -> list[dict[str, str]]:
    """Return the rows of gap.csv whose cells are numbers."""

    def whole(row: dict[str, str]) -> bool:
        try:
            return all(int(row[name]) >= 0 for name in ("epoch", "scale")) and all(
                isfinite(float(row[name])) for name in ("train_acc1", "val_acc1", "gap")
            )
        except (KeyError, ValueError):
            return False

    return [row for row in _rows(path) if whole(row)]


def flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested values under dotted keys.

    >>> flat({"model": {"pool": "spp"}, "seed": 1})
    {'model.pool': 'spp', 'seed': 1}
    """
    found: dict[str, Any] = {}
    for key, value in values.items():
        found |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) and value else {f"{prefix}{key}": value}
    return found


def differences(runs: Sequence[Run]) -> list[str]:
    """Return the keys whose values differ between runs and may change their results, seeds aside."""
    configs = [flat(run.config) for run in runs]
    every = sorted({key for config in configs for key in config if not key.startswith((*_BESIDE, *_HOW))})
    return [key for key in every if len({str(config.get(key)) for config in configs}) > 1]


def variants(runs: Sequence[Run]) -> dict[str, list[Run]]:
    """Return the runs by variant: the name that a sweep gave it, and the values that differ within that name."""
    named: dict[str, list[Run]] = {}
    for run in (run for run in runs if run.state != "unreadable"):
        named.setdefault(str((run.config.get("sweep") or {}).get("variant") or ""), []).append(run)
    found: dict[str, list[Run]] = {}
    for name, alike in named.items():
        keys = differences(alike)
        for run in alike:
            config = flat(run.config)
            own = " ".join(f"{key}={_compact(config.get(key))}" for key in keys)
            found.setdefault(" ".join(filter(None, (name, own))) or "all runs", []).append(run)
    return found


def _compact(value: Any) -> str:
    return str(value).replace(" ", "").replace("'", "")


def chosen_baseline(by_variant: dict[str, list[Run]], given: Sequence[str]) -> str:
    """Return the variant that the others are compared with: the one given, or named in the runs' settings, or
    else the first one that has a finished run.

    Raises:
        ConfigError: Two baselines, or one that is no variant here.
    """
    named = {
        str(b) for runs in by_variant.values() for run in runs if (b := (run.config.get("sweep") or {}).get("baseline"))
    }
    wanted = list(dict.fromkeys(given)) or sorted(named)
    if len(wanted) > 1:
        raise ConfigError(
            f"two baselines, {wanted[0]!r} and {wanted[1]!r}; name one with sweep.baseline= or, in a report, --baseline"
        )
    if wanted and [*by_variant] == ["all runs"]:
        raise ConfigError(f"baseline {wanted[0]!r}: the runs differ in their seed alone; there is nothing to compare")
    if wanted and wanted[0] not in by_variant:
        raise ConfigError(f"baseline {wanted[0]!r} is no variant here{did_you_mean(wanted[0], by_variant)}")
    ready = (name for name, runs in by_variant.items() if any(run.finished for run in runs))
    return wanted[0] if wanted else next(ready, next(iter(by_variant)))
