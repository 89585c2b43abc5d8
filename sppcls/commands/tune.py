"""``sppcls tune``: train the head and the normalisation layers of a run further, at a test scale."""

from argparse import ArgumentParser, ArgumentTypeError, Namespace
from typing import Any

from sppcls.commands.arguments import at_least, checkpoint_option, path_text
from sppcls.errors import ConfigError


def run(given: Namespace) -> int:
    """Train a new run, whose settings are those of the first but for the scale, the epochs and the rate."""
    from sppcls.model_files import load
    from sppcls.run_folder import fresh_folder
    from sppcls.spec import parse
    from sppcls.training.run import run as train

    opened = load(given.model, given.checkpoint)
    if opened.spec is None:
        raise ConfigError(f"{given.model} does not record its settings; tune a run of train.py or an export of one")
    if opened.network.pool == "fixed":
        raise ConfigError(f"{given.model} has model.pool=fixed, which takes one size; train it anew at that size")
    values: dict[str, Any] = opened.spec.model_dump(mode="json")
    rate = given.lr or (values["optim"]["lr"] if values["optim"]["lr"] != "auto" else 1e-3) * _SLOWER
    values["schedule"] |= {"kind": "single", "scales": [given.scale], "every": "epoch"}
    values["model"] |= {"start": str(opened.file), "freeze": "convolutions", "weights": None}
    built = opened.network.recipe or {}  # of a calibrated one other than in its settings
    values["model"] |= {"norm_per_scale": False}
    values["model"] |= {name: built[name] for name in ("norm_per_scale", "norm_affine") if name in built}
    values["optim"] |= {"lr": rate, "consistency": 0.0, "warmup_epochs": 0.0}
    values["trainer"] |= {"max_epochs": given.epochs}
    values["metrics"] |= {"val_scale": None, "gap_scales": None, "recalibrate": 0}
    values["metrics"] |= {"test_scales": sorted({given.scale, *opened.spec.test_scales})}
    values["data"] |= {"download": False} | ({"root": given.data} if given.data else {})
    values |= {"resume": None, "sweep": {}, "sweep_dir": None, "plan_only": False, "run_dir": given.out or "runs/tuned"}
    spec = parse(values)
    return train(spec if given.out else spec.model_copy(update={"run_dir": fresh_folder()}))


_SLOWER = 0.1  # the rate, as a share of the run's


def options(verb: ArgumentParser) -> None:
    """Add the options of the verb."""
    add = verb.add_argument
    add("model", type=path_text, metavar="MODEL", help="a run folder or a checkpoint")
    checkpoint_option(verb)
    add("--scale", type=at_least(8, 8192), required=True, help="the scale to tune for, in pixels")
    add("--epochs", type=at_least(1), default=2, help="epochs (2)")
    add("--lr", type=_rate, help="learning rate of the head and the norms (a tenth of the run's)")
    add("--data", type=path_text, metavar="DIR", help="the new place of the run's data set")
    add("--out", type=path_text, metavar="DIR", help="the new run folder (one under runs/, named after the time)")


def _rate(text: str) -> float:
    try:
        rate = float(text)
    except ValueError:
        rate = 0.0
    if not 0 < rate < 1000:
        raise ArgumentTypeError(f"got {text[:40]!r}, allowed: a number above 0, such as 1e-3")
    return rate
