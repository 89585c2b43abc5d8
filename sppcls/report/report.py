"""``sppcls report DIR``: the report of a run or of a sweep, from the files in its folder."""

from collections.abc import Sequence
from pathlib import Path

from sppcls.errors import ConfigError
from sppcls.report.run_page import write_run_page, write_run_tables
from sppcls.report.runs import is_run, read_run
from sppcls.report.sweep import problems, write_sweep_report
from sppcls.terminal import show


def report(directory: str, baselines: Sequence[str] = ()) -> int:
    """Write the report of a run folder or of a folder of run folders, show its tables and problems, and return 0.

    Raises:
        ConfigError: No run there, two baselines, or one that is no variant.
    """
    folder = Path(directory)
    if not is_run(folder):
        show(*write_sweep_report(folder, baselines))
        return 0
    if baselines:
        raise ConfigError(f"--baseline compares the runs of a sweep, and {folder} is one run; leave it out")
    write_run_tables(folder)
    show(*problems([read_run(folder)], []), f"report: {write_run_page(folder)}")
    return 0
