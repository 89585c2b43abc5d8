"""What is settled before anything heavy is imported: processes, extras, files, images, and where a resume starts."""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from sppcls.build import build_splits
from sppcls.checkpoints import LAST, PREVIOUS, Content, has_checkpoint
from sppcls.data.catalog import Splits
from sppcls.data.source import Identity, class_difference
from sppcls.errors import ConfigError, DataError, SppclsError, missing_extra
from sppcls.plugins import plugin
from sppcls.report.runs import flat
from sppcls.run_folder import STATUS, read_config
from sppcls.spec import Spec, parse, parse_stored, set_keys
from sppcls.training_settings import OPTIMIZERS

# None of these changes what a step computes, only for how long, on what and by how many processes.
_MAY_CHANGE = (
    *(f"trainer.{name}" for name in ("max_epochs", "accelerator", "devices", "num_nodes", "strategy")),
    *("trainer.checkpoint_every_steps", "trainer.checkpoint_every_minutes"),
    *("data.num_workers", "data.cache", "data.root", "data.train_dir", "data.val_dir"),
)
_OF_NO_RUN = ("logger.", "sweep.", "sweep_dir", "run_dir", "resume", "plan_only")


def joined_rank() -> int | None:
    """Return this process's rank in a job started by torchrun or srun, or None if it runs alone."""
    if "GROUP_RANK" in os.environ and int(os.environ["WORLD_SIZE"]) > 1:
        return int(os.environ["RANK"])
    if int(os.environ.get("SLURM_STEP_NUM_TASKS", 1)) > 1:  # set by srun, not in a plain batch script
        return int(os.environ["SLURM_PROCID"])
    return None


def threads_of_each(ranks: int) -> int:
    """Return the threads that each of ``ranks`` processes of this machine computes with."""
    import torch

    if ranks == 1 or "OMP_NUM_THREADS" in os.environ:
        return torch.get_num_threads()
    return max((os.cpu_count() or 1) // ranks, 1)


def local_ranks(spec: Spec) -> int:
    """Return how many processes to start here: one per device, or 1 if something else starts them."""
    values = spec.trainer
    if re.search("spawn|fork|notebook", values.strategy):
        raise ConfigError(f"trainer.strategy={values.strategy} starts its own processes; use ddp")
    if joined_rank() is not None:
        return 1
    if values.num_nodes > 1:
        raise ConfigError(f"trainer.num_nodes={values.num_nodes}: start one process per device with torchrun or srun")
    devices = str(values.devices)
    if devices in ("auto", "-1") and values.accelerator != "cpu":
        import torch

        return torch.cuda.device_count() or 1
    if "," in devices:
        return len(list(filter(None, devices.split(","))))
    return int(devices) if devices.isdigit() else 1  # Lightning rejects what is not a number


def precheck(spec: Spec) -> Splits:
    """Return the data of a run; raises at the first fault that can be found without building the network.

    Raises:
        ConfigError: An extra is not installed, or a weights file or device does not exist.
        DataError: The images are missing or cannot be read.
    """
    if (logger := spec.logger.name) != "none" and not find_spec(logger):
        raise missing_extra(f"logger={logger}", logger)
    if spec.model.backbone.startswith("timm:") and not find_spec("timm"):
        raise missing_extra(f"model.backbone={spec.model.backbone}", "timm")
    for name in spec.trainer.callbacks:
        plugin("callbacks", name, "trainer.callbacks")
    if spec.optim.name not in OPTIMIZERS:
        plugin("optimizers", spec.optim.name, "optim.name", OPTIMIZERS)
    if spec.optim.lr == "auto" and (joined_rank() is not None or local_ranks(spec) > 1):
        raise ConfigError("optim.lr=auto needs one process; find the rate with trainer.devices=1, then set optim.lr")
    weights = spec.model.weights
    if weights not in (None, "pretrained") and not Path(weights).is_file() and not spec.resume:
        raise ConfigError(f"model.weights={weights}: no such file; name a .safetensors or .pth file, or pretrained")
    splits = build_splits(spec.data)
    if spec.metrics.part == "test" and splits.test is None:
        add = "add a folder test, or, where the set is split, data.test_per_class=N"
        raise ConfigError(f"metrics.part=test: data={spec.data.name} has no test part; {add}")
    if spec.trainer.accelerator in ("gpu", "cuda"):
        import torch

        if not torch.cuda.is_available():
            raise ConfigError(
                f"trainer.accelerator={spec.trainer.accelerator}: no GPU here; use trainer.accelerator=cpu"
            )
    return splits


def resumed_spec(run: str, given: Mapping[str, object]) -> Spec:
    """Return the spec of the run in a folder, with given values of dotted keys or whole groups replacing its own."""
    values = read_config(run).model_dump(mode="json") | {"resume_data": "same"}
    asked = given.get("run_dir")
    if asked and Path(str(asked)).absolute() != Path(run).absolute():
        raise ConfigError(f"run_dir={asked} cannot change on resume: the run is in {run}")
    set_keys(values, given)
    return parse(values | {"resume": run, "run_dir": run})


@dataclass(frozen=True)
class Resumed:
    """A run's checkpoint, read once: Lightning takes it from ``loaded``; the data of now, and what to say of both."""

    splits: Splits
    file: Path
    loaded: dict[Path, Content]
    line: str


def resume_point(spec: Spec) -> Resumed:
    """Return where a run resumes and what has changed since.

    Raises:
        ConfigError: A setting that affects the result differs from the checkpoint's.
        DataError: The images differ and ``resume_data`` is not ``changed``, or the classes differ.
        SppclsError: The checkpoint is damaged or not from a run.
    """
    from sppcls.model_files import KEY, read_checkpoint, resumable

    if (Path(spec.run_dir) / STATUS).exists() and not has_checkpoint(Path(spec.run_dir)):
        again = f"rerun the command that started it, with run_dir={spec.run_dir} instead of resume"
        raise ConfigError(f"resume={spec.resume}: the run has no checkpoint yet; {again}")
    file = resumable(str(spec.resume))
    checkpoint = read_checkpoint(file)
    try:
        done = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]["current"]["processed"]
        epoch, before = checkpoint["epoch"] + 1, parse_stored(checkpoint[KEY]["spec"])
        classes = tuple(checkpoint[KEY]["signature"]["classes"])
    except (KeyError, TypeError, ConfigError):
        raise SppclsError(f"{file} does not record the training position; resume a run folder of train.py") from None
    changes = _changed_values(spec, before, file.name)
    if epoch > spec.trainer.max_epochs + 1:
        stands = f"{file} is of epoch {epoch}"
        raise ConfigError(f"trainer.max_epochs={spec.trainer.max_epochs}: {stands}; set at least that many")
    splits = precheck(spec)
    if differ := class_difference(splits.train.classes, classes):
        raise DataError(f"the classes differ from those of {file} ({differ}): mislabelled outputs; start a new run")
    threads, threads_now = checkpoint.get("threads"), threads_of_each(local_ranks(spec))
    if threads not in (None, threads_now):
        changes.append(f"threads {threads} -> {threads_now} (rounding differs, so not bit-identical)")
    if images := _changed_images(spec, splits, checkpoint.get("data"), file):
        changes.append(f"images ({images})")
    damaged = f"{LAST} is damaged; " if file.name == PREVIOUS else ""
    changed = f"changed: {', '.join(changes)}" if changes else "settings and images unchanged"
    line = f"{damaged}resumes from {file}, epoch {epoch} after {done} batches; {changed}"
    return Resumed(splits, file, {file: checkpoint}, line)


def _changed_values(spec: Spec, before: Spec, name: str) -> list[str]:
    old, new = (flat(values.model_dump(mode="json")) for values in (before, spec))
    changed = [key for key in new if old.get(key) != new[key] and not key.startswith(_OF_NO_RUN)]
    for key in changed:
        if key not in _MAY_CHANGE:
            got = f"it is {old.get(key)} in {name}, {new[key]} now"
            raise ConfigError(f"{key} cannot change on resume ({got}); allowed: {', '.join(_MAY_CHANGE)}, logger")
    return [f"{key} {old[key]} -> {new[key]}" for key in changed]


def _changed_images(spec: Spec, splits: Splits, before: str | None, file: Path) -> str:
    """Return how the images differ from those that a checkpoint was trained on, or nothing."""
    now = Identity.of(splits.train, splits.val)
    if before is None:
        return "the checkpoint does not record its images"
    if before == now.digest:
        return ""
    kept = Identity.read(file.parent.parent, now.classes)
    difference = now.difference(kept) if kept and kept.digest == before else "it is not known how"
    if spec.resume_data != "changed":
        raise DataError(f"the images are not those of {file}: {difference}; resume_data=changed resumes all the same")
    return difference
