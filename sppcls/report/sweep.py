"""The report of a sweep: summary.csv, summary.json, summary.md, report.html and the tables on the terminal."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from sppcls.atomic import write_csv, write_json, write_text
from sppcls.measure.answers import FILE as ANSWERS
from sppcls.measure.statistics import Bootstrap, Comparison, Estimate
from sppcls.report.comparison import Study, as_values, study
from sppcls.report.page import percent, points
from sppcls.report.runs import Run, chosen_baseline, is_run, read_manifest, read_runs, variants
from sppcls.report.sweep_page import write_sweep_page
from sppcls.terminal import markdown, markdown_text, table, width

_WIDE = ("consistency", "at equal compute", "seconds", "seeds", "bootstrap", "p (sign flip)", "Holm (sign flip)")
MEASURES = {
    "acc1": "top-1 at {scale}",
    "acc1_equal_compute": "at equal compute",
    "scale_area": "mean over scales",
    "scale_spread": "scale spread",
    "scale_consistency": "consistency",
    "generalization_gap": "gap",
}


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
            lines.append(f"{run.folder.name}: {ANSWERS} is damaged, and has no part in bootstrap and confusion")
    return lines


def notes(found: Study) -> list[str]:
    """Return what a reader has to know to read the tables."""
    lines = ["Intervals are 95 %: Student's t over seeds; bootstrap: over test images and seeds, 10,000 resamples."]
    if found.budget is not None:
        lines.append(
            f"Equal compute: the last measurement by {_amount(found.budget)} megapixels seen, what the cheapest run "
            "saw; the learning rate of a longer run had not decayed by then."
        )
    apart = [name for name, measures in found.comparisons.items() if not measures]
    lines += [f"{name}: no seed and measure in common with {found.baseline}, so it is not compared" for name in apart]
    few = sorted({one.note for measures in found.comparisons.values() for one in measures.values() if one.note})
    return lines + [f"p: {note}" for note in few]


def variant_rows(found: Study) -> tuple[str, list[str], list[list[str]]]:
    """Return title, columns and rows of the variants' means."""
    measures = [said.format(scale=found.scale) for said in MEASURES.values()]
    columns, rows = ["variant", "seeds", *measures, "megapixels", "seconds"], []
    for name, one in found.variants.items():
        mark = " (baseline)" if name == found.baseline else ""
        cells = [interval(one.estimates.get(measure)) for measure in MEASURES]
        costs = [one.estimates.get(key) for key in ("train_megapixels", "seconds")]
        rows.append([name + mark, str(len(one.runs)), *cells, *(_amount(cost.mean) if cost else "-" for cost in costs)])
    return "Variants: mean ± half of the 95 % interval, in percent", columns, rows


def _amount(value: float) -> str:
    return f"{value:,.0f}" if value >= 10 else f"{value:.2g}"


def comparison_rows(found: Study) -> tuple[str, list[str], list[list[str]]]:
    """Return title, columns and rows of the comparisons with the baseline."""
    rows = []
    for name, measures in found.comparisons.items():
        for measure, one in measures.items():
            boot = found.bootstraps.get(name) if measure == "acc1" else None
            ps = (one.p_t, one.p_t_holm, one.p_sign_flip, one.p_sign_flip_holm)
            cells = [points(one.difference), _between(one), _between(boot), *map(_p, ps)]
            rows.append([name, MEASURES[measure].format(scale=found.scale), str(one.n), *cells])
    columns = ["variant", "measure", "seeds", "difference", "interval", "bootstrap"]
    columns += ["p (t)", "Holm", "p (sign flip)", "Holm (sign flip)"]
    return f"Against {found.baseline}, paired by seed, in percentage points", columns, rows


def interval(one: Estimate | None) -> str:
    """Return an estimate in percent with half of its interval, or a dash."""
    if one is None:
        return "-"
    return percent(one.mean)[:-1] + (f" ± {(one.high - one.mean) * 100:.1f}" if one.high is not None else "")


def _between(one: Comparison | Bootstrap | None) -> str:
    return "-" if one is None or one.low is None else f"{points(one.low)} to {points(one.high)}"


def _p(p: float | None) -> str:
    return "-" if p is None else f"{p:.4f}" if p >= 0.0001 else "< 0.0001"


def _rich(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    """Return a terminal's table, on a narrow one without the columns that the page has too."""
    kept = [i for i, name in enumerate(columns) if width() >= 125 or name not in _WIDE]
    return table(title, [columns[i] for i in kept], [[row[i] for i in kept] for row in rows])


def _csv_row(variant: str, run: Run) -> dict[str, Any]:
    row: dict[str, Any] = {"run": run.folder.name, "variant": variant, "seed": run.seed, "state": run.state}
    if run.finished:
        kept = ("acc1", "generalization_gap", "scale_area", "scale_spread", "scale_consistency", "last_scale")
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
