"""The plots of a sweep: accuracy over scales, differences, gaps, epochs and costs."""

from collections.abc import Mapping
from itertools import accumulate
from statistics import fmean

from sppcls.measure.statistics import Estimate, estimate
from sppcls.report import page
from sppcls.report.plots import SCALES, Curve, Figure, dot_plot, estimate_curve, line_figure
from sppcls.report.runs import flat
from sppcls.report.study import Study, Variant


def sweep_figures(found: Study) -> dict[str, Figure | None]:
    """Return the plots of a sweep by name, with their numbers."""
    top1, every = f"top-1 at scale {found.scale}", found.variants
    trained = {scale for one in every.values() for scale in flat(one.runs[0].config).get("schedule.scales") or ()}
    means = {name: estimate_curve(one.by_scale) for name, one in every.items()}
    costs = {name: Curve(dots, "") for name, one in every.items() if (dots := _costs(one))}
    front = {"not surpassed at its cost": _front(costs)} if len(costs) > 1 else {}
    return {
        "scales": line_figure(means, x=SCALES, y="top-1", marks=sorted(trained), log=True),
        "differences": _differences(found),
        "gap": _gaps(found),
        "epochs": line_figure(_curves(found), x="epoch", y=top1),
        "costs": line_figure(costs | front, x="megapixels seen in training", y=top1),
    }


def _differences(found: Study) -> Figure | None:
    """Return a forest plot: each variant less the baseline, with its interval."""
    every = {name: one["acc1"] for name, one in found.comparisons.items() if "acc1" in one}
    if not every:
        return None
    rows = [[name, page.points_interval(one.difference, one.low, one.high)] for name, one in every.items()]
    x = f"top-1 at scale {found.scale} less that of {found.baseline}"
    kinds = [list(found.variants).index(name) for name in every]
    plot = dot_plot({name: (one.difference, one.low, one.high) for name, one in every.items()}, x=x, kinds=kinds)
    return Figure(plot, ["variant", "difference"], rows)


def _front(costs: Mapping[str, Curve]) -> Curve:
    """Return the variants' means that no other reaches with fewer pixels."""
    means = sorted((fmean(x for x, _ in one.points), -fmean(y for _, y in one.points)) for one in costs.values())
    before = [float("inf"), *accumulate((down for _, down in means), min)]
    return Curve([(x, -down) for (x, down), best in zip(means, before, strict=False) if down < best], "--", len(costs))


def _gaps(found: Study) -> Figure | None:
    gaps = {name: gap for name, one in found.variants.items() if (gap := one.estimates.get("generalization_gap"))}
    if not gaps:
        return None
    rows = [[name, page.percent_interval(one.mean, one.low, one.high)] for name, one in gaps.items()]
    plot = dot_plot({name: (e.mean, e.low, e.high) for name, e in gaps.items()}, x=f"gap at scale {found.scale}")
    return Figure(plot, ["variant", "gap"], rows)


def _curves(found: Study) -> dict[str, Curve]:
    """Return training (dashed) and validation accuracy over the epochs, the mean over seeds."""
    curves: dict[str, Curve] = {}
    for number, (name, one) in enumerate(found.variants.items()):
        val, train = (_over_epochs(one, found.scale, f"{side}_acc1") for side in ("val", "train"))
        if val:
            curves[name] = estimate_curve(val, number)
            curves[f"{name}, training"] = Curve([(epoch, one.mean) for epoch, one in train.items()], "--", number)
    return curves


def _over_epochs(variant: Variant, scale: int, column: str) -> dict[int, Estimate]:
    values: dict[int, list[float]] = {}
    for run in variant.runs:
        for row in run.gaps:
            if row["scale"] == str(scale):
                values.setdefault(int(row["epoch"]) + 1, []).append(float(row[column]))
    return {epoch: estimate(seen) for epoch, seen in sorted(values.items())}


def _costs(variant: Variant) -> list[tuple[float, float]]:
    runs = [values for values in variant.values.values() if {"acc1", "train_megapixels"} <= values.keys()]
    return [(values["train_megapixels"], values["acc1"]) for values in runs]
