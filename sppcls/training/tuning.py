"""The recipe of a variant, chosen for each seed from a small grid, on validation images."""

import time
from collections.abc import Callable, Mapping
from itertools import product
from pathlib import Path

from sppcls.errors import SppclsError
from sppcls.report.recipes import TRIALS
from sppcls.run_folder import read_summary, state_of
from sppcls.spec import Spec, parse, set_keys


def grid(spec: Spec) -> list[dict[str, object]]:
    """Return every combination of the values of ``sweep.tune``, by dotted key.

    >>> grid(parse({"sweep": {"tune": {"optim.lr": [0.1, 0.2], "trainer.max_epochs": [3]}}}))
    [{'optim.lr': 0.1, 'trainer.max_epochs': 3}, {'optim.lr': 0.2, 'trainer.max_epochs': 3}]
    """
    return [dict(zip(spec.sweep.tune, values, strict=True)) for values in product(*spec.sweep.tune.values())]


def with_values(spec: Spec, values: Mapping[str, object]) -> Spec:
    """Return a spec with other values by dotted key; raises ``ConfigError`` naming a wrong one."""
    changed = spec.model_dump(mode="json")
    set_keys(changed, values)
    return parse(changed)


def trials(spec: Spec) -> list[tuple[dict[str, object], Spec]]:
    """Return each point of the grid and the run that tries it, on the job's own seed and split.

    So what is chosen varies from seed to seed, and the differences between seeds have the luck of the choice in them:
    one choice for all seeds would make variants differ that do not (docs/results.md).
    """
    folder = str(Path(str(spec.sweep_dir)) / TRIALS)
    own = {"sweep.tune": {}, "sweep_dir": folder, "metrics.part": "val", "metrics.gap_images": 0}
    own |= {"metrics.test_scales": None if spec.model.pool == "fixed" else [spec.val_scale]}
    return [(point, with_values(spec, point | own)) for point in grid(spec)]


def tuned(spec: Spec, run_job: Callable[[Spec], int]) -> Spec:
    """Return the spec with the values of the best trial, running those that have not been run; the first of equals.

    Raises:
        SppclsError: All of them have failed.
    """
    tried = trials(spec)
    folders = [Path(str(trial.sweep_dir)) / trial.digest for _, trial in tried]
    for _, trial in tried:
        run_job(trial)
    while any(state_of(folder) == "running" for folder in folders):  # of another process
        time.sleep(1)
    scores = [_score(folder) for folder in folders]
    if max(scores) < 0:
        which = f"{len(tried)} trials of {spec.sweep.variant}"
        raise SppclsError(f"sweep.tune: none of {which} has finished; see {folders[0]}")
    return with_values(spec, tried[scores.index(max(scores))][0])


def _score(folder: Path) -> float:
    """Return the top-1 of a trial, below 0 if it has none."""
    acc1 = read_summary(folder).get("acc1") if state_of(folder) == "finished" else None
    return -1.0 if acc1 is None else acc1
