"""The runs of a sweep side by side: means over seeds, and each variant against the baseline, paired by seed."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import accumulate
from typing import Any

import numpy as np

from sppcls.errors import ConfigError
from sppcls.measure.statistics import Bootstrap, Comparison, Estimate, bootstrap_difference, compare, estimate, holm
from sppcls.report.runs import Run

# What variants are tested on; the rest of `values_of` is described and not tested.
TESTED = ("acc1", "scale_area", "scale_spread", "generalization_gap")


@dataclass(frozen=True)
class Variant:
    """One variant's runs that have finished, and its estimates by measure."""

    runs: tuple[Run, ...]
    estimates: dict[str, Estimate]
    by_scale: dict[int, Estimate]


@dataclass(frozen=True)
class Study:
    """All variants at one reference scale, and the comparisons with the baseline by variant and measure.

    ``budget`` is the pixels, in millions, that the cheapest run has seen: equal compute is read off there. None where
    no run says what it saw.
    """

    scale: int
    baseline: str
    budget: float | None
    variants: dict[str, Variant]
    comparisons: dict[str, dict[str, Comparison]]
    bootstraps: dict[str, Bootstrap]


def study(by_variant: Mapping[str, Sequence[Run]], baseline: str) -> Study:
    """Compare the finished runs; raises ``ConfigError`` where the baseline has none."""
    finished = {name: tuple(run for run in runs if run.finished) for name, runs in by_variant.items()}
    if not finished[baseline]:
        raise ConfigError(f"baseline {baseline!r} has no finished run; run the sweep again or name another --baseline")
    _refuse_twins(finished)
    scale = _reference(finished[baseline])
    costs = [run.summary.get("train_megapixels") for runs in finished.values() for run in runs]
    budget = min((cost for cost in costs if cost is not None), default=None)
    tables = {n: {run.seed: values_of(run, scale, budget) for run in runs} for n, runs in finished.items() if runs}
    variants = {name: _variant(finished[name], table) for name, table in tables.items()}
    others = [name for name in variants if name != baseline]
    comparisons = _adjusted({name: _compared(tables[name], tables[baseline]) for name in others})
    bootstraps = {n: found for n in others if (found := _bootstrapped(finished[n], finished[baseline], scale))}
    return Study(scale, baseline, budget, variants, comparisons, bootstraps)


def _reference(runs: Sequence[Run]) -> int:
    """Return the scale that all runs end at or else, as a random schedule's, the largest that all were measured at."""
    last = {int(run.summary["last_scale"]) for run in runs}
    measured = set.intersection(*({int(row["scale"]) for row in run.summary["scales"]} for run in runs))
    trained = measured & set((runs[0].config.get("schedule") or {}).get("scales", ()))
    return last.pop() if len(last) == 1 else max(trained or measured or last)


def _refuse_twins(by_variant: Mapping[str, Sequence[Run]]) -> None:
    for name, runs in by_variant.items():
        seen: dict[int, Run] = {}
        for run in runs:
            twin = seen.setdefault(run.seed, run)
            if twin is not run:
                both = f"{twin.folder.name} and {run.folder.name}"
                raise ConfigError(f"two runs of {name!r} with seed {run.seed}: {both}; move one away")


def values_of(run: Run, scale: int, budget: float | None) -> dict[str, float]:
    """Return a run's measures by name, those that it has: accuracies at ``scale``, and what holds over all scales."""
    summary = run.summary
    gaps = {row["scale"]: row["generalization_gap"] for row in summary.get("gaps", [])}
    found = {
        "acc1": next((row["acc1"] for row in summary["scales"] if row["scale"] == scale), None),
        "acc1_equal_compute": _at_budget(run, scale, budget),
        "generalization_gap": gaps.get(scale),
        "train_megapixels": summary.get("train_megapixels"),
        "seconds": summary.get("seconds"),
    }
    if len(summary["scales"]) > 1:  # a network of one size has no spread
        found |= {name: summary.get(name) for name in ("scale_area", "scale_spread", "scale_consistency")}
    return {name: float(value) for name, value in found.items() if value is not None}


def _at_budget(run: Run, scale: int, budget: float | None) -> float | None:
    """Return the accuracy at the last measurement of gap.csv by which the run had seen ``budget`` megapixels."""
    total = run.summary.get("train_megapixels")
    if budget is None or total is None:
        return None
    if total <= budget * 1.001:
        return next((row["acc1"] for row in run.summary["scales"] if row["scale"] == scale), None)
    pixels = [float(r.get("megapixels") or "inf") for r in run.epochs]
    seen = dict(zip((r.get("epoch") for r in run.epochs), accumulate(pixels), strict=True))
    within = [r for r in run.gaps if r["scale"] == str(scale) and seen.get(r["epoch"], np.inf) <= budget * 1.001]
    return float(within[-1]["val_acc1"]) if within else None


def _variant(runs: tuple[Run, ...], table: Mapping[int, Mapping[str, float]]) -> Variant:
    measures = dict.fromkeys(key for values in table.values() for key in values)
    estimates = {key: estimate([values[key] for values in table.values() if key in values]) for key in measures}
    rows = [row for run in runs for row in run.summary["scales"]]
    scales = sorted(set.intersection(*({row["scale"] for row in run.summary["scales"]} for run in runs)))
    return Variant(runs, estimates, {s: estimate([r["acc1"] for r in rows if r["scale"] == s]) for s in scales})


def _compared(
    table: Mapping[int, Mapping[str, float]], base: Mapping[int, Mapping[str, float]]
) -> dict[str, Comparison]:
    found = {}
    for measure in TESTED:
        ours, theirs = ({s: v[measure] for s, v in side.items() if measure in v} for side in (table, base))
        if ours.keys() & theirs.keys():
            found[measure] = compare(ours, theirs)
    return found


def _adjusted(comparisons: dict[str, dict[str, Comparison]]) -> dict[str, dict[str, Comparison]]:
    """Return the comparisons with Holm's p: a family is every test of one kind, of every variant and measure."""
    places = [(name, measure) for name, measures in comparisons.items() for measure in measures]
    tests = [comparisons[name][measure] for name, measure in places]
    by_t, by_flip = (holm(ps) if ps else [] for ps in ([one.p_t for one in tests], [one.p_sign_flip for one in tests]))
    for (name, measure), t, flip in zip(places, by_t, by_flip, strict=True):
        comparisons[name][measure] = replace(comparisons[name][measure], p_t_holm=t, p_sign_flip_holm=flip)
    return comparisons


def _bootstrapped(runs: Sequence[Run], base: Sequence[Run], scale: int) -> Bootstrap | None:
    """Return the paired bootstrap over images and seeds, where both sides kept answers to the same images."""
    by_seed = {run.seed: run.answers for run in base}
    alike = [
        (ours, theirs)
        for run in sorted(runs, key=lambda run: run.seed)
        if (ours := run.answers) and (theirs := by_seed.get(run.seed)) and ours.images == theirs.images
        if scale in ours.scales and scale in theirs.scales
    ]
    alike = [(ours, theirs) for ours, theirs in alike if ours.images == alike[0][0].images]
    if not alike:
        return None
    ours_right, their_right = (
        np.stack([one.right[one.at(scale)] for one in side]) for side in zip(*alike, strict=True)
    )
    return bootstrap_difference(ours_right, their_right)


def as_values(found: Study) -> dict[str, Any]:
    """Return a study as plain values, for summary.json."""
    plain = asdict(replace(found, variants={}))
    variants = {}
    for name, variant in found.variants.items():
        seeds, values = [run.seed for run in variant.runs], asdict(replace(variant, runs=()))
        variants[name] = {"seeds": seeds, "measures": values["estimates"], "scales": values["by_scale"]}
    return {
        "scale": found.scale,
        "baseline": found.baseline,
        "equal_compute_megapixels": found.budget,
        "variants": variants,
        "comparisons": plain["comparisons"],
        "bootstraps": plain["bootstraps"],
    }
