"""A sweep: jobs identified by a hash of their values, one folder each, for any launcher and any number of reruns."""

import hashlib
import re
import shlex
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from sppcls.checkpoints import last_whole
from sppcls.errors import ConfigError, SppclsError
from sppcls.files import locked, write_json
from sppcls.process import Interrupted
from sppcls.report.page import percent
from sppcls.report.runs import MANIFEST, Run, chosen_baseline, is_run, read_manifest, read_run, variants
from sppcls.run_folder import INSIDE, LOCK, read_summary, state_of
from sppcls.spec import Spec
from sppcls.terminal import only_logged, show, table
from sppcls.training.tuning import trials, tuned


@dataclass(frozen=True)
class Job:
    """One run of a sweep: its overrides, its values, and the hash that identifies it."""

    overrides: tuple[str, ...]
    spec: Spec

    @classmethod
    def of(cls, overrides: Sequence[str], spec: Spec) -> "Job":
        """Return the job of a spec, without overrides that only apply to the sweep."""
        own = ("sweep_dir=", "sweep.dry_run=", "sweep.baseline=", "experiment=", "hydra")
        return cls(tuple(o for o in overrides if not o.lstrip("+").startswith(own)), spec)


@dataclass(frozen=True)
class Sweep:
    """The jobs of a sweep and its folder, with sweep.json and one run folder per job."""

    folder: Path
    each: tuple[Job, ...]

    @classmethod
    def planned(cls, jobs: Sequence[Job], title: str) -> "Sweep":
        """Return the sweep of some jobs, each once; the same jobs always have the same folder."""
        if any(job.spec.resume or job.spec.plan_only for job in jobs):
            raise ConfigError("resume= and plan_only= are for one run; rerun a sweep's command to resume it")
        if any(o.startswith("run_dir=") for job in jobs for o in job.overrides):
            raise ConfigError("run_dir= is for a single run; use sweep_dir= for the folder of a sweep")
        if len({(job.spec.sweep_dir, job.spec.sweep.dry_run) for job in jobs}) > 1:
            raise ConfigError("sweep_dir= and sweep.dry_run= take a single value, got several")
        for job in jobs:  # before anything is trained
            trials(job.spec)
        by_digest = {job.spec.digest: job for job in jobs}
        whole = hashlib.sha256("".join(sorted(by_digest)).encode()).hexdigest()[:8]
        folder = Path(jobs[0].spec.sweep_dir or f"sweeps/{title}-{whole}")
        _check_baseline(folder, jobs)
        return cls(folder, tuple(by_digest.values()))

    @property
    def jobs(self) -> dict[str, Job]:
        """The jobs by the name of their run folder: the one in sweep.json, else one made of their own overrides."""
        known = _names(self.folder)
        common = set.intersection(*(set(job.overrides) for job in self.each))
        return {known.get(job.spec.digest) or _name(job, common): job for job in self.each}

    def start(self) -> None:
        """Write sweep.json: this command's jobs, in addition to those from earlier commands."""
        self.folder.mkdir(parents=True, exist_ok=True)
        command = shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])
        with locked(self.folder / LOCK):  # another sweep may be adding its jobs
            before, jobs = read_manifest(self.folder), self.jobs
            own = {name: {"digest": job.spec.digest, "overrides": list(job.overrides)} for name, job in jobs.items()}
            values = {"command": command, "baseline": self.each[0].spec.sweep.baseline or before.get("baseline")}
            write_json(self.folder / MANIFEST, values | {"jobs": before.get("jobs", {}) | own})
        done = self._states().count("finished")
        show(f"sweep in {self.folder}, jobs: {len(jobs)}" + (f", {done} already done" if done else ""))

    def _states(self) -> list[str]:
        return [state_of(self.folder / name) for name in self.jobs]

    def dry_run(self) -> int:
        """Print the jobs, which of them are done, and an estimate of the time left."""
        names = list(self.jobs)
        seconds = [_seconds(self.folder / name) for name in names]
        took = ["-" if one is None else f"{one:.0f}" for one in seconds]
        rows = zip(names, self._states(), took, strict=True)
        title = f"sweep in {self.folder}, jobs: {len(names)}"
        show(table(title, ["job", "state", "seconds"], rows), _time_left(self.folder, names))
        return 0

    def finish(self) -> int:
        """Report on the folder; return 1 if a job of this sweep has not finished, else 0."""
        from sppcls.report.sweep_page import write_sweep_report

        # Jobs that another process still runs, for another command or a lost launcher.
        while "running" in (states := self._states()):
            time.sleep(1)
        show(*write_sweep_report(self.folder))
        return int(any(state != "finished" for state in states))


def run_job(spec: Spec) -> int:
    """Run one job of a sweep in its own folder, named by sweep.json; only an interrupt raises.

    A job that is finished or in another process's hands is left alone, an interrupted one resumes, a failed one
    starts over.
    """
    from sppcls.training.run import run

    folder = Path(str(spec.sweep_dir))
    names = _names(folder)
    path = folder / names.get(spec.digest, spec.digest)
    if state_of(path) in ("finished", "running"):
        return 0
    try:
        spec = tuned(spec, run_job) if spec.sweep.tune else spec
    except SppclsError as error:
        show(f"{path.name}: {error}")
        return error.exit_status
    resumable = _resumable(path)
    own = spec.model_copy(update={"run_dir": str(path), "resume": str(path) if resumable else None})
    with only_logged():
        status = run(own, anew=not resumable)
    show(_job_line(path, _time_left(folder, list(names.values())) if names else f"trial of {spec.sweep.variant}"))
    if status > 128:
        raise Interrupted(status - 128)
    return status


def _resumable(run: Path) -> bool:
    try:
        return state_of(run) == "interrupted" and last_whole(run / INSIDE) is not None
    except SppclsError as error:
        show(f"starting over: {error}")
        return False


def _job_line(path: Path, left: str) -> str:
    """Return a job's name, state, top-1 and seconds, and what remains of the sweep, in one line."""
    summary = read_summary(path)
    parts = [f"{path.name}: {state_of(path)}"]
    if (acc1 := summary.get("acc1")) is not None:
        parts.append(f"top-1 {percent(acc1)} at scale {summary['val_scale']}")
    parts += [f"{seconds:.0f} s"] if (seconds := _seconds(path)) is not None else []
    return ", ".join(parts) + f" ({left})"


def _seconds(run: Path) -> float | None:
    seconds = read_summary(run).get("seconds")
    return float(seconds) if isinstance(seconds, int | float) else None


def _time_left(folder: Path, names: Sequence[str]) -> str:
    """Return how many of the jobs are done and how long the others may take one after another."""
    states = [state_of(folder / name) for name in names]
    taken = [seconds for name in names if (seconds := _seconds(folder / name)) is not None]
    done, failed = states.count("finished"), states.count("failed")
    line = f"{done} of {len(names)} done" + (f", {failed} failed" if failed else "")
    if done == len(names):
        return line
    if not taken:
        return f"{line}; no estimate until a job finishes"
    seconds = (len(names) - done) * fmean(taken)
    return f"{line}, about {seconds / 60:.0f} min left" if seconds > 90 else f"{line}, about {seconds:.0f} s left"


def _check_baseline(folder: Path, jobs: Iterable[Job]) -> None:
    """Reject a baseline that will not be a variant of the sweep, before anything is trained."""
    there = [read_run(path) for path in folder.glob("*") if is_run(path)]
    planned = [Run(Path(), job.spec.model_dump(mode="json")) for job in jobs]
    given = [job.spec.sweep.baseline for job in jobs if job.spec.sweep.baseline]
    chosen_baseline(variants([*there, *planned]), given)


def _name(job: Job, common: set[str]) -> str:
    own = [override for override in job.overrides if override not in common]
    # No "=" in a folder's name: an override could not contain it.
    slug = re.sub(r"[^\w.-]+", "-", "_".join(o.removeprefix("sweep.").lstrip("+") for o in own))[:80].strip("-")
    slug = re.sub(r"-*_-*", "_", slug)
    return f"{slug}-{job.spec.digest}" if slug else job.spec.digest


def _names(folder: Path) -> dict[str, str]:
    """Return the names of the run folders in a sweep's manifest, by digest."""
    return {str(entry.get("digest")): name for name, entry in read_manifest(folder).get("jobs", {}).items()}
