"""The Hydra application, ``train.py`` and ``sppcls-train``: overrides -> values -> specs -> a run or a sweep."""

import os
import re
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

from sppcls.errors import ConfigError, SppclsError, did_you_mean
from sppcls.help import check_flags, train_help, unknown_option
from sppcls.process import Interrupted, Signals, leave, own_process
from sppcls.run_folder import fresh_folder
from sppcls.spec import Spec, keys, parse, unknown_key
from sppcls.terminal import OutputClosedError, say, show
from sppcls.training.preflight import joined_rank
from sppcls.training.sweep import Job, Sweep, run_job

if TYPE_CHECKING:
    from omegaconf import DictConfig, ListConfig

Values = dict[str, Any]  # of a job by group, as Hydra composes them: unchecked


def conf_folder() -> Path:
    """Return the config folder: next to this file in an installed package, next to the package in a checkout."""
    inside = Path(__file__).parent / "conf"
    return inside if inside.is_dir() else Path(__file__).parent.parent / "conf"


def main() -> None:
    """Run the application and exit with its exit status."""
    own_process()
    end: Callable[[int], NoReturn] = sys.exit if joined_rank() is None else partial(leave, alone=False)
    signals = Signals()
    try:
        with signals:  # a run's own handlers replace these
            status = _run()
        end(status)
    except SppclsError as error:
        if not signals.received:
            say(f"error: {error}")
            end(error.exit_status)
        ended = Interrupted(signals.received)  # OmegaConf turns an interrupt into an error of its own
    except OutputClosedError as closed:
        end(closed.status)
    except Interrupted as error:
        ended = error
    say("interrupted; rerun the same command to resume")
    end(ended.status)


def _run() -> int:
    arguments = sys.argv[1:]
    if {"--help", "-h"} & set(arguments):
        show(*train_help(conf_folder()))
        return 0
    check_flags(arguments)
    jobs, swept = _composed()
    if not swept:
        return _single(jobs[0]) if jobs else 0  # none: Hydra was asked for help or for the config
    if joined_rank() is not None:
        raise ConfigError("a sweep starts its own processes; run it without torchrun or srun and set trainer.devices")
    planned = [Job.of(job.overrides, _parsed(job.values)) for job in jobs]
    sweep = Sweep.planned(planned, jobs[0].experiment or "sweep")
    if planned[0].spec.sweep.dry_run:
        return sweep.dry_run()
    try:
        sweep.start()
    except OSError as error:
        raise ConfigError(f"sweep_dir={sweep.folder} cannot be written: {error.strerror}; use another") from None
    folder, whole = (str(path).replace("'", "\\'") for path in (sweep.folder, sweep.folder.absolute()))
    try:
        _hydra(_launched(), f"sweep_dir='{folder}'", f"hydra.sweep.dir='{whole}'")
    except SppclsError as error:
        if isinstance(error, ConfigError) or not any(sweep.folder.glob("*/status.json")):
            raise
        # The launcher lost a job: the results of the others are kept.
        say(f"error: {str(error)[:200]}; rerun the same command to resume")
    return sweep.finish()


def _launched() -> Callable[["DictConfig"], int]:
    """Return what Hydra's launcher calls with a job's values, in this process or on another machine."""
    command, folder = list(sys.argv), Path.cwd()

    def launched(config: "DictConfig") -> int:
        # A launcher's worker has its own: restore the user's command, and this folder for relative paths.
        sys.argv = command
        os.chdir(folder)
        return run_job(_parsed(_plain(config)))

    return launched


_ONLY_PRINT = {"--help", "-h", "--hydra-help", "--version", "--cfg", "-c", "--info", "-i", "--resolve"}


class _Composed(NamedTuple):
    overrides: list[str]
    values: Values
    experiment: str | None


def _composed() -> tuple[list[_Composed], bool]:
    """Return every job without running one, and whether they are a sweep."""
    from hydra.core.hydra_config import HydraConfig
    from omegaconf.errors import OmegaConfBaseException

    jobs: list[_Composed] = []
    modes: set[str] = set()
    wrong: list[str] = []

    def record(config: "DictConfig") -> None:
        hydra = HydraConfig.get()
        modes.add(hydra.mode.name if hydra.mode else "")
        experiment = hydra.runtime.choices.get("experiment")
        try:
            jobs.append(_Composed(list(hydra.overrides.task), _plain(config), experiment))
        except OmegaConfBaseException as error:  # here, since Hydra would print its own lines
            wrong.append(_one_line(error))

    with tempfile.TemporaryDirectory() as scratch:
        _hydra(record, "hydra/launcher=basic", f"hydra.sweep.dir='{scratch}'")
    if wrong:
        raise ConfigError(wrong[0])
    flags = {argument.split("=")[0] for argument in sys.argv[1:]}
    if flags & {"-m", "--multirun"} and not jobs and not flags & _ONLY_PRINT:
        raise ConfigError("the sweep has no jobs: an override has no values; give at least one, e.g. seed=0,1,2")
    return jobs, "MULTIRUN" in modes


def _hydra(job: Callable[["DictConfig"], object], *overrides: str) -> None:
    """Let Hydra compose and launch ``job`` for the command line and extra overrides; report its errors in one line."""
    # Lets Hydra's errors through to us.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    import hydra
    from hydra.core.config_store import ConfigStore
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    ConfigStore.instance().store("spec", Spec().model_dump(mode="json"))
    given = sys.argv
    launcher = ("hydra/launcher=", "hydra.launcher.")
    composing = any(override.startswith(launcher) for override in overrides)
    kept = [a for a in given if not (composing and a.lstrip("+~").startswith(launcher))]
    # Next to the user's own, wherever flags are: Hydra takes overrides in one place only.
    last = max((at for at, a in enumerate(kept) if "=" in a and not a.startswith("-")), default=len(kept) - 1)
    sys.argv = [*kept[: last + 1], *overrides, *kept[last + 1 :]]
    try:
        hydra.main(config_path=str(conf_folder()), config_name="config", version_base="1.3")(job)()
    except SppclsError:
        raise
    except Exception as error:
        # Only errors of Hydra and its launcher, of many classes, get here; a run reports its own errors.
        if os.environ.get("SPPCLS_DEBUG") == "1":
            raise
        wrong = composing or isinstance(error, HydraException | OmegaConfBaseException)
        raise (ConfigError if wrong else SppclsError)(_one_line(error)) from None
    finally:
        sys.argv = given


def _one_line(error: Exception) -> str:
    from hydra.errors import OverrideParseException

    text = re.split(" See http| Config search path", " ".join(str(error).split()))[0]
    if isinstance(error, OverrideParseException):
        if "missing EQUAL" in text:
            return f"{error.override!r} is not a setting; write key=value, --help lists all settings"
        if re.search("mismatched input|Lexer", text):
            text = "a value with = or special characters needs its own quotes: 'key=\"value\"'"
        return f"cannot read the override {error.override!r}: {text}"
    if several := re.match(r"Ambiguous value for argument '([^'=]+)=([^']+)'", text):
        key, values = several.groups()
        return f"{key}={values}: add -m to run one job per value, or write {key}=[{values}] for a list"
    if option := unknown_option(text):
        return option
    unknown = re.match(r"Could not override '([^']+)'", text)
    if unknown and unknown[1].startswith("hydra."):
        return text
    if unknown and unknown[1] in keys():
        return f"new entries of {unknown[1]} need a plus: +{unknown[1]}.NAME=..."
    return unknown_key(unknown[1]) if unknown else text


def _plain(config: "DictConfig | ListConfig") -> Values:
    from omegaconf import OmegaConf

    return OmegaConf.to_container(config, resolve=True)  # type: ignore[return-value]


def _single(job: _Composed) -> int:
    if job.values["sweep"]["dry_run"]:
        raise ConfigError("sweep.dry_run=true lists the jobs of a sweep; add -m or use an experiment that is a sweep")
    again = job.values.get("resume") is not None
    if job.values["resume"] == "auto" and job.values["run_dir"] is None:
        raise ConfigError("resume=auto resumes the run in run_dir if there is one; add run_dir=DIR")
    spec = _resumed(job.values, job.overrides) if again else _parsed(job.values)
    if not (again or spec.plan_only or job.values["run_dir"] or joined_rank()):
        spec = spec.model_copy(update={"run_dir": fresh_folder()})
    from sppcls.training.run import run

    return run(spec)


def _parsed(values: Values) -> Spec:
    """Return the spec of a job, with the values of its variant applied."""
    from omegaconf import OmegaConf

    values = {key: value for key, value in values.items() if key != "run_dir" or value is not None}
    spec = parse(values)
    if spec.sweep.redraw:
        spec = parse(values := values | {"data": values["data"] | {"split_seed": spec.seed}})
    name, variants = spec.sweep.variant, spec.sweep.variants
    if name is None:
        return spec
    if name not in variants:
        raise ConfigError(f"sweep.variant={name} is unknown{did_you_mean(name, variants)}")
    # All variants are measured at the scales of the common settings.
    measured = {"test_scales": list(spec.test_scales), "gap_scales": list(spec.gap_scales), "val_scale": spec.val_scale}
    merged = _plain(OmegaConf.merge(values, {"metrics": measured}, variants[name]))
    return parse(merged | {"sweep": merged["sweep"] | {"variants": {}}})


def _resumed(values: Values, overrides: list[str]) -> Spec:
    """Return the spec of the run to resume, with the overrides applied."""
    from sppcls.checkpoints import has_checkpoint
    from sppcls.training.preflight import resumed_spec

    run, keys = values["resume"], [override.split("=")[0].lstrip("+~") for override in overrides]
    parse({"resume": run})  # an invalid name is reported with its key
    if run == "auto" or "experiment" in keys:  # the command describes the whole run, not only the changes
        parsed = _parsed(values)
        if run == "auto" and not has_checkpoint(Path(parsed.run_dir)):
            return parsed.model_copy(update={"resume": None})
        run = parsed.run_dir if run == "auto" else run
        values = parsed.model_dump(mode="json")
    if "experiment" in keys:  # which may set anything
        keys = [key for key in values if key != "run_dir"]
    given = {key: _at(values, key) for key in keys if key != "resume" and not key.startswith("hydra")}
    return resumed_spec(str(run), given)


def _at(values: Values, key: str) -> object:
    for part in key.split("."):
        values = values[part]
    return values
