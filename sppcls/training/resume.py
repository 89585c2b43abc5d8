"""A run that goes on: from which checkpoint, with which values, and what may not be others."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sppcls.checkpoints import LAST, PREVIOUS, has_checkpoint
from sppcls.errors import ConfigError, DataError, SppclsError
from sppcls.model_files import KEY, checkpoint_path, read_checkpoint
from sppcls.run_folder import read_config
from sppcls.spec import Spec, parse
from sppcls.training.world import local_ranks, threads_of_each

# Nothing here changes what a step computes, but for how long, on what and by how many.
_MAY_CHANGE = (
    *(f"trainer.{name}" for name in ("max_epochs", "accelerator", "devices", "num_nodes", "strategy")),
    *("trainer.checkpoint_every_steps", "trainer.checkpoint_every_minutes"),
    *("data.num_workers", "data.cache", "data.root", "data.train_dir", "data.val_dir"),
)
_OF_NO_RUN = ("logger.", "sweep.", "sweep_dir", "run_dir", "resume", "plan_only")


def resumed_spec(run: str, given: Mapping[str, Any]) -> Spec:
    """Return the spec of the run in a folder, with values given for dotted keys or whole groups in place of its own."""
    values: dict[str, Any] = read_config(run).model_dump(mode="json") | {"resume_data": "same"}
    asked = given.get("run_dir")
    if asked and Path(asked).absolute() != Path(run).absolute():
        raise ConfigError(f"run_dir={asked} may not change on resume: the run is in {run}")
    for key, value in given.items():
        *groups, name = key.split(".")
        place = values
        for group in groups:
            place = place[group]
        place[name] = value
    return parse(values | {"resume": run, "run_dir": run})


def going_on(spec: Spec) -> str:
    """Return where a run goes on and what has changed since, having read its checkpoint.

    Raises:
        ConfigError: A value that decides the result is another than the checkpoint was trained by.
        DataError: The images are others, and ``resume_data`` is not ``changed``; or the classes are.
        SppclsError: The checkpoint is damaged or no run's.
    """
    if (Path(spec.run_dir) / "status.json").exists() and not has_checkpoint(Path(spec.run_dir)):
        again = f"repeat the command that began it, with run_dir={spec.run_dir} in place of resume"
        raise ConfigError(f"resume={spec.resume}: the run has saved nothing yet; {again}")
    file = checkpoint_path(str(spec.resume))
    checkpoint = read_checkpoint(file)
    try:
        done = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]["current"]["processed"]
        damaged = f"{LAST} is damaged; " if file.name == PREVIOUS else ""
        where = f"{damaged}goes on from {file}, epoch {checkpoint['epoch'] + 1} after {done} batches"
        before = _flat(parse(checkpoint[KEY]["spec"]).model_dump(mode="json"))
    except (KeyError, TypeError, ConfigError):
        raise SppclsError(f"{file} does not say where its run stood; resume a run folder of train.py") from None
    now = _flat(spec.model_dump(mode="json"))
    changed = [key for key in now if before.get(key) != now[key] and not key.startswith(_OF_NO_RUN)]
    for key in changed:
        if key not in _MAY_CHANGE:
            got = f"it is {before.get(key)} in {file.name}, {now[key]} now"
            raise ConfigError(f"{key} may not change on resume ({got}); allowed: {', '.join(_MAY_CHANGE)}, logger")
    if checkpoint["epoch"] > spec.trainer.max_epochs:
        stands = f"{file} is of epoch {checkpoint['epoch'] + 1}"
        raise ConfigError(f"trainer.max_epochs={spec.trainer.max_epochs}: {stands}; name at least that many")
    images = _changed_images(spec, checkpoint, file)
    listed = [f"{key} {before[key]} -> {now[key]}" for key in changed]
    threads, threads_now = checkpoint.get("threads"), threads_of_each(local_ranks(spec))
    if threads not in (None, threads_now):
        listed.append(f"threads {threads} -> {threads_now} (sums are rounded differently, so the bits will differ)")
    if images:
        listed.append(f"images ({images})")
    return f"{where}; " + (f"changed: {', '.join(listed)}" if listed else "nothing is changed")


def _changed_images(spec: Spec, checkpoint: Mapping[str, Any], file: Path) -> str:
    """Return how the images differ from those that a checkpoint was trained on, or nothing."""
    from sppcls.build import build_splits
    from sppcls.data.source import Identity, class_difference

    splits = build_splits(spec.data)
    if differ := class_difference(splits.train.classes, tuple(checkpoint[KEY]["signature"]["classes"])):
        raise DataError(f"the classes are not those of {file} ({differ}): its outputs would be mislabelled; start anew")
    now, before = Identity.of(splits.train, splits.val), checkpoint.get("data")
    if before is None:
        return "the checkpoint does not say which it was trained on"
    if before == now.digest:
        return ""
    kept = Identity.read(file.parent.parent, now.classes)
    said = now.difference(kept) if kept and kept.digest == before else "it is not known which"
    if spec.resume_data != "changed":
        raise DataError(f"the images are not those of {file}: {said}; resume_data=changed resumes all the same")
    return said


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        inner = isinstance(value, dict) and key != "variants"
        flat |= _flat(value, f"{prefix}{key}.") if inner else {f"{prefix}{key}": value}
    return flat
