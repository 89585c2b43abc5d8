"""The report of a sweep: what its variants did at every test scale, what they cost, and where they went wrong."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from rich.table import Table as RichTable

from sppcls.files import write_csv, write_json, write_text
from sppcls.measure.answers import FILE as ANSWERS
from sppcls.measure.statistics import Comparison
from sppcls.report import page
from sppcls.report.factors import effects
from sppcls.report.recipes import recipes
from sppcls.report.runs import Run, chosen_baseline, differences, flat, is_run, read_manifest, read_runs, variants
from sppcls.report.study import Study, Variant, as_values, plain, steps_of, study
from sppcls.report.sweep_figures import sweep_figures
from sppcls.report.verdicts import verdicts
from sppcls.terminal import markdown, markdown_text, table, width

_WIDE = ("consistency", "at equal compute", "equal compute at", "seconds", "seeds")  # not on a narrow terminal
MEASURES = {
    "acc1": "top-1 at {scale}",
    "acc1_equal_compute": "at equal compute",
    "scale_area": "mean over scales",
    "scale_spread": "scale spread",
    "scale_consistency": "consistency",
    "generalization_gap": "gap",
}


def write_sweep_report(folder: Path, baselines: Sequence[str] = ()) -> list[RichTable | str]:
    """Write the report of the runs in ``folder`` and return the terminal output; only reads run folders.

    Raises:
        ConfigError: No run, two baselines, or a baseline that is not a variant.
    """
    runs, manifest = read_runs(folder), read_manifest(folder)
    by_variant = variants(runs)
    baseline = chosen_baseline(by_variant, baselines or [str(name) for name in [manifest.get("baseline")] if name])
    missing = [name for name in manifest.get("jobs") or {} if not is_run(folder / name)]
    # Only what depends on a run's settings, so that a sweep in two parts gives the same file.
    by_seed = [(name, run) for name, some in by_variant.items() for run in sorted(some, key=lambda run: run.seed)]
    write_csv(folder / "summary.csv", [_csv_row(name, run) for name, run in by_seed])
    troubles, instead = problems(runs, missing), f"no run of the baseline {baseline!r} has finished yet"
    ready = [name for name, some in by_variant.items() if any(run.finished for run in some)]
    if not ready:
        return [*troubles, f"{instead}, nor of any other variant; no report written"]
    found = study(by_variant, baseline if baseline in ready else ready[0])
    states = dict(sorted(Counter(run.state for run in runs).items()))
    apart = effects(found)
    values = as_values(found) | {"effects": {name: plain(one) for name, one in apart.items()}}
    write_json(folder / "summary.json", {"states": states, "missing": missing} | values)
    tables, said = [_variants(found), _comparisons(found), _effects(found, apart), recipes(found, folder)], notes(found)
    write_text(folder / "summary.md", _markdown(folder, tables, [*verdicts(found), *said, *troubles]))
    said += [f"{instead}: compared with {ready[0]!r} for now"] if found.baseline != baseline else []
    given = {"missing": missing, "notes": said, "tables": tables, "command": manifest.get("command")}
    written = _write_page(folder, found, runs, **given)
    return [*(_rich(one) for one in tables if one.rows), *said, *troubles, f"report: {written}"]


def problems(runs: Iterable[Run], missing: Sequence[str]) -> list[str]:
    """Return one line per unfinished run, and the last log lines of failed ones."""
    lines = [f"{len(missing)} {'job has' if len(missing) == 1 else 'jobs have'} not started"] if missing else []
    for run in runs:
        if not run.finished:
            why = f": {run.status['error']}" if run.status.get("error") else ""
            said = "finished, but its summary.json cannot be read" if run.state == "finished" else run.state
            lines.append(f"{run.folder.name}: {said}{why}")
            lines += [f"    {line}" for line in run.last_lines(3)] if run.state == "failed" else []
        elif run.answers is None and (run.folder / ANSWERS).is_file():
            lines.append(f"{run.folder.name}: {ANSWERS} is damaged: left out of p over images and of the confusion")
    return lines


def notes(found: Study) -> list[str]:
    """Return notes on how to read the tables."""
    lines = [
        *_parts(found),
        *_protocol(found),
        "Differences: the interval (95 %) and p treat seeds and images as random samples. Holm's p corrects for all p "
        "of the table; a difference is significant if that is <= 0.05.",
        "The gap has no interval and no p: answers to single training images are not kept.",
    ]
    if found.budget is not None:
        lines.append(
            f"Equal compute: read at {page.amount(found.budget)} megapixels (MP) seen, the cheapest run's total, "
            "between the measurements around it. By then a longer run has only done part of its rate schedule."
        )
    lines += steps_of(found)
    apart = [name for name, measures in found.comparisons.items() if not measures]
    lines += [f"{name}: no seed and measure in common with {found.baseline}, so not compared" for name in apart]
    tests = [one for measures in found.comparisons.values() for one in measures.items()]
    few = {one.note for _, one in tests if one.note}
    if any(one.p is None and not one.note and measure != "generalization_gap" for measure, one in tests):
        few.add("not over images unless every seed has predictions for the same images (answers.npz)")
    if any(one.n < 3 for variant in found.variants.values() for one in variant.estimates.values()):
        lines.append("With fewer than 3 seeds there is no interval.")
    return lines + [f"p: {note}" for note in sorted(few)]


def _parts(found: Study) -> list[str]:
    """Return which part of the data the figures are of."""
    runs = {name: {page.part_of(run.summary) for run in one.runs} for name, one in found.variants.items()}
    every = sorted(set.union(*runs.values()))
    if len(every) > 1:
        of = "; ".join(f"{name}: {', '.join(sorted(parts))}" for name, parts in runs.items())
        return [f"warning: figures of different parts of the data cannot be compared ({of}); measure all on one"]
    return [f"Accuracies and gaps are of {'the test part' if every == ['test part'] else 'validation images'}."]


def _protocol(found: Study) -> list[str]:
    """Return what the runs' protocol leaves open: fixed training images, and a recipe that variants share."""
    configs = [flat(one.runs[0].config) for one in found.variants.values()]
    redrawn = all(config.get("sweep.redraw") for config in configs)
    lines = [f"The training images are {'drawn anew for each seed' if redrawn else 'the same for all seeds'}."]
    tuned = all(any(key.startswith("sweep.tune.") for key in config) for config in configs)
    if not tuned and len(configs) > 1:
        lines.append(
            "No variant has a recipe of its own: the one that they share may suit one of them best (sweep.tune)."
        )
    return lines


def _variants(found: Study) -> page.Table:
    """Return the table of the variants' means."""
    measures, rows = [said.format(scale=found.scale) for said in MEASURES.values()], []
    for name, one in found.variants.items():
        mark = " (baseline)" if name == found.baseline else ""
        cells = [page.interval(one.estimates.get(measure)) for measure in MEASURES]
        costs = [one.estimates.get(key) for key in ("train_megapixels", "seconds")]
        amounts = [page.amount(cost.mean) if cost else "-" for cost in costs]
        rows.append([name + mark, str(len(one.runs)), *cells, _read_at(one), *amounts])
    title = "Variants: mean ± half of the 95 % interval over seeds, on these images, in percent"
    return page.Table(title, ["variant", "seeds", *measures, "equal compute at", "megapixels", "seconds"], rows)


def _read_at(one: Variant) -> str:
    pixels, share = (one.estimates.get(f"equal_compute_{name}") for name in ("megapixels", "schedule"))
    return f"{page.amount(pixels.mean)} MP, {share.mean:.0%} of schedule" if pixels and share else "-"


def _comparisons(found: Study) -> page.Table:
    """Return the table of the comparisons with the baseline."""
    title = f"Compared with {found.baseline}, paired by seed, in percentage points"
    return page.Table(title, ["variant", *_DIFFERENCE], _rows(found, found.comparisons))


def _effects(found: Study, apart: Mapping[str, Mapping[str, Comparison]]) -> page.Table:
    """Return the table of main effects and interactions."""
    title = "Effects of each factor, mean over the others, and interactions, in percentage points"
    return page.Table(title, ["effect", *_DIFFERENCE], _rows(found, apart))


_DIFFERENCE = ("measure", "seeds", "difference", "interval", "p", "p (Holm)", "stands")


def _rows(found: Study, compared: Mapping[str, Mapping[str, Comparison]]) -> list[list[str]]:
    rows = []
    for name, measures in compared.items():
        for measure, one in measures.items():
            between = "-" if one.low is None else f"{page.points(one.low)} to {page.points(one.high)}"
            stands = "-" if one.p_holm is None else "yes" if one.p_holm <= 0.05 else "no"
            cells = [str(one.n), page.points(one.difference), between, *map(page.p_value, (one.p, one.p_holm)), stands]
            rows.append([name, MEASURES[measure].format(scale=found.scale), *cells])
    return rows


def _rich(one: page.Table) -> RichTable:
    """Return a table for the terminal; on a narrow one without columns that are also on the page."""
    kept = [i for i, name in enumerate(one.columns) if width() >= 125 or name not in _WIDE]
    return table(one.title, [one.columns[i] for i in kept], [[row[i] for i in kept] for row in one.rows])


def _csv_row(variant: str, run: Run) -> dict[str, Any]:
    row: dict[str, Any] = {"run": run.folder.name, "variant": variant, "seed": run.seed, "state": run.state}
    if run.finished:
        over_scales = ("scale_area", "scale_spread", "scale_consistency")
        kept = ("acc1", "generalization_gap", *over_scales, "val_scale", "epochs", "train_megapixels", "parameters")
        row |= {key: run.summary.get(key) for key in kept}
        if len(run.summary["scales"]) < 2:  # a fixed-size network has no spread
            row |= dict.fromkeys(over_scales)
        row |= {f"acc1@{one['scale']}": one["acc1"] for one in run.summary["scales"]}
    return row


def _markdown(folder: Path, tables: Iterable[page.Table], lines: Iterable[str]) -> str:
    parts = [f"# {markdown_text(folder.resolve().name)}"]
    for one in (one for one in tables if one.rows):
        parts += [f"## {markdown_text(one.title)}", markdown(one.columns, one.rows)]
    return "\n\n".join([*parts, "\n".join(f"- {markdown_text(line)}" for line in lines)]) + "\n"


def _write_page(folder: Path, found: Study, runs: Sequence[Run], **values: object) -> Path:
    """Write report.html into the sweep's folder and return its path."""
    keys, base = differences(runs), found.variants[found.baseline].runs
    classes, answers = base[0].mistakes.get("classes", ()), [run.answers for run in base if run.answers]
    return page.write_page(
        "sweep",
        folder / "report.html",
        folder.resolve().name,
        runs=runs,
        tiles=_tiles(found),
        figures=sweep_figures(found),
        verdicts=verdicts(found),
        data=page.data_rows({name: one.runs[0].summary for name, one in found.variants.items()}),
        confusion=page.confusion(answers, classes, found.scale),
        baseline=found.baseline,
        base=base[0],
        keys=keys,
        settings=[[_link(run), run.state, *(str(flat(run.config).get(key)) for key in keys)] for run in runs],
        **values,
    )


def _link(run: Run) -> str:
    """Return a run's name, linked to its page if it has one."""
    from markupsafe import Markup

    name = run.folder.name
    if not (run.folder / "report.html").is_file():
        return name
    link = Markup('<a href="{}/report.html" title="{}">{}</a>')
    return link.format(quote(name.encode(errors="surrogateescape")), name, page.middle(name, 60))


def _tiles(found: Study, most: int = 6) -> list[tuple[str, str]]:
    """Return top-1 at the common scale: the baseline's, and then the highest of the others'."""
    means = {name: one.estimates["acc1"].mean for name, one in found.variants.items() if "acc1" in one.estimates}
    order = sorted(means, key=lambda name: (name != found.baseline, -means[name]))[:most]
    marks = {found.baseline: " (baseline)"} if len(means) > 1 else {}
    return [(f"top-1 at scale {found.scale}, {name}{marks.get(name, '')}", page.percent(means[name])) for name in order]
