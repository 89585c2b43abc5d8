"""Factors of a study: main effects and interactions of settings whose every combination is a variant."""

from collections.abc import Iterator, Mapping
from itertools import combinations, product

from sppcls.measure.statistics import Comparison
from sppcls.report.runs import flat
from sppcls.report.study import Study, adjusted, contrast

Cell = tuple[str, ...]  # a value of each factor
Weights = dict[Cell, float]


def cells(found: Study) -> tuple[list[str], dict[Cell, str]]:
    """Return the factors that the sweep named, and the variant at each combination of their values; or nothing.

    There is nothing where a combination is missing or two variants share one, since then effects are not separable.
    """
    configs = {name: flat(one.runs[0].config) for name, one in found.variants.items()}
    keys = list(configs[found.baseline].get("sweep.factors") or ())
    at = {tuple(str(config.get(key)) for key in keys): name for name, config in configs.items()}
    values = [dict.fromkeys(of) for of in zip(*at, strict=True)]
    full = len(at) == len(configs) and set(product(*values)) == set(at) and all(len(of) > 1 for of in values)
    return (keys, at) if keys and full else ([], {})


def effects(found: Study) -> dict[str, dict[str, Comparison]]:
    """Return by effect and measure the main effects and interactions of the factors, from the baseline's values."""
    keys, at = cells(found)
    if not keys:
        return {}
    reference = next(cell for cell, name in at.items() if name == found.baseline)
    named = {}
    for changed, weights in contrasts(len(keys), at, reference):
        said = [f"{keys[k]} {reference[k]} to {value}" for k, value in changed.items()]
        parts = {at[cell]: weight for cell, weight in weights.items()}
        named[" and ".join(said)] = contrast(parts, found.variants, found.scale)
    return adjusted(named)


def contrasts(factors: int, every: Mapping[Cell, str], reference: Cell) -> Iterator[tuple[dict[int, str], Weights]]:
    """Yield each effect as the values that are changed, by factor, and the weights of the cells.

    A main effect is the mean, over the other factors' values, of the cell with the value less that with the
    reference's. An interaction of two values is how much more the one changes the result where the other is there.

    >>> every = {(a, b): a + b for a in "xy" for b in "12"}
    >>> list(contrasts(2, every, ("x", "1")))[0]
    ({0: 'y'}, {('y', '1'): 0.5, ('x', '1'): -0.5, ('y', '2'): 0.5, ('x', '2'): -0.5})
    """
    values = [list(dict.fromkeys(cell[k] for cell in every)) for k in range(factors)]
    others = [[value for value in of if value != reference[k]] for k, of in enumerate(values)]
    for size in (1, 2):
        for chosen in combinations(range(factors), size):
            for wanted in product(*(others[k] for k in chosen)):
                changed = dict(zip(chosen, wanted, strict=True))
                yield changed, _weights(changed, values, reference)


def _weights(changed: Mapping[int, str], values: list[list[str]], reference: Cell) -> Weights:
    rest = [of if k not in changed else [reference[k]] for k, of in enumerate(values)]
    share = 1.0
    for of in rest:
        share /= len(of)
    weights: Weights = {}
    for base in product(*rest):
        for there in product((True, False), repeat=len(changed)):
            cell = list(base)
            for k, is_there in zip(changed, there, strict=True):
                cell[k] = changed[k] if is_there else reference[k]
            weights[tuple(cell)] = share * (-1) ** there.count(False)
    return weights
