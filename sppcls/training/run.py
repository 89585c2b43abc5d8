"""One run: a validated spec in, a run folder, its lines on the terminal and an exit status out."""

import os
import traceback
from collections.abc import Mapping
from contextlib import suppress
from copy import deepcopy
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

from sppcls.build import build_planner
from sppcls.checkpoints import has_checkpoint
from sppcls.data.catalog import Splits
from sppcls.data.plan import Planner
from sppcls.errors import ConfigError, SppclsError, one_line
from sppcls.files import read_json
from sppcls.process import Interrupted, Signals
from sppcls.report.page import points, scale_cells
from sppcls.report.run_page import write_run_page, write_run_tables
from sppcls.run_folder import LOG, STATUS, RunFolder, Summary, fresh_folder, logging_to, read_summary
from sppcls.spec import Spec, parse
from sppcls.terminal import OutputClosedError, ece_column, log, printable, say, show, table
from sppcls.training.preflight import Resumed, joined_rank, local_ranks, precheck, resume_point, set_keys

if TYPE_CHECKING:
    from rich.table import Table

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
    spec = parse(values | {"run_dir": str(run_dir or fresh_folder())})
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
                show(*data_lines(splits), plan_table(spec, build_planner(spec, splits.train.sizes), ranks))
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


def plan_table(spec: Spec, planner: Planner, world: int = 1) -> "Table":
    """Return the scale schedule as a table, one row per stretch of epochs at one scale (at most 24 rows)."""
    first_plan = planner.plan(0, world)
    title = f"{spec.schedule.kind} schedule, data.fit={spec.data.fit}, {len(planner.sizes)} training images"
    if first_plan.world > 1:
        title += f", {first_plan.world} ranks, {first_plan.repeats} images repeated per epoch"

    def scales_of(epoch: int) -> str:
        drawn = sorted(set(planner.schedule.scales_of(epoch, first_plan.steps)))
        return str(drawn[0]) if len(drawn) == 1 else f"{drawn[0]}..{drawn[-1]}"

    heads, rows = ["epochs", "scale", "batches", "smallest batch", "shapes", "padding", "megapixels"], []
    stretches = [(scales, list(epochs)) for scales, epochs in groupby(range(spec.trainer.max_epochs), scales_of)]
    for scales, (first, *others) in stretches[:24]:
        plan = planner.plan(first, world)
        epochs = f"{first + 1}-{others[-1] + 1}" if others else f"{first + 1}"
        padding = f"{plan.padding(planner.sizes):.1%}" if spec.data.fit == "keep" else "-"
        million = plan.pixels / 1e6
        cells = [len(plan), plan.smallest, plan.shapes]
        rows.append([epochs, scales, *map(str, cells), padding, f"{million:.2g}" if million < 10 else f"{million:.0f}"])
    return table(title, heads, rows)


def data_lines(data: Splits, most: int = 10) -> list[str]:
    """Return lines on a run's data: the first ``most`` class names, and the number of images of both parts."""
    classes = data.train.classes
    more = f" and {len(classes) - most} more" if len(classes) > most else ""
    parts = {"training": data.train, "validation": data.val}
    images = ", ".join(f"{len(part.targets):,} {name}" for name, part in parts.items() if part)
    return [f"{len(classes)} classes: {', '.join(classes[:most])}{more}", f"images: {images}"]


def result_table(summary: Summary) -> "Table":
    """Return the short table at the end of a run."""
    rows = []
    for row in summary["scales"]:
        top1, _interval, *cells = scale_cells(row)
        rows.append([f"{row['scale']}{' *' if row['trained'] else ''}", top1, *cells])
    columns = ["test scale", "top-1", "top-5", "loss", ece_column(summary)]
    return table("Validation, by test scale (* trained)", columns, rows)


def closing_lines(summary: Summary, folder: str) -> list[str]:
    """Return the lines below the table: the gap, the spread, the seconds, the folder."""
    lines = []
    if (acc1 := summary["acc1"]) is not None:
        gap = summary["generalization_gap"]
        against = "" if gap is None else f", generalization gap {points(gap)} points"
        lines.append(f"top-1 {acc1:.1%} at scale {summary['val_scale']}{against}")
    if len(summary["scales"]) > 1:
        spread, consistency = summary["scale_spread"], summary["scale_consistency"]
        lines.append(f"scale spread {spread * 100:.1f} points, scale consistency {consistency:.1%}")
    if summary["gap_seconds"] >= 1:
        lines.append(f"gap curves took {summary['gap_seconds']:.0f} of {summary['seconds']:.0f} s (metrics.gap_every)")
    return [*lines, f"{summary['seconds']:.0f} s, {summary['parameters']:,} parameters", f"run folder: {folder}"]
