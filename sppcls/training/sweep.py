"""A sweep: jobs known by a hash of their values, a folder each, whatever launches them and however often."""

import hashlib
import re
import shlex
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from sppcls.checkpoints import has_checkpoint
from sppcls.errors import ConfigError, SppclsError
from sppcls.files import locked, write_json
from sppcls.process import Interrupted
from sppcls.report.page import percent
from sppcls.report.runs import MANIFEST, Run, chosen_baseline, is_run, read_json, read_manifest, read_run, variants
from sppcls.run_folder import is_held
from sppcls.spec import Spec
from sppcls.terminal import only_logged, show, table


@dataclass(frozen=True)
class Job:
    """One run of a sweep: its overrides, its values, and the hash that it is known by."""

    overrides: tuple[str, ...]
    spec: Spec

    @classmethod
    def of(cls, overrides: Sequence[str], spec: Spec) -> "Job":
        """Return the job of a spec, without overrides that belong to the sweep alone."""
        own = ("sweep_dir=", "sweep.dry_run=", "sweep.baseline=", "experiment=", "hydra")
        return cls(tuple(o for o in overrides if not o.lstrip("+").startswith(own)), spec)


@dataclass(frozen=True)
class Sweep:
    """The jobs of a sweep and its folder, which holds sweep.json and a run folder a job."""

    folder: Path
    jobs: dict[str, Job]  # by the run folder's name

    @classmethod
    def planned(cls, jobs: Sequence[Job], title: str) -> "Sweep":
        """Return the sweep of some jobs, each once; the same jobs always have the same folder."""
        by_digest = {job.spec.digest: job for job in jobs}
        if any(job.spec.resume or job.spec.plan_only for job in jobs):
            raise ConfigError("resume= and plan_only= are for one run; a sweep's command goes on when given again")
        if any(o.startswith("run_dir=") for job in jobs for o in job.overrides):
            raise ConfigError(
                "run_dir= is for one run; sweep_dir= names the folder of a sweep, with a run folder a job"
            )
        if len({(job.spec.sweep_dir, job.spec.sweep.dry_run) for job in jobs}) > 1:
            raise ConfigError("sweep_dir= and sweep.dry_run= have one value in a sweep, got several")
        whole = hashlib.sha256("".join(sorted(by_digest)).encode()).hexdigest()[:8]
        folder = Path(jobs[0].spec.sweep_dir or f"sweeps/{title}-{whole}")
        _check_baseline(folder, jobs)
        common = set.intersection(*(set(job.overrides) for job in jobs))
        known = {entry.get("digest"): name for name, entry in _manifest(folder).get("jobs", {}).items()}
        named = {known.get(digest) or _name(job, common, digest): job for digest, job in by_digest.items()}
        return cls(folder, named)

    def start(self) -> None:
        """Write sweep.json: this command's jobs, beside those that the folder has from earlier ones."""
        self.folder.mkdir(parents=True, exist_ok=True)
        baseline = next(iter(self.jobs.values())).spec.sweep.baseline
        command = shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])
        with locked(self.folder / ".lock"):  # another sweep may be adding its jobs
            before = _manifest(self.folder)
            known = {entry.get("digest"): name for name, entry in before.get("jobs", {}).items()}
            jobs = {known.get(job.spec.digest, name): job for name, job in self.jobs.items()}
            entries = {
                name: {"digest": job.spec.digest, "overrides": list(job.overrides)} for name, job in jobs.items()
            }
            values = {"command": command, "baseline": baseline or before.get("baseline")}
            write_json(self.folder / MANIFEST, values | {"jobs": before.get("jobs", {}) | entries})
        self.jobs.clear()
        self.jobs.update(jobs)
        done = sum(state_of(self.folder / name) == "finished" for name in self.jobs)
        show(f"sweep in {self.folder}, jobs: {len(self.jobs)}" + (f", {done} of them done already" if done else ""))

    def dry_run(self) -> int:
        """Print the jobs, which are done, and an estimate from those that are."""
        folders = {name: self.folder / name for name in self.jobs}
        seconds = {name: "-" if (took := seconds_of(run)) is None else f"{took:.0f}" for name, run in folders.items()}
        rows = [[name, state_of(run), seconds[name]] for name, run in folders.items()]
        title = f"sweep in {self.folder}, jobs: {len(self.jobs)}"
        show(table(title, ["job", "state", "seconds"], rows), time_left(self.folder, list(self.jobs)))
        return 0

    def finish(self) -> int:
        """Report on the folder and return 1 where a job of this sweep has not finished, else 0."""
        from sppcls.report.sweep_page import write_sweep_report

        # What another process still runs, for another command or a launcher that was lost.
        while "running" in (states := [state_of(self.folder / name) for name in self.jobs]):
            time.sleep(1)
        show(*write_sweep_report(self.folder))
        return int(any(state != "finished" for state in states))


def run_job(spec: Spec) -> int:
    """Run one job of a sweep in its own folder, which sweep.json names; never raises but for an interrupt.

    A job that is finished or in another process's hands is left alone, an interrupted one goes on, a failed one
    starts anew.
    """
    from sppcls.training.run import run

    folder = Path(str(spec.sweep_dir))
    jobs = _manifest(folder).get("jobs", {})
    name = next((name for name, entry in jobs.items() if entry.get("digest") == spec.digest), spec.digest)
    path = folder / name
    state = state_of(path)
    if state in ("finished", "running"):
        return 0
    resumable = state == "interrupted" and _has_checkpoint(path)
    own = spec.model_copy(update={"run_dir": str(path), "resume": str(path) if resumable else None})
    with only_logged():
        status = run(own, anew=not resumable)
    show(job_line(path, time_left(folder, list(jobs))))
    if status > 128:
        raise Interrupted(status - 128)
    return status


def job_line(path: Path, left: str) -> str:
    """Return a job's name, state, top-1 and seconds, and what is left of the sweep, in one line."""
    summary = read_json(path / "summary.json")
    parts = [f"{path.name}: {state_of(path)}"]
    if summary.get("acc1") is not None:
        parts.append(f"top-1 {percent(summary['acc1'])} at scale {summary['val_scale']}")
    parts += [f"{seconds:.0f} s"] if (seconds := seconds_of(path)) is not None else []
    return ", ".join(parts) + f" ({left})"


def _has_checkpoint(run: Path) -> bool:
    if not has_checkpoint(run):
        return False
    from sppcls.model_files import read_checkpoint

    try:
        read_checkpoint(run)
    except SppclsError as error:
        show(f"starts anew: {error}")
        return False
    return True


def state_of(run: Path) -> str:
    """Return running, finished, failed or interrupted, or missing where the folder says nothing.

    A run that nobody holds is not running, and without a summary it has not finished: both were interrupted.
    """
    state = str(read_json(run / "status.json").get("state", "missing"))
    killed = state == "running" and not is_held(run)
    return "interrupted" if killed or (state == "finished" and not read_json(run / "summary.json")) else state


def seconds_of(run: Path) -> float | None:
    """Return the seconds that a finished run took."""
    seconds = read_json(run / "summary.json").get("seconds")
    return float(seconds) if isinstance(seconds, int | float) else None


def time_left(folder: Path, names: Sequence[str]) -> str:
    """Say how many of the jobs are done and how long the others may take one after another."""
    states = [state_of(folder / name) for name in names]
    taken = [seconds for name in names if (seconds := seconds_of(folder / name)) is not None]
    done, failed = states.count("finished"), states.count("failed")
    said = f"{done} of {len(names)} done" + (f", {failed} failed" if failed else "")
    left = len(names) - done
    if not left:
        return said
    if not taken:
        return f"{said}; no finished job to tell the time by"
    seconds = left * fmean(taken)
    return f"{said}, about {seconds / 60:.0f} min left" if seconds > 90 else f"{said}, about {seconds:.0f} s left"


def _check_baseline(folder: Path, jobs: Iterable[Job]) -> None:
    """Refuse a baseline that will be no variant of the folder before anything is trained."""
    values = [job.spec.model_dump(mode="json") for job in jobs]
    there = [read_run(path) for path in folder.glob("*") if is_run(path)]
    given = [job.spec.sweep.baseline for job in jobs if job.spec.sweep.baseline]
    chosen_baseline(variants([*there, *(Run(Path(), config, {}, {}, [], [], {}) for config in values)]), given)


def _name(job: Job, common: set[str], digest: str) -> str:
    own = [override for override in job.overrides if override not in common]
    # No "=" in a folder's name: it could not be named in an override.
    slug = re.sub(r"[^\w.-]+", "-", "_".join(o.removeprefix("sweep.").lstrip("+") for o in own))[:80].strip("-")
    slug = re.sub(r"-*_-*", "_", slug)
    return f"{slug}-{digest}" if slug else digest


def _manifest(folder: Path) -> dict[str, Any]:
    return read_manifest(folder)
