"""One run: a validated spec in, a run folder, its lines on the terminal and an exit status out."""

import os
import traceback
from collections.abc import Mapping
from contextlib import suppress
from copy import deepcopy
from pathlib import Path

from sppcls.build import build_planner
from sppcls.checkpoints import has_checkpoint
from sppcls.errors import ConfigError, SppclsError, one_line
from sppcls.files import read_json
from sppcls.measure.mixing import mixing
from sppcls.process import Interrupted, Signals
from sppcls.report.run_lines import closing_lines, data_lines, plan_lines, result_table
from sppcls.report.run_page import write_run_page, write_run_tables
from sppcls.run_folder import LOG, STATUS, RunFolder, fresh_folder, logging_to, read_summary
from sppcls.spec import Spec, parse, set_keys
from sppcls.terminal import OutputClosedError, log, printable, say, show
from sppcls.training.preflight import Resumed, joined_rank, local_ranks, precheck, resume_point

_CHOICE = {"data": "name", "model": "backbone", "optim": "name", "schedule": "kind", "logger": "name"}


def train(settings: Mapping[str, object] | None = None, *, run_dir: str | Path | None = None) -> Path:
    """Train as ``train.py`` does and return the run folder, which `load_model` and ``sppcls evaluate`` take.

    Args:
        settings: Values by key: ``{"data.root": "photos", "schedule.scales": [96, 128]}``; ``train.py --help`` lists
            the keys. ``data.root`` without ``data.name`` is a folder, or a table (CSV, Parquet).
        run_dir: The run folder; by default a new one under runs/, named after the time.

    Raises:
        ConfigError: A key or a value is wrong.
        SppclsError: The run failed; the error is on standard error, and the details are in its train.log.
        KeyboardInterrupt: Ctrl-C was pressed; a checkpoint was saved.
    """
    given = deepcopy(dict(settings or {}))
    if "data.root" in given:
        is_table = Path(str(given["data.root"])).suffix.lower() in (".csv", ".parquet", ".pq")
        given = {"data.name": "table" if is_table else "folder", **given}
    for key in set(given) & set(_CHOICE):
        if not isinstance(given[key], Mapping):
            example = f"{key}.{_CHOICE[key]}={given[key]!r}"
            raise ConfigError(f"{key}={given[key]!r}: {key} is a group of settings; write {example}")
    values: dict[str, object] = {}
    set_keys(values, dict(sorted(given.items(), key=lambda item: "." in item[0])))  # groups before values in them
    parse(values)  # before a folder is created
    spec = parse(values | {"run_dir": str(run_dir or values.get("run_dir") or fresh_folder())})
    status = run(spec)
    if status > 128:
        raise KeyboardInterrupt from Interrupted(status - 128)
    if status:
        error = read_json(Path(spec.run_dir) / STATUS).get("error", f"exit status {status}")
        raise SppclsError(f"the run in {spec.run_dir} has failed: {error}")
    return Path(spec.run_dir)


def run(spec: Spec, *, anew: bool = False) -> int:
    """Train, save and measure according to ``spec``; reports errors in one line and returns the exit status.

    ``anew`` removes what a failed attempt has left in the run folder.
    """
    folder: RunFolder | None = None
    try:
        with Signals() as signals:
            if spec.plan_only:
                splits, ranks = precheck(spec), local_ranks(spec)
                planner = build_planner(spec, splits.train.sizes)
                mixed = mixing(planner, splits.train.targets, ranks)
                show(*data_lines(splits), *plan_lines(spec, planner, mixed, ranks))
            elif joined_rank():
                from sppcls.training.ranks import follow

                follow(spec, signals)
            else:
                resumed = resume_point(spec) if spec.resume else None  # before anything is written into the folder
                folder = RunFolder(spec.run_dir, resume=resumed is not None, anew=anew)
                with logging_to(folder.path):
                    _train(spec, folder, signals, resumed)
    except (Interrupted, KeyboardInterrupt) as ended:
        return _interrupted(spec, folder, getattr(ended, "status", 130))
    except OutputClosedError as closed:
        if folder is None:
            raise
        return _interrupted(spec, folder, closed.status)
    except SystemExit:  # a launcher's own handler, which requeues the job
        _interrupted(spec, folder, 0)
        raise
    except Exception as error:
        return _failed(error, folder)
    finally:
        if folder:
            folder.close()
    return 0


def _train(spec: Spec, folder: RunFolder, signals: Signals, resumed: Resumed | None) -> None:
    from sppcls.training import ranks

    if resumed:
        log.info(resumed.line)
    folder.write_config(spec)
    splits, count = resumed.splits if resumed else precheck(spec), local_ranks(spec)
    show(*data_lines(splits))  # at once: torch takes some seconds to import
    folder.write_status("running")
    if count > 1:
        if resumed:  # each rank reads the checkpoint itself
            resumed.loaded.clear()
        ranks.run_ranks(folder, count, signals)
    else:
        ranks.train(spec, folder.path, signals, splits, resumed)
    folder.write_status("finished")
    try:
        write_run_tables(folder.path)
        write_run_page(folder.path)
    except Exception as error:  # a failed report must not fail a finished training
        log.warning("report failed (%s: %s); retry with `sppcls report %s`", type(error).__name__, error, folder.path)
    summary = read_summary(folder.path)
    show(result_table(summary), *closing_lines(summary, str(folder.path)))


def _interrupted(spec: Spec, folder: RunFolder | None, status: int) -> int:
    if folder:
        with suppress(OSError):
            folder.write_status("interrupted")
    saved = has_checkpoint(Path(spec.run_dir))
    say(f"interrupted; {f'add resume={spec.run_dir} to resume' if saved else 'nothing was saved yet'}")
    return status


def _failed(error: Exception, folder: RunFolder | None) -> int:
    line = printable(one_line(error))
    if folder:
        details = line if isinstance(error, SppclsError) else "".join(traceback.format_exception(error))
        with suppress(OSError):  # the disk may be full or the folder gone: the line below is still printed
            folder.write_status("failed", error=line)
            with (folder.path / LOG).open("a") as file:
                file.writelines(f"{printable(line)}\n" for line in details.splitlines())
    if os.environ.get("SPPCLS_DEBUG") == "1":
        raise error
    say(f"error: {line}")
    return error.exit_status if isinstance(error, SppclsError) else 1
