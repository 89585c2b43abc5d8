"""Run folders read back as values and put together as variants; nothing in them is run."""

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from math import isfinite
from pathlib import Path
from typing import Any

from sppcls.errors import ConfigError, SppclsError, did_you_mean
from sppcls.files import TABLE_LIMIT, is_name, read_bytes, read_config_values, read_json
from sppcls.measure.answers import Answers, load_answers
from sppcls.run_folder import CONFIG, GAP, LOG, METRICS, MISTAKES, STATUS, Summary, read_summary

MANIFEST = "sweep.json"  # of a sweep
# Settings that only say where and how a run ran, or which of several equal runs it is.
_BESIDE = ("seed", "run_dir", "sweep_dir", "resume", "plan_only", "sweep.", "logger.")
_HOW = ("data.num_workers", "data.cache", "metrics.")
NO_VARIANT = (*_BESIDE, *_HOW)


@dataclass(frozen=True)
class Run:
    """The content of a run folder; what an unfinished run lacks is empty."""

    folder: Path
    config: dict[str, Any] = field(default_factory=dict)
    status: dict[str, Any] = field(default_factory=dict)
    summary: Summary = field(default_factory=Summary)
    epochs: Sequence[dict[str, str]] = ()
    gaps: Sequence[dict[str, str]] = ()
    mistakes: dict[str, Any] = field(default_factory=dict)

    @property
    def state(self) -> str:
        """Running, finished, failed, interrupted, unreadable, or unknown."""
        return str(self.status.get("state", "unknown"))

    @property
    def finished(self) -> bool:
        """Whether there is a summary to report."""
        return self.state == "finished" and isinstance(self.summary.get("scales"), list) and "val_scale" in self.summary

    @property
    def seed(self) -> int:
        """The seed; runs of two variants are paired by it."""
        return int(self.config.get("seed", 0))

    def of_sweep(self, name: str) -> str:
        """Return a value that the run's sweep gave it, such as ``variant``; empty where there is none."""
        return str((self.config.get("sweep") or {}).get(name) or "")

    @cached_property
    def answers(self) -> Answers | None:
        """The answers that the run kept, or None where there are none that can be read."""
        try:
            return load_answers(self.folder)
        except SppclsError:
            return None

    def last_lines(self, count: int = 5) -> list[str]:
        """Return the end of train.log."""
        path = self.folder / LOG
        if not path.is_file():
            return []
        with path.open("rb") as file:
            file.seek(max(path.stat().st_size - (64 << 10), 0))
            return file.read(64 << 10).decode(errors="replace").splitlines()[-count:]


def read_manifest(folder: Path) -> dict[str, Any]:
    """Return what a sweep.json holds, empty where there is none; raises ``ConfigError`` at a wrong job.

    The folder may come from a stranger: a job's name is that of a folder in it, and such a folder's files are removed
    when the job starts over.
    """
    values = read_json(folder / MANIFEST)
    jobs = values.get("jobs", {})
    if values and not isinstance(values.get("jobs"), dict):
        raise ConfigError(f"{folder / MANIFEST} is not a sweep's manifest: it has no jobs; name another folder")
    for name, entry in jobs.items():
        if not is_name(name) or not isinstance(entry, dict):
            raise ConfigError(f"{folder / MANIFEST}: {name[:60]!r} is not a valid name for a job folder; remove it")
    return values


def is_run(folder: Path) -> bool:
    """Return whether a folder is a run folder."""
    return (folder / CONFIG).is_file() and (folder / STATUS).is_file()


def read_run(folder: Path) -> Run:
    """Return a run folder's values; raises ``ConfigError`` if its config cannot be read."""
    try:
        config = read_config_values(folder / CONFIG)
    except ValueError as error:
        raise ConfigError(f"{folder} is not a run folder: {error}") from None
    if not isinstance(config.get("seed", 0), int) or not isinstance(config.get("sweep") or {}, dict):
        raise ConfigError(f"{folder} is not a run folder: config.yaml has no valid seed or sweep")
    gaps = [row for row in _rows(folder / GAP) if _is_gap(row)]
    status, mistakes = read_json(folder / STATUS), read_json(folder / MISTAKES)
    return Run(folder, config, status, read_summary(folder), _rows(folder / METRICS), gaps, mistakes)


def read_runs(folder: Path) -> list[Run]:
    """Return the runs in a sweep's folder, in its order; raises ``ConfigError`` if there are none.

    A run whose config is damaged has the state unreadable and no values, so that the others can be reported.
    """
    if not folder.is_dir():
        fault = "is not a folder" if folder.exists() else "does not exist"
        raise ConfigError(f"{folder} {fault}; name a run or a sweep")
    order = list(read_manifest(folder).get("jobs", {}))
    paths = sorted(folder.iterdir(), key=lambda p: (order.index(p.name) if p.name in order else len(order), p.name))
    runs = []
    for path in filter(is_run, paths):
        try:
            runs.append(read_run(path))
        except ConfigError as error:
            runs.append(Run(path, status={"state": "unreadable", "error": str(error)}))
    if not runs:
        raise ConfigError(f"{folder} has no runs: neither it nor a folder in it has config.yaml and status.json")
    if all(run.state == "unreadable" for run in runs):
        raise ConfigError(str(runs[0].status["error"]))
    return runs


def _rows(path: Path) -> list[dict[str, str]]:
    """Return a table's rows, one per epoch and scale: of one restarted after a kill, the last."""
    try:
        table = csv.DictReader(io.StringIO(read_bytes(path, TABLE_LIMIT).decode(), newline=""))
        rows = [row for row in table if None not in row and None not in row.values()]
    except (OSError, UnicodeDecodeError, csv.Error):
        return []
    return list({(row.get("epoch"), row.get("scale") if "gap" in row else None): row for row in rows}.values())


def _is_gap(row: dict[str, str]) -> bool:
    """Return whether the cells of a row of gap.csv are numbers."""
    try:
        whole = all(int(row[name]) >= 0 for name in ("epoch", "scale"))
        return whole and all(isfinite(float(row[name])) for name in ("train_acc1", "val_acc1", "gap"))
    except (KeyError, ValueError):
        return False


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested values under dotted keys.

    >>> flat({"model": {"pool": "spp"}, "seed": 1})
    {'model.pool': 'spp', 'seed': 1}
    """
    found: dict[str, Any] = {}
    for key, value in values.items():
        found |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) and value else {f"{prefix}{key}": value}
    return found


def tuned_keys(config: Mapping[str, Any]) -> list[str]:
    """Return the keys whose values were chosen among several for a run."""
    return list((config.get("sweep") or {}).get("tune") or ())


def differences(runs: Sequence[Run]) -> list[str]:
    """Return the keys whose values differ between runs and may change their results, except seeds."""
    configs = [flat(run.config) for run in runs]
    redrawn = any(config.get("sweep.redraw") for config in configs)
    chosen = {key for run in runs for key in tuned_keys(run.config)}  # for each seed
    beside = (*NO_VARIANT, *(["data.split_seed"] if redrawn else []))
    every = sorted({key for config in configs for key in config if not key.startswith(beside) and key not in chosen})
    return [key for key in every if len({str(config.get(key)) for config in configs}) > 1]


def variants(runs: Sequence[Run]) -> dict[str, list[Run]]:
    """Return the runs by variant: the name that a sweep gave it, and the values that differ within that name."""
    named: dict[str, list[Run]] = {}
    for run in (run for run in runs if run.state != "unreadable"):
        named.setdefault(run.of_sweep("variant"), []).append(run)
    found: dict[str, list[Run]] = {}
    for name, alike in named.items():
        for run, own in zip(alike, _own_values(alike), strict=True):
            found.setdefault(" ".join(filter(None, (name, own))) or "all runs", []).append(run)
    return found


def _own_values(alike: Sequence[Run]) -> Iterator[str]:
    keys = differences(alike)
    for config in (flat(run.config) for run in alike):
        values = {key: str(config.get(key)).replace(" ", "").replace("'", "") for key in keys}
        yield " ".join(f"{key}={value}" for key, value in values.items())


def chosen_baseline(by_variant: dict[str, list[Run]], given: Sequence[str]) -> str:
    """Return the variant to compare with: the one given, else named in the settings, else the first that has finished.

    Raises:
        ConfigError: Two baselines, or one that is not a variant here.
    """
    named = sorted({run.of_sweep("baseline") for runs in by_variant.values() for run in runs} - {""})
    wanted = list(dict.fromkeys(given)) or named
    if not wanted:
        ready = (name for name, runs in by_variant.items() if any(run.finished for run in runs))
        return next(ready, next(iter(by_variant)))
    if len(wanted) > 1:
        raise ConfigError(
            f"two baselines, {wanted[0]!r} and {wanted[1]!r}; name one with sweep.baseline= or, in a report, --baseline"
        )
    if [*by_variant] == ["all runs"]:
        raise ConfigError(f"baseline {wanted[0]!r}: the runs differ only in their seed; there is nothing to compare")
    if wanted[0] not in by_variant:
        raise ConfigError(f"baseline {wanted[0]!r} is not a variant here{did_you_mean(wanted[0], by_variant)}")
    return wanted[0]
