"""One run: a validated spec in, a run folder and an exit status out."""

import os
import traceback
from contextlib import suppress
from pathlib import Path

from sppcls.build import build_planner
from sppcls.checkpoints import has_checkpoint
from sppcls.errors import SppclsError, one_line
from sppcls.process import Interrupted, Signals
from sppcls.report.run_page import write_run_page, write_run_tables
from sppcls.report.runs import read_json
from sppcls.run_folder import RunFolder
from sppcls.spec import Spec
from sppcls.terminal import OutputClosedError, log, printable, say, show
from sppcls.training.lines import closing_lines, data_lines, plan_table, result_table
from sppcls.training.precheck import precheck
from sppcls.training.world import joined_rank, local_ranks


def run(spec: Spec, *, anew: bool = False) -> int:
    """Train, save and measure as ``spec`` says; returns the exit status, errors having been told in one line.

    ``anew`` takes away what a failed attempt has left in the run folder.
    """
    folder: RunFolder | None = None
    try:
        with Signals() as signals:
            if spec.plan_only:
                _plan(spec)
                return 0
            if joined_rank():
                from sppcls.training.ranks import follow

                follow(spec, signals)
                return 0
            said = _going_on(spec) if spec.resume else None  # before anything is written into the folder
            folder = RunFolder(spec.run_dir, resume=said is not None, anew=anew)
            with folder.logging():
                if said:
                    log.info(said)
                _train(spec, folder, signals)
    except (Interrupted, KeyboardInterrupt) as ended:
        return _interrupted(spec, folder, getattr(ended, "status", 130))
    except OutputClosedError as closed:
        if folder is None:
            raise
        return _interrupted(spec, folder, closed.status)
    except SystemExit:  # a launcher's own handler, which takes the job up again
        _interrupted(spec, folder, 0)
        raise
    except Exception as error:
        return _told(error, folder)
    finally:
        if folder:
            folder.close()
    return 0


def _going_on(spec: Spec) -> str:
    from sppcls.training.resume import going_on

    return going_on(spec)


def _plan(spec: Spec) -> None:
    splits, world = precheck(spec), local_ranks(spec)
    show(*data_lines(splits), plan_table(spec, build_planner(spec, splits.train.sizes), world))


def _train(spec: Spec, folder: RunFolder, signals: Signals) -> None:
    folder.write_config(spec)
    splits, count = precheck(spec), local_ranks(spec)
    show(*data_lines(splits))  # at once: torch takes some seconds to import
    folder.write_status("running")
    if count > 1:
        from sppcls.training.ranks import run_ranks

        run_ranks(folder, count, signals)
    else:
        from sppcls.training.ranks import train

        train(spec, folder.path, signals, splits)
    folder.write_status("finished")
    try:
        write_run_tables(folder.path)
        write_run_page(folder.path)
    except Exception as error:  # a page is no reason to call a trained network a failure
        log.warning("no report (%s: %s); `sppcls report %s` tries again", type(error).__name__, error, folder.path)
    summary = read_json(folder.path / "summary.json")
    show(result_table(summary), *closing_lines(summary, str(folder.path)))


def _interrupted(spec: Spec, folder: RunFolder | None, status: int) -> int:
    if folder:
        with suppress(OSError):
            folder.write_status("interrupted")
    saved = has_checkpoint(Path(spec.run_dir))
    say(f"interrupted; {f'resume={spec.run_dir} goes on' if saved else 'nothing was saved yet'}")
    return status


def _told(error: Exception, folder: RunFolder | None) -> int:
    line = printable(one_line(error))
    if folder:
        said = line if isinstance(error, SppclsError) else "".join(traceback.format_exception(error))
        with suppress(OSError):  # the disk may be full, or the folder gone: the line below is told all the same
            folder.write_status("failed", error=line)
            with (folder.path / "train.log").open("a") as file:
                file.writelines(f"{printable(line)}\n" for line in said.splitlines())
    if os.environ.get("SPPCLS_DEBUG") == "1":
        raise error
    say(f"error: {line}")
    return error.exit_status if isinstance(error, SppclsError) else 1
