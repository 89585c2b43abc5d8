"""The Hydra application: overrides -> values -> spec -> run. ``train.py`` and ``sppcls-train`` are this."""

import hashlib
import os
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sppcls.errors import ConfigError, SppclsError, did_you_mean
from sppcls.spec import Spec, keys, parse


def conf_folder() -> Path:
    """Return the config folder: beside this file in an installed package, beside the package in a checkout."""
    inside = Path(__file__).parent / "conf"
    return inside if inside.is_dir() else Path(__file__).parent.parent / "conf"


def main() -> None:
    """Run the application; ends the process with the contract's exit status."""
    # Lets Hydra's errors through to us, who say them in one line.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    import hydra
    from hydra.core.config_store import ConfigStore

    ConfigStore.instance().store("spec", Spec().model_dump(mode="json"))
    statuses: list[int] = []
    job = hydra.main(config_path=str(conf_folder()), config_name="config", version_base="1.3")(
        lambda config: statuses.append(_job(config))
    )
    try:
        job()
    except SppclsError as error:
        _end(error)
    except Exception as error:
        # Only Hydra's own work is left here, whose errors have many classes; a job's are told by the run.
        if os.environ.get("SPPCLS_DEBUG") == "1":
            raise
        _end(ConfigError(_one_line(error)))
    sys.exit(max(statuses, default=0))


def _end(error: SppclsError) -> None:
    print(f"error: {error}", file=sys.stderr)
    sys.exit(error.exit_status)


def _one_line(error: Exception) -> str:
    from hydra.errors import OverrideParseException

    text = " ".join(str(error).split()).split(" See http")[0]
    if isinstance(error, OverrideParseException):
        return f"cannot read the override {error.override!r}: {text}"
    unknown = re.match(r"Could not override '([^']+)'", text)
    return f"unknown key {unknown[1]}{did_you_mean(unknown[1], keys())}" if unknown else text


def _job(config: Any) -> int:
    from omegaconf import OmegaConf

    try:
        values: dict[str, Any] = OmegaConf.to_container(config, resolve=True)  # type: ignore[assignment]
        spec = _resumed(values) if values.get("resume") else _placed(parse(values))
    except SppclsError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_status
    from sppcls.training.run import run

    return run(spec)


def _placed(spec: Spec) -> Spec:
    """Return the spec of a sweep's job with a run folder of its own, named by its overrides and its values."""
    from hydra.core.hydra_config import HydraConfig

    hydra = HydraConfig.get()
    if hydra.mode is None or hydra.mode.name != "MULTIRUN":
        return spec
    values = spec.model_dump_json(exclude={"run_dir", "sweep_dir"})
    # No "=" in a folder's name: it could not be named in an override.
    name = re.sub(r"[^\w.-]+", "-", "_".join(hydra.overrides.task))[:80].strip("-")
    digest = hashlib.sha256(values.encode()).hexdigest()[:8]
    return spec.model_copy(update={"run_dir": str(Path(spec.sweep_dir) / f"{name}-{digest}")})


def _resumed(values: Mapping[str, Any]) -> Spec:
    """Return the spec of the run that goes on; only what does not change its result may be overridden."""
    from hydra.core.hydra_config import HydraConfig
    from omegaconf import OmegaConf

    from sppcls.training.folder import read_config

    run = str(values["resume"])
    stored = OmegaConf.create(read_config(run).model_dump(mode="json"))
    given = [override for override in HydraConfig.get().overrides.task if not override.startswith("resume=")]
    allowed = ("trainer.", "logger.", "data.num_workers", "data.root", "data.cache")
    for override in given:
        if not override.startswith(allowed):
            key = override.split("=")[0]
            raise ConfigError(f"{key} may not change on resume; allowed: {', '.join(allowed)}")
    merged: Any = OmegaConf.to_container(OmegaConf.merge(stored, OmegaConf.from_dotlist(given)))
    return parse(merged | {"resume": run, "run_dir": run})
