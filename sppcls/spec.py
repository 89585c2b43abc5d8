"""The validated settings of a run: only names and numbers, checked once on input."""

import difflib
import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, ValidationError, model_validator

from sppcls.errors import ConfigError, did_you_mean
from sppcls.settings import (
    AugmentSpec,
    DataSpec,
    MetricsSpec,
    ModelSpec,
    PathText,
    ScheduleSpec,
    Seed,
    Values,
)
from sppcls.training_settings import OptimSpec, TrainerSpec
from sppcls.wrong_values import first_line

# Names that other trainers use.
_ELSEWHERE = {
    "epochs": "trainer.max_epochs", "epoch": "trainer.max_epochs", "batch": "data.batch_size", "b": "data.batch_size",
    "workers": "data.num_workers", "j": "data.num_workers", "data": "data.root", "data_dir": "data.root",
    "data_path": "data.root", "arch": "model.backbone", "a": "model.backbone", "model": "model.backbone",
    "backbone": "model.backbone", "pretrained": "model.weights", "wd": "optim.weight_decay", "opt": "optim",
    "optimizer": "optim", "imgsz": "schedule.scales", "img_size": "schedule.scales", "size": "schedule.scales",
    "input_size": "schedule.scales", "device": "trainer.accelerator", "gpus": "trainer.devices", "amp":
    "trainer.precision", "output": "run_dir", "out": "run_dir", "output_dir": "run_dir", "name": "run_dir",
    "learning_rate": "optim.lr", "workers_per_gpu": "data.num_workers", "model_ema_decay": "optim.ema",
}  # fmt: skip


class LoggerSpec(Values):
    """Where to log curves in addition to the run folder's metrics.csv."""

    name: Literal["none", "tensorboard", "wandb", "mlflow"] = "none"
    """Experiment tracker for the curves, in addition to metrics.csv."""
    project: str = "sppcls"
    """Project name in the tracker."""


class SweepSpec(Values):
    """Settings of a whole sweep; ``variants`` are named sets of values, and a job uses the one named ``variant``."""

    variant: str | None = None
    """The named set of values that a job uses."""
    variants: dict[str, dict[str, object]] = {}  # noqa: RUF012 - pydantic copies it
    """Named sets of values."""
    baseline: str | None = None
    """The variant that others are compared with."""
    tune: dict[str, tuple[object, ...]] = {}  # noqa: RUF012 - pydantic copies it
    """Values to try for each variant and seed, by key, such as {optim.lr: [0.002, 0.004]}; validation chooses."""
    redraw: bool = False
    """Draw the training and validation images anew for each seed, as data.split_seed does; the test part stays."""
    factors: tuple[str, ...] = ()
    """Settings whose every combination is a variant, such as [model.mode,model.levels]: their effects, each apart."""
    dry_run: bool = False
    """List the jobs and exit."""


class Spec(Values):
    """All settings of a run."""

    data: DataSpec = DataSpec()
    augment: AugmentSpec = AugmentSpec()
    model: ModelSpec = ModelSpec()
    schedule: ScheduleSpec = ScheduleSpec()
    optim: OptimSpec = OptimSpec()
    trainer: TrainerSpec = TrainerSpec()
    metrics: MetricsSpec = MetricsSpec()
    logger: LoggerSpec = LoggerSpec()
    sweep: SweepSpec = SweepSpec()
    seed: Seed = 0
    """Seed of the weights, the data order and the augmentation."""
    run_dir: Annotated[PathText, Field(min_length=1)] = "runs/run"
    """The run folder; by default a new one under runs/, named after the time."""
    sweep_dir: PathText | None = None
    """The folder of a sweep."""
    resume_data: Literal["same", "changed"] = "same"
    """Whether to resume on images that differ from the checkpoint's."""
    resume: Annotated[PathText, Field(min_length=1)] | None = None
    """The run folder to resume, or auto."""
    plan_only: bool = False
    """Print classes, counts and the plan, then exit."""

    @model_validator(mode="after")
    def _fixed_needs_one_size(self) -> "Spec":
        if self.model.pool == "fixed" and (self.data.fit == "keep" or len(set(self.schedule.scales)) > 1):
            raise ValueError(
                f"model.pool=fixed takes one square size, got data.fit={self.data.fit} and schedule.scales="
                f"{list(self.schedule.scales)}; use data.fit=crop or warp with schedule=single"
            )
        if self.model.pool == "fixed" and self.metrics.recalibrate:
            raise ValueError("model.pool=fixed has one scale, so metrics.recalibrate has no use; leave it out")
        return self

    @model_validator(mode="after")
    def _consistency_needs_scales(self) -> "Spec":
        if self.optim.consistency and self.schedule.kind != "all":
            raise ValueError(
                f"optim.consistency={self.optim.consistency} compares the scales of a step, got schedule.kind="
                f"{self.schedule.kind}; use schedule=all, or leave it out"
            )
        return self

    @model_validator(mode="after")
    def _regions_are_of_any_canvas(self) -> "Spec":
        if self.optim.regions and self.model.pool == "fixed":
            raise ValueError("model.pool=fixed takes whole images only, so optim.regions has no use; leave it out")
        if self.optim.regions and self.model.norm_per_scale not in (False, "auto"):
            raise ValueError(
                "the size of a canvas says nothing of its regions' scale: use optim.regions without "
                "model.norm_per_scale"
            )
        return self

    @model_validator(mode="after")
    def _compiled_takes_one_tensor(self) -> "Spec":
        several = self.data.mix or self.data.batches == "random" or isinstance(self.data.batch_pixels, int)
        if self.trainer.compile and self.data.fit == "keep" and several:
            allowed = "add data.mix=0 and no data.batches=random or data.batch_pixels"
            raise ValueError(f"trainer.compile=true takes one tensor a step; {allowed}")
        return self

    @model_validator(mode="after")
    def _compiled_has_one_norm(self) -> "Spec":
        if self.trainer.compile and self.model.norm_per_scale not in (False, "auto"):
            raise ValueError("trainer.compile=true would compile anew for each scale of model.norm_per_scale; use one")
        return self

    @property
    def digest(self) -> str:
        """The identity of a run: a hash of the values that affect its result, not of its folder or machine."""
        beside = {"run_dir", "sweep_dir", "sweep", "logger", "resume", "resume_data", "plan_only"}
        how = {"data": {"num_workers", "cache"}, "trainer": {"checkpoint_every_steps", "checkpoint_every_minutes"}}
        left_out = dict.fromkeys(beside, True) | how
        values = self.model_dump(mode="json", exclude=left_out)
        values |= {"tune": self.sweep.tune} if self.sweep.tune else {}
        return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:8]

    @property
    def val_scale(self) -> int:
        """The validation scale: the one set, else `middle_scale`."""
        return (self.metrics.val_scale if self.model.pool != "fixed" else None) or self.middle_scale

    @property
    def middle_scale(self) -> int:
        """The training scale that stands for all: the middle one of those drawn, else the largest."""
        scales = sorted(set(self.schedule.scales))
        if self.schedule.kind == "random":
            return scales[-1] - (scales[-1] - scales[0]) % self.schedule.step
        return scales[len(scales) // 2 if self.schedule.kind == "drawn" else -1]

    @property
    def gap_scales(self) -> tuple[int, ...]:
        """The scales of the gap curves: those set, else those of the schedule."""
        wanted = self.metrics.gap_scales if self.model.pool != "fixed" else None
        return tuple(sorted(set(wanted or self.schedule.scales)))

    @property
    def test_scales(self) -> tuple[int, ...]:
        """The test scales: those set, else 0.5 to 2 times `middle_scale`, plus the training scales."""
        trained = set(self.schedule.scales)
        if self.model.pool == "fixed":
            return tuple(trained)
        if self.metrics.test_scales:
            return tuple(sorted(set(self.metrics.test_scales)))
        scale = self.middle_scale if self.schedule.kind == "drawn" else max(trained)
        around = {max(round(scale * factor / 8) * 8, 8) for factor in (0.5, 0.75, 1.5, 2.0)}
        return tuple(sorted(trained | around))


def keys(model: type[BaseModel] = Spec, prefix: str = "") -> Iterator[str]:
    """Yield every dotted key of the spec, such as ``data.batch_size``."""
    for name, field in model.model_fields.items():
        inner = field.annotation
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            yield from keys(inner, f"{prefix}{name}.")
        else:
            yield prefix + name


def meant_by(name: str) -> str | None:
    """Return the key that a bare name stands for, or None.

    >>> meant_by("lr"), meant_by("epochs"), meant_by("batchsize"), meant_by("qqq")
    ('optim.lr', 'trainer.max_epochs', 'data.batch_size', None)
    """
    last = {key.rpartition(".")[2]: key for key in reversed(list(keys()))}
    if found := last.get(name) or _ELSEWHERE.get(name):
        return found
    near = difflib.get_close_matches(name, last, n=1, cutoff=0.8)
    return last[near[0]] if near else None


def unknown_key(key: str) -> str:
    """Return the error message for an unknown key."""
    meant = None if "." in key else meant_by(key)
    return f"unknown key {key}{f'; did you mean {meant!r}?' if meant else did_you_mean(key, keys())}"


def set_keys(values: dict[str, Any], given: Mapping[str, object]) -> None:
    """Set values by dotted key in nested ones; a group that is given as a whole takes the place of the old one.

    Raises:
        ConfigError: A key below a value that is no group.
    """
    for key, value in given.items():
        *groups, name = key.split(".")
        place = values
        for group in groups:
            place = place.setdefault(group, {})
            if not isinstance(place, dict):
                raise ConfigError(unknown_key(key))
        place[name] = value


def parse_model(values: object) -> ModelSpec:
    """Return validated model settings; raises ``ConfigError`` naming the first wrong key."""
    try:
        return ModelSpec.model_validate(values)
    except ValidationError as error:
        raise ConfigError(first_line(error, unknown_key, "model.")) from None


def parse(values: Mapping[str, object]) -> Spec:
    """Return the validated spec; raises ``ConfigError`` naming the first wrong key.

    >>> parse({"schedule": {"kind": "single", "scales": [64]}}).schedule.scales
    (64,)
    >>> parse({"schedule": {"scale": [64]}})
    Traceback (most recent call last):
    sppcls.errors.ConfigError: unknown key schedule.scale; did you mean 'schedule.scales'?
    """
    try:
        return Spec.model_validate(values)
    except ValidationError as error:
        raise ConfigError(first_line(error, unknown_key)) from None


def parse_stored(values: Mapping[str, Any]) -> Spec:
    """Return the spec that a run has stored; those from before ``data.mix`` or ``data.align`` had neither."""
    data, before = values.get("data") if isinstance(values, Mapping) else None, {"mix": 0.0, "align": "none"}
    return parse({**values, "data": {**before, "batch_pixels": None, **data}} if isinstance(data, Mapping) else values)
