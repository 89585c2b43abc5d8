"""The tables and files of a sweep's report."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from sppcls.files import write_csv, write_json, write_text
from sppcls.measure.answers import FILE as ANSWERS
from sppcls.measure.statistics import Estimate
from sppcls.report.page import percent, points
from sppcls.report.runs import Run, chosen_baseline, is_run, read_manifest, read_runs, variants
from sppcls.report.study import Study, Variant, as_values, study
from sppcls.report.sweep_page import write_sweep_page
from sppcls.terminal import markdown, markdown_text, table, width

_WIDE = ("consistency", "at equal compute", "equal compute at", "seconds", "seeds")
MEASURES = {
    "acc1": "top-1 at {scale}",
    "acc1_equal_compute": "at equal compute",
    "scale_area": "mean over scales",
    "scale_spread": "scale spread",
    "scale_consistency": "consistency",
    "generalization_gap": "gap",
}
_COSTS = ("train_megapixels", "seconds")


def write_sweep_report(folder: Path, baselines: Sequence[str] = ()) -> list[Any]:
    """Write the report of the runs in ``folder`` and return what a terminal shows; reads run folders only.

    Raises:
        ConfigError: No run, two baselines, or a baseline that is no variant.
    """
    runs = read_runs(folder)
    by_variant = variants(runs)
    manifest = read_manifest(folder)
    named = baselines or [str(name) for name in [manifest.get("baseline")] if name]
    baseline, instead = chosen_baseline(by_variant, named), ""
    missing = [name for name in manifest.get("jobs") or {} if not is_run(folder / name)]
    # What depends on a run's settings alone, so that a sweep in two parts has the same file.
    by_seed = [(name, run) for name, some in by_variant.items() for run in sorted(some, key=lambda run: run.seed)]
    write_csv(folder / "summary.csv", [_csv_row(name, run) for name, run in by_seed])
    if not any(run.finished for run in by_variant[baseline]):
        ready = [name for name, some in by_variant.items() if any(run.finished for run in some)]
        instead = f"no run of the baseline {baseline!r} has finished yet"
        if not ready:
            return [*problems(runs, missing), f"{instead}, nor of any other variant: no report"]
        baseline = ready[0]
    found = study(by_variant, baseline)
    states = dict(sorted(Counter(run.state for run in runs).items()))
    write_json(folder / "summary.json", {"states": states, "missing": missing} | as_values(found))
    tables = [variant_rows(found), comparison_rows(found)]
    write_text(folder / "summary.md", _markdown(found, tables, runs, missing))
    said = [*notes(found), *([f"{instead}: compared with {baseline!r} for now"] if instead else [])]
    page = write_sweep_page(folder, found, runs, missing, tables, said)
    shown = [_rich(*table) for table in tables if table[2]]
    return [*shown, *said, *problems(runs, missing), f"report: {page}"]


def problems(runs: Sequence[Run], missing: Sequence[str]) -> list[str]:
    """Return a line for each run that has not finished, and the last lines of those that failed."""
    lines = [f"{len(missing)} {'job has' if len(missing) == 1 else 'jobs have'} not started"] if missing else []
    for run in runs:
        if not run.finished:
            why = f": {run.status['error']}" if run.status.get("error") else ""
            said = "finished, and its summary.json cannot be read" if run.state == "finished" else run.state
            lines.append(f"{run.folder.name}: {said}{why}")
            lines += [f"    {line}" for line in run.last_lines(3)] if run.state == "failed" else []
        elif run.answers is None and (run.folder / ANSWERS).is_file():
            lines.append(f"{run.folder.name}: {ANSWERS} is damaged, and has no part in p over images and confusion")
    return lines


def notes(found: Study) -> list[str]:
    """Return what a reader has to know to read the tables."""
    lines = [
        "Differences: interval (95 %) and p are over seeds and validation images, both as random draws; the training "
        "images are taken as given. Holm's p is over all p of the table. A difference stands where it is at most 0.05.",
        "The gap has no interval and no p: answers to single training images are not kept.",
    ]
    if found.budget is not None:
        lines.append(
            f"Equal compute: read at {_amount(found.budget)} megapixels (MP) seen, the cheapest run's total, linear "
            "between the two measurements around it. A longer run has done only part of the rate's schedule by then."
        )
    apart = [name for name, measures in found.comparisons.items() if not measures]
    lines += [f"{name}: no seed and measure in common with {found.baseline}, so it is not compared" for name in apart]
    tests = [one for measures in found.comparisons.values() for one in measures.items()]
    few = {one.note for _, one in tests if one.note}
    if any(one.p is None and not one.note and measure != "generalization_gap" for measure, one in tests):
        few.add("none over images where not every seed has answers to the same images (answers.npz)")
    if any(one.n < 3 for variant in found.variants.values() for one in variant.estimates.values()):
        lines.append("Below 3 seeds there is no interval.")
    return lines + [f"p: {note}" for note in sorted(few)]


def variant_rows(found: Study) -> tuple[str, list[str], list[list[str]]]:
    """Return title, columns and rows of the variants' means."""
    measures = [said.format(scale=found.scale) for said in MEASURES.values()]
    columns, rows = ["variant", "seeds", *measures, "equal compute at", "megapixels", "seconds"], []
    for name, one in found.variants.items():
        mark = " (baseline)" if name == found.baseline else ""
        cells = [interval(one.estimates.get(measure)) for measure in MEASURES]
        costs = [_amount(cost.mean) if cost else "-" for key in _COSTS for cost in [one.estimates.get(key)]]
        rows.append([name + mark, str(len(one.runs)), *cells, _read_at(one), *costs])
    return "Variants: mean ± half of the 95 % interval over seeds, on these images, in percent", columns, rows


def _read_at(one: Variant) -> str:
    pixels, share = (one.estimates.get(f"equal_compute_{name}") for name in ("megapixels", "schedule"))
    return f"{_amount(pixels.mean)} MP, {share.mean:.0%} of schedule" if pixels and share else "-"


def _amount(value: float) -> str:
    return f"{value:,.0f}" if value >= 10 else f"{value:.2g}"


def comparison_rows(found: Study) -> tuple[str, list[str], list[list[str]]]:
    """Return title, columns and rows of the comparisons with the baseline."""
    rows = []
    for name, measures in found.comparisons.items():
        for measure, one in measures.items():
            stands = "-" if one.p_holm is None else "yes" if one.p_holm <= 0.05 else "no"
            cells = [points(one.difference), _between(one.low, one.high), _p(one.p), _p(one.p_holm), stands]
            rows.append([name, MEASURES[measure].format(scale=found.scale), str(one.n), *cells])
    columns = ["variant", "measure", "seeds", "difference", "interval", "p", "p (Holm)", "stands"]
    return f"Against {found.baseline}, paired by seed, in percentage points", columns, rows


def interval(one: Estimate | None) -> str:
    """Return an estimate in percent with half of its interval, or a dash."""
    if one is None:
        return "-"
    return percent(one.mean)[:-1] + (f" ± {(one.high - one.mean) * 100:.1f}" if one.high is not None else "")


def _between(low: float | None, high: float | None) -> str:
    return "-" if low is None else f"{points(low)} to {points(high)}"


def _p(p: float | None) -> str:
    return "-" if p is None else f"{p:.4f}" if p >= 0.0001 else "< 0.0001"


def _rich(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    """Return a terminal's table, on a narrow one without the columns that the page has too."""
    kept = [i for i, name in enumerate(columns) if width() >= 125 or name not in _WIDE]
    return table(title, [columns[i] for i in kept], [[row[i] for i in kept] for row in rows])


def _csv_row(variant: str, run: Run) -> dict[str, Any]:
    row: dict[str, Any] = {"run": run.folder.name, "variant": variant, "seed": run.seed, "state": run.state}
    if run.finished:
        kept = ("acc1", "generalization_gap", "scale_area", "scale_spread", "scale_consistency", "val_scale")
        row |= {key: run.summary.get(key) for key in (*kept, "epochs", "train_megapixels", "parameters")}
        if len(run.summary["scales"]) < 2:  # a network of one size has no spread
            row |= dict.fromkeys(("scale_area", "scale_spread", "scale_consistency"))
        row |= {f"acc1@{one['scale']}": one["acc1"] for one in run.summary["scales"]}
    return row


def _markdown(found: Study, tables: Sequence[Any], runs: Sequence[Run], missing: Sequence[str]) -> str:
    parts = [f"# {markdown_text(runs[0].folder.parent.resolve().name)}"]
    for title, columns, rows in (one for one in tables if one[2]):
        parts += [f"## {markdown_text(title)}", markdown(columns, rows)]
    parts += ["\n".join(f"- {markdown_text(line)}" for line in (*notes(found), *problems(runs, missing)))]
    return "\n\n".join(parts) + "\n"
