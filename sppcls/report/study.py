"""Variants compared: by seed, by image, and at equal compute."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import accumulate
from typing import Any

import numpy as np

from sppcls.errors import ConfigError
from sppcls.measure.answers import Answers
from sppcls.measure.statistics import Comparison, Estimate, FloatArray, compare, estimate, holm, log_scale_area
from sppcls.report.runs import Run

# What variants are tested on; the rest of `values_of` is described and not tested. The gap has a difference and no p:
# predictions for single training images are not kept.
TESTED = ("acc1", "scale_area", "scale_spread", "generalization_gap")


@dataclass(frozen=True)
class Variant:
    """One variant's finished runs, their measures by seed, and estimates by measure and of top-1 by test scale."""

    runs: tuple[Run, ...]
    values: dict[int, dict[str, float]]
    estimates: dict[str, Estimate]
    by_scale: dict[int, Estimate]


@dataclass(frozen=True)
class Study:
    """All variants at one reference scale, and the comparisons with the baseline by variant and measure.

    ``budget`` is the number of pixels, in millions, seen by the cheapest run: equal compute is read there. None if
    no run has recorded it.
    """

    scale: int
    baseline: str
    budget: float | None
    variants: dict[str, Variant]
    comparisons: dict[str, dict[str, Comparison]]


def study(by_variant: Mapping[str, Sequence[Run]], baseline: str) -> Study:
    """Compare the finished runs; raises ``ConfigError`` where the baseline has none, or a variant a seed twice."""
    finished = {name: tuple(run for run in runs if run.finished) for name, runs in by_variant.items()}
    if not finished[baseline]:
        raise ConfigError(f"baseline {baseline!r} has no finished run; rerun the sweep or name another --baseline")
    _refuse_twins(finished)
    scale = int(finished[baseline][0].summary["val_scale"])
    costs = [run.summary.get("train_megapixels") for runs in finished.values() for run in runs]
    budget = min((cost for cost in costs if cost is not None), default=None)
    variants = {name: _variant(runs, scale, budget) for name, runs in finished.items() if runs}
    against = [name for name in variants if name != baseline]
    compared = {name: contrast({name: 1.0, baseline: -1.0}, variants, scale) for name in against}
    return Study(scale, baseline, budget, variants, adjusted(compared))


def _refuse_twins(by_variant: Mapping[str, Sequence[Run]]) -> None:
    for name, runs in by_variant.items():
        seen: dict[int, Run] = {}
        for run in runs:
            twin = seen.setdefault(run.seed, run)
            if twin is not run:
                both = f"{twin.folder.name} and {run.folder.name}"
                raise ConfigError(f"two runs of {name!r} with seed {run.seed}: {both}; move one away")


def values_of(run: Run, scale: int, budget: float | None) -> dict[str, float]:
    """Return the measures that a run has, by name: accuracies at ``scale``, and figures over all scales."""
    summary = run.summary
    gaps = {row["scale"]: row["generalization_gap"] for row in summary.get("gaps", [])}
    found = {"acc1": _acc1(run, scale), "generalization_gap": gaps.get(scale)}
    names = ["train_megapixels", "seconds"]
    if len(summary["scales"]) > 1:  # a fixed-size network has no spread
        names += ["scale_area", "scale_spread", "scale_consistency"]
    values: Mapping[str, Any] = summary
    found |= {name: values.get(name) for name in names} | _at_budget(run, scale, budget)
    return {name: float(value) for name, value in found.items() if value is not None}


def _acc1(run: Run, scale: int) -> float | None:
    return next((row["acc1"] for row in run.summary["scales"] if row["scale"] == scale), None)


def _at_budget(run: Run, scale: int, budget: float | None) -> dict[str, float]:
    """Return the accuracy after ``budget`` megapixels, the pixels read at, and the share of the epochs run by then.

    It is linear in pixels between the two measurements of gap.csv around the budget, and the end of the run is the
    last one; nothing before the first. All epochs have equally many steps, so the share is also the rate schedule's.
    """
    total = run.summary.get("train_megapixels")
    if budget is None or total is None:
        return {}
    seen = list(accumulate(float(row.get("megapixels") or "inf") for row in run.epochs))
    after = {row.get("epoch"): pixels for row, pixels in zip(run.epochs, seen, strict=True) if pixels < np.inf}
    rows = [row for row in run.gaps if row["scale"] == str(scale) and row["epoch"] in after]
    curve = {after[row["epoch"]]: float(row["val_acc1"]) for row in rows}
    if (end := _acc1(run, scale)) is not None:
        curve[total] = end
    at = min(budget, total)
    if not curve or not min(curve) / 1.001 <= at <= max(curve) * 1.001:  # pixels are rounded in the tables
        return {}
    every = run.summary.get("epochs") or max(len(run.epochs), 1)
    shares = {0.0: 0.0, **{pixels: done / every for done, pixels in enumerate(after.values(), 1)}, total: 1.0}
    acc1, share = (float(np.interp(at, sorted(of), [of[x] for x in sorted(of)])) for of in (curve, shares))
    return {"acc1_equal_compute": acc1, "equal_compute_megapixels": at, "equal_compute_schedule": share}


def _variant(runs: tuple[Run, ...], scale: int, budget: float | None) -> Variant:
    by_seed = {run.seed: values_of(run, scale, budget) for run in runs}
    measures = dict.fromkeys(key for values in by_seed.values() for key in values)
    estimates = {key: estimate([values[key] for values in by_seed.values() if key in values]) for key in measures}
    rows = [row for run in runs for row in run.summary["scales"]]
    scales = sorted(set.intersection(*({row["scale"] for row in run.summary["scales"]} for run in runs)))
    by_scale = {s: estimate([row["acc1"] for row in rows if row["scale"] == s]) for s in scales}
    return Variant(runs, by_seed, estimates, by_scale)


def contrast(parts: Mapping[str, float], variants: Mapping[str, Variant], scale: int) -> dict[str, Comparison]:
    """Return by measure the sum over variants of their value times their weight in ``parts``, over common seeds.

    With weights 1 and -1 it is the difference of two variants.
    """
    images = _by_image([(variants[name].runs, weight) for name, weight in parts.items()], scale)
    found = {}
    for measure in TESTED:
        by_seed = [{s: of[measure] for s, of in variants[name].values.items() if measure in of} for name in parts]
        if common := set.intersection(*map(set, by_seed)):
            weighed = list(zip(parts.values(), by_seed, strict=True))
            ours, theirs = ({s: sum(max(side * w, 0) * of[s] for w, of in weighed) for s in common} for side in (1, -1))
            by_image = images.get(measure)
            whole = by_image is not None and len(by_image) == len(common) and by_image.shape[1] > 1
            found[measure] = compare(ours, theirs, by_image if whole else None)
    return found


def adjusted(comparisons: dict[str, dict[str, Comparison]]) -> dict[str, dict[str, Comparison]]:
    """Return the comparisons with Holm's p; the family is every ``p``, of all of them and all measures."""
    ps = iter(holm([one.p for measures in comparisons.values() for one in measures.values()]))
    return {
        name: {measure: replace(one, p_holm=next(ps)) for measure, one in measures.items()}
        for name, measures in comparisons.items()
    }


def _by_image(parts: Sequence[tuple[Sequence[Run], float]], scale: int) -> dict[str, FloatArray]:
    """Return by measure what each image adds to a contrast in the common seeds, [seeds, images].

    Empty if one of these runs has no answers, or answers to other images.
    """
    by_seed = [{run.seed: run.answers for run in runs} for runs, _ in parts]
    seeds = sorted(set.intersection(*map(set, by_seed)))
    answers = [[one for of in by_seed if (one := of[seed])] for seed in seeds]
    lacking = any(len(some) < len(parts) for some in answers)
    if lacking or len({(one.images, one.targets.shape) for some in answers for one in some}) != 1:
        return {}
    sides = [[contributions(one, scale) for one in some] for some in answers]
    measures = set.intersection(*(set(side) for some in sides for side in some))
    weights = [weight for _, weight in parts]
    return {
        measure: np.stack([sum(w * one[measure] for w, one in zip(weights, some, strict=True)) for some in sides])
        for measure in measures
    }


def contributions(answers: Answers, scale: int) -> dict[str, FloatArray]:
    """Return by measure what each image adds to it, [N]: the mean over the images is the measure.

    For the spread this is the image's result at the run's best scale minus that at its worst.
    """
    right, scales = answers.right.astype(np.float64), answers.scales.tolist()
    shares, accuracies = [log_scale_area(scales, unit) for unit in np.eye(len(scales)).tolist()], right.mean(axis=1)
    at = {"acc1": right[scales.index(scale)]} if scale in scales else {}
    spread = right[accuracies.argmax()] - right[accuracies.argmin()]
    return at | {"scale_area": np.array(shares) @ right, "scale_spread": spread}


def steps_of(found: Study) -> list[str]:
    """Return what the variants' steps are like, so that an effect can be told from its batches."""
    kinds: dict[tuple[str, int], dict[str, list[float]]] = {}
    for name, run in ((name, run) for name, one in found.variants.items() for run in one.runs):
        if mixing := run.summary.get("mixing"):
            kinds.setdefault((mixing["by"], mixing["parts"]), {}).setdefault(name, []).append(mixing["classes"])
    said = []
    for (by, parts), names in kinds.items():
        images = "any images" if by == "random" else f"images by aspect{f', in {parts} parts' if parts > 1 else ''}"
        classes = np.mean([value for values in names.values() for value in values])
        said.append(f"{', '.join(names)}: {images}, {classes:.1f} classes in each")
    if len(said) < 2:
        return [f"Steps of {one}." for one in said]
    differ = "Steps differ, and so may what is learned from them"
    return [f"{differ}: {'; '.join(said)}. With the same data.batches and data.mix they are the same."]


def as_values(found: Study) -> dict[str, Any]:
    """Return a study as plain values, for summary.json."""

    variants = {
        name: {"seeds": list(one.values), "measures": plain(one.estimates), "scales": plain(one.by_scale)}
        for name, one in found.variants.items()
    }
    head = {"scale": found.scale, "baseline": found.baseline, "equal_compute_megapixels": found.budget}
    return head | {"variants": variants, "comparisons": {name: plain(one) for name, one in found.comparisons.items()}}


def plain(values: Mapping[Any, Estimate | Comparison]) -> dict[Any, dict[str, Any]]:
    """Return estimates or comparisons as plain values."""
    return {name: asdict(one) for name, one in values.items()}
