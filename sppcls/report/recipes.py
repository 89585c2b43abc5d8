"""The recipes of a sweep: what was tried for each variant, what was chosen, what it cost."""

from collections import Counter
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from sppcls.errors import counted
from sppcls.report import page
from sppcls.report.runs import NO_VARIANT, Run, flat, is_run, read_run, tuned_keys
from sppcls.report.study import Study

TRIALS = "tune"  # the folder of a sweep's trials


def recipes(found: Study, folder: Path) -> page.Table:
    """Return a row for each variant that was tuned: the values chosen, and the trials that they were chosen from."""
    places = sorted((folder / TRIALS).iterdir()) if (folder / TRIALS).is_dir() else []
    trials = [read_run(place) for place in places if is_run(place)]
    rows = []
    for name, one in found.variants.items():
        config = one.runs[0].config
        if keys := tuned_keys(config):
            own = [trial for trial in trials if _alike(trial.config, config, keys)]
            chosen = Counter(", ".join(f"{key}={flat(run.config).get(key)}" for key in keys) for run in one.runs)
            said = "; ".join(f"{values} ({counted(seeds, 'seed')})" for values, seeds in chosen.most_common())
            rows.append([name, said, *_tried(own)])
    title = "Recipes: chosen for each seed of a variant by a run at each point of a grid, on validation images"
    return page.Table(title, ["variant", "chosen", "trials", "top-1 of the trials", "megapixels of the trials"], rows)


def _tried(trials: list[Run]) -> list[str]:
    scores = [acc1 for trial in trials if trial.finished and (acc1 := trial.summary.get("acc1")) is not None]
    megapixels = sum(trial.summary.get("train_megapixels", 0.0) for trial in trials)
    between = f"{page.percent(min(scores))} to {page.percent(max(scores))}" if scores else "-"
    return [str(len(trials)), between, page.amount(megapixels)]


def _alike(trial: Mapping[str, Any], config: Mapping[str, Any], keys: Collection[str]) -> bool:
    """Return whether two configs differ in the tuned values only, and in what makes a trial."""
    beside = (*NO_VARIANT, "data.split_seed")
    one, other = (
        {key: value for key, value in flat(of).items() if key not in keys and not key.startswith(beside)}
        for of in (trial, config)
    )
    return one == other
