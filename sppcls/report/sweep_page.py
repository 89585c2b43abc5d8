"""The page of a sweep: what its variants did at every test scale, what they cost, and where they went wrong."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from sppcls.measure.statistics import Estimate, estimate
from sppcls.report.confusion import confusion
from sppcls.report.page import middle, percent, write_page
from sppcls.report.plots import Curve, dot_plot, line_plot, scale_plot
from sppcls.report.runs import Run, differences, flat, read_manifest
from sppcls.report.study import Study, Variant


def write_sweep_page(
    folder: Path, found: Study, runs: Sequence[Run], missing: Sequence[str], tables: Sequence[Any], notes: Sequence[str]
) -> Path:
    """Write report.html into the sweep's folder and return its path."""
    keys = differences(runs)
    base = found.variants[found.baseline].runs
    return write_page(
        "sweep",
        folder / "report.html",
        folder.resolve().name,
        study=found,
        runs=runs,
        missing=missing,
        notes=notes,
        tiles=_tiles(found),
        variants=tables[0],
        comparisons=tables[1],
        scales=_scales(found),
        gaps=_gaps(found),
        curves=_curves(found),
        costs=_costs(found),
        data=data_rows({name: one.runs[0].summary for name, one in found.variants.items()}),
        confusion=confused(base, found.scale),
        mistakes=base[0].mistakes,
        keys=keys,
        settings=[[_link(run), run.state, *(str(flat(run.config).get(key)) for key in keys)] for run in runs],
        failed=[(run, run.last_lines()) for run in runs if run.state == "failed"],
        command=read_manifest(folder).get("command"),
        status=base[0].status,
    )


def _link(run: Run) -> Any:
    """Return a run's name, which leads to its page where it has one."""
    from markupsafe import Markup

    name = run.folder.name
    if not (run.folder / "report.html").is_file():
        return name
    link = Markup('<a href="{}/report.html" title="{}">{}</a>')
    return link.format(quote(name.encode(errors="surrogateescape")), name, middle(name, 60))


def _tiles(found: Study, most: int = 6) -> list[tuple[str, str]]:
    """Return top-1 at the common scale: the baseline's, and then the highest of the others'."""
    means = {name: one.estimates["acc1"].mean for name, one in found.variants.items() if "acc1" in one.estimates}
    order = sorted(means, key=lambda name: (name != found.baseline, -means[name]))[:most]
    said = {name: f"{name}{' (baseline)' if name == found.baseline and len(means) > 1 else ''}" for name in order}
    return [(f"top-1 at scale {found.scale}, {said[name]}", percent(means[name])) for name in order]


def confused(runs: Sequence[Run], scale: int) -> dict[str, Any] | None:
    """Return the confusion of some runs together, where they kept answers."""
    answers = [run.answers for run in runs if run.answers]
    classes = runs[0].mistakes.get("classes")
    return confusion(answers, classes, scale) if answers and classes else None


def data_rows(summaries: dict[str, dict[str, Any]]) -> list[list[str]]:
    """Return a row a trained scale, of all variants that are alike: what the fit does to the training images."""
    rows: dict[tuple[str, ...], list[str]] = {}
    for name, summary in summaries.items():
        for cost in summary.get("data_costs", []):
            rows.setdefault(_cost_cells(cost), []).append(name)
    every = len(summaries)
    return [["all" if len(names) == every > 1 else ", ".join(names), *cells] for cells, names in rows.items()]


def _cost_cells(cost: dict[str, Any]) -> tuple[str, ...]:
    return (
        str(cost["scale"]),
        percent(cost["padding"]),
        percent(cost["lost"]),
        f"{cost['distortion']:.2f}",
        percent(cost["upscaled"]),
        f"{cost['megapixels']:,.1f}",
    )


def _curve(by_x: dict[int, Estimate], line: str = "-", kind: int | None = None) -> Curve:
    band = [(e.low, e.high) for e in by_x.values() if e.low is not None and e.high is not None]
    return Curve([(x, one.mean) for x, one in by_x.items()], band, line, kind)


def _scales(found: Study) -> dict[str, Any]:
    scales = sorted({scale for one in found.variants.values() for scale in one.by_scale})
    trained = sorted({scale for one in found.variants.values() for scale in _trained(one)})
    curves = {name: _curve(one.by_scale) for name, one in found.variants.items()}
    rows = [
        [name, ", ".join(map(str, _trained(one))), *(_cell(one.by_scale.get(scale)) for scale in scales)]
        for name, one in found.variants.items()
    ]
    return {"svg": scale_plot(curves, trained), "columns": ["variant", "trained at", *map(str, scales)], "rows": rows}


def _trained(variant: Variant) -> list[int]:
    return sorted(set((variant.runs[0].config.get("schedule") or {}).get("scales") or ()))


def _cell(one: Estimate | None) -> str:
    if one is None:
        return "-"
    between = "" if one.low is None or one.high is None else f" ({one.low * 100:.1f} to {one.high * 100:.1f})"
    return percent(one.mean) + between


def _gaps(found: Study) -> dict[str, Any] | None:
    gaps = {name: gap for name, one in found.variants.items() if (gap := one.estimates.get("generalization_gap"))}
    if not gaps:
        return None
    plot = dot_plot({name: (e.mean, e.low, e.high) for name, e in gaps.items()}, x=f"gap at scale {found.scale}")
    return {"svg": plot, "columns": ["variant", "gap"], "rows": [[name, _cell(one)] for name, one in gaps.items()]}


def _curves(found: Study) -> dict[str, Any] | None:
    """Return training (dashed) and validation accuracy over the epochs, the mean over seeds."""
    curves: dict[str, Curve] = {}
    rows: list[list[str]] = []
    for number, (name, one) in enumerate(found.variants.items()):
        sides = {side: _over_epochs(one, found.scale, f"{side}_acc1") for side in ("train", "val")}
        if not sides["val"]:
            continue
        curves[name] = _curve(sides["val"], "-", number)
        curves[f"{name}, training"] = Curve(_curve(sides["train"]).points, (), "--", number)
        for epoch, val in sides["val"].items():
            train = sides["train"][epoch].mean
            rows.append([name, str(epoch), percent(train), percent(val.mean), f"{(train - val.mean) * 100:+.1f}"])
    if not curves:
        return None
    plot = line_plot(curves, x="epoch", y=f"top-1 at scale {found.scale}")
    return {"svg": plot, "columns": ["variant", "epoch", "training", "validation", "gap"], "rows": rows}


def _over_epochs(variant: Variant, scale: int, column: str) -> dict[int, Estimate]:
    values: dict[int, list[float]] = {}
    for run in variant.runs:
        for row in run.gaps:
            if row["scale"] == str(scale):
                values.setdefault(int(row["epoch"]) + 1, []).append(float(row[column]))
    return {epoch: estimate(seen) for epoch, seen in sorted(values.items())}


def _costs(found: Study) -> dict[str, Any]:
    dots: dict[str, list[tuple[float, float]]] = {}
    for name, one in found.variants.items():
        for summary in (run.summary for run in one.runs):
            at = [row["acc1"] for row in summary["scales"] if row["scale"] == found.scale]
            if at and summary.get("train_megapixels") is not None:
                dots.setdefault(name, []).append((summary["train_megapixels"], at[0]))
    rows = [[name, f"{x:,.1f}", percent(y)] for name, some in dots.items() for x, y in some]
    curves = {name: Curve(some, (), "") for name, some in dots.items()}
    plot = line_plot(curves, x="megapixels seen in training", y=f"top-1 at scale {found.scale}")
    return {"svg": plot, "columns": ["variant", "megapixels", "top-1"], "rows": rows}
