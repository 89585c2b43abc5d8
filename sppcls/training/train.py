"""Training from Python: settings in, a run folder out."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sppcls.errors import ConfigError, SppclsError
from sppcls.process import Interrupted
from sppcls.report.runs import read_json
from sppcls.run_folder import fresh_folder
from sppcls.spec import parse
from sppcls.training.run import run

_CHOICE = {"data": "name", "model": "backbone", "optim": "name", "schedule": "kind", "logger": "name"}


def train(settings: Mapping[str, Any] | None = None, *, run_dir: str | Path | None = None) -> Path:
    """Train as ``train.py`` does and return the run folder, which `load_model` and ``sppcls evaluate`` take.

    Args:
        settings: Values by key, as ``{"data.root": "photos", "schedule.scales": [96, 128]}``; ``train.py --help`` lists
            the keys. With ``data.root`` and no ``data.name`` it is a folder, or a table (CSV, Parquet).
        run_dir: The run folder; by default a new one under runs/, named after the time.

    Raises:
        ConfigError: A key or a value is wrong.
        SppclsError: The run has failed; it was told on standard error, and train.log in the run folder has the details.
        KeyboardInterrupt: Ctrl-C has ended it, after a save.
    """
    given = dict(settings or {})
    if "data.root" in given:
        table = Path(str(given["data.root"])).suffix.lower() in (".csv", ".parquet", ".pq")
        given = {"data.name": "table" if table else "folder", **given}
    values = _nested(given)
    parse(values)  # before a folder is made
    spec = parse(values | {"run_dir": str(run_dir or fresh_folder())})
    status = run(spec)
    if status > 128:
        raise KeyboardInterrupt from Interrupted(status - 128)
    if status:
        said = read_json(Path(spec.run_dir) / "status.json").get("error", f"exit status {status}")
        raise SppclsError(f"the run in {spec.run_dir} has failed: {said}")
    return Path(spec.run_dir)


def _nested(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return dotted keys as groups.

    >>> _nested({"optim.lr": 0.1, "seed": 1, "model": {"pool": "gap"}})
    {'optim': {'lr': 0.1}, 'seed': 1, 'model': {'pool': 'gap'}}
    """
    values: dict[str, Any] = {}
    for key, value in given.items():
        group, _, name = key.partition(".")
        if name:
            values[group] = {**values.get(group, {}), **_nested({name: value})}
        elif key in _CHOICE and not isinstance(value, Mapping):
            raise ConfigError(f"{key}={value!r}: {key} is a group of values; write {key}.{_CHOICE[key]}={value!r}")
        else:
            values[key] = {**values.get(key, {}), **value} if isinstance(value, Mapping) else value
    return values
