"""``sppcls report DIR``: the report of a run or a sweep, from the files in its folder."""

import re
from argparse import ArgumentParser, Namespace
from pathlib import Path

from sppcls.commands.arguments import path_text
from sppcls.errors import ConfigError
from sppcls.report.run_page import write_run_page, write_run_tables
from sppcls.report.runs import MANIFEST, is_run, read_run
from sppcls.report.sweep_page import problems, write_sweep_report
from sppcls.terminal import show


def run(given: Namespace) -> int:
    """Write the report of a run folder or of a folder of run folders, and show its tables and problems.

    Raises:
        ConfigError: No run in the folder, two baselines, or a baseline that is not a variant.
    """
    folder = Path(given.directory)
    if not is_run(folder) and not given.baseline and (latest := _latest(folder)):
        show(f"{folder} has {len(latest)} separate runs; reporting the latest, {latest[-1]}")
        folder = latest[-1]
    if not is_run(folder):
        show(*write_sweep_report(folder, given.baseline))
        return 0
    if given.baseline:
        raise ConfigError(f"--baseline applies to sweeps, and {folder} is a single run; leave it out")
    write_run_tables(folder)
    show(*problems([read_run(folder)], []), f"report: {write_run_page(folder)}")
    return 0


def _latest(folder: Path) -> list[Path]:
    """Return the separate runs in a folder, the latest last; empty if they belong to a sweep.

    Separate runs are named after their start time; jobs of a sweep, and runs collected for comparison, are not.
    """
    runs = sorted(path for path in folder.iterdir() if is_run(path)) if folder.is_dir() else []
    alone = all(re.fullmatch(r"\d{4}-\d\d-\d\d_\d\d-\d\d-\d\d\S*", path.name) for path in runs)
    return runs if alone and not (folder / MANIFEST).exists() else []


def options(verb: ArgumentParser) -> None:
    """Add the options of the verb."""
    add = verb.add_argument
    add("directory", type=path_text, metavar="DIR", help="a run folder, or a folder of run folders")
    what = "the variant to compare the others with"
    add("--baseline", action="append", default=[], metavar="VARIANT", help=what)
