"""What a study found, a plain sentence for each difference."""

from sppcls.measure.statistics import Comparison
from sppcls.report.page import points
from sppcls.report.study import Study


def verdicts(found: Study) -> list[str]:
    """Return a sentence for each variant on top-1, and on the mean over scales where there are several."""
    lines = []
    for name, measures in found.comparisons.items():
        for measure, where in (("acc1", f"at scale {found.scale}"), ("scale_area", "in the mean over scales")):
            if measure in measures:
                lines.append(f"{name} {_compared(measures[measure], found.baseline, where)}")
    return lines


def _compared(one: Comparison, baseline: str, where: str) -> str:
    """Return a difference in words.

    >>> _compared(Comparison(0.012, 6, -0.003, 0.028, 0.09, 0.3), "plain", "at scale 96")
    'is 1.2 points above plain at scale 96 (-0.3 to +2.8, 6 seeds): not shown, it may be chance.'
    """
    size = points(abs(one.difference)).lstrip("+")
    side = "above" if one.difference > 0 else "below"
    is_apart = f"is {size} points {side}" if size != "0.0" else "is level with"
    said = f"{is_apart} {baseline} {where}"
    if one.low is None or one.p_holm is None:
        return f"{said} ({one.n} {'seed' if one.n == 1 else 'seeds'}): no interval, so nothing is shown."
    stands = "this stands." if one.p_holm <= 0.05 else "not shown, it may be chance."
    return f"{said} ({points(one.low)} to {points(one.high)}, {one.n} seeds): {stands}"
