"""The validated values of a run: names and numbers only, checked once, at the edge."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from sppcls.errors import ConfigError, did_you_mean
from sppcls.path_checks import path_fault


def _path(text: str) -> str:
    if fault := path_fault(text):
        raise ValueError(f"got {text[:60]!r}: {fault}")
    return text


Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=1, lt=2**31)]
From0 = Annotated[int, Field(ge=0, lt=2**31)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]
Width = Annotated[int, Field(ge=1, le=65_536)]
Drawn = Annotated[int, Field(ge=1, le=1_000_000)]  # images of the embedded set
AtLeast0 = Annotated[float, Field(ge=0)]
Level = Annotated[int, Field(ge=1, le=64)]
Scale = Annotated[int, Field(ge=8, le=8192)]
PathText = Annotated[str, AfterValidator(_path)]


class _Values(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class AugmentSpec(_Values):
    """Augmentation of training images; nothing here crops or warps but ``randaugment``, which is off."""

    flip: Share = 0.5
    brightness: AtLeast0 = 0.0
    contrast: AtLeast0 = 0.0
    saturation: AtLeast0 = 0.0
    hue: Annotated[float, Field(ge=0, le=0.5)] = 0.0
    randaugment: Annotated[int, Field(ge=0, le=14)] = 0
    erasing: Share = 0.0
    mixup: AtLeast0 = 0.0
    cutmix: AtLeast0 = 0.0


class DataSpec(_Values):
    """Which images, and how they meet a scale."""

    name: Literal[
        "shapes", "folder", "caltech101", "cifar10", "flowers102", "food101", "oxford_iiit_pet", "imagenet"
    ] = "shapes"
    root: PathText | None = None
    fit: Literal["keep", "crop", "warp"] = "keep"
    batch_size: Annotated[int, Field(ge=2, le=65_536)] = 32
    num_workers: Annotated[int, Field(ge=0, le=128)] = 2
    cache: Literal["none", "ram", "disk"] = "none"
    on_error: Literal["fail", "skip"] = "fail"
    download: bool = False
    classes: Annotated[tuple[str, ...], Field(min_length=2)] | None = None
    split_seed: Seed = 0
    train_per_class: Count | None = None
    val_per_class: Count | None = None
    train_size: Drawn = 4000
    val_size: Drawn = 600
    test_size: Drawn = 600
    max_aspect: Annotated[float, Field(ge=1, le=16)] = 4.0

    @model_validator(mode="after")
    def _root_is_used(self) -> "DataSpec":
        if self.name == "shapes" and self.root is not None:
            raise ValueError(f"data=shapes is generated and has no root, got {self.root}; add data=folder")
        return self


class ModelSpec(_Values):
    """The network: trunk, pooling, head."""

    backbone: str = "tiny"
    width: Annotated[float, Field(gt=0, le=8)] = 1.0
    norm: Literal["batch", "lrn", "group"] | None = None
    weights: PathText | None = None
    freeze: Literal["none", "backbone"] = "none"
    pool: Literal["spp", "gap", "fixed"] = "spp"
    levels: Annotated[tuple[Level, ...], Field(min_length=1, max_length=32)] = (4, 2, 1)
    mode: Literal["max", "avg"] = "max"
    head: Literal["levels", "stack"] = "levels"
    hidden: Annotated[tuple[Width, ...], Field(max_length=32)] = ()
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.1


class ScheduleSpec(_Values):
    """The scale of every epoch (or step)."""

    kind: Literal["single", "alternate", "random", "progressive"] = "alternate"
    scales: Annotated[tuple[Scale, ...], Field(min_length=1)] = (64, 48)
    every: Literal["epoch", "batch"] = "epoch"
    step: Count = 8

    @model_validator(mode="after")
    def _enough_scales(self) -> "ScheduleSpec":
        if self.kind == "single" and len(self.scales) != 1:
            raise ValueError(f"single takes one scale, got {list(self.scales)}; name one, or use schedule=alternate")
        if self.kind != "single" and len(set(self.scales)) < 2:
            raise ValueError(f"{self.kind} takes two scales or more, got {list(self.scales)}; or use schedule=single")
        if self.every == "batch" and self.kind != "random":
            raise ValueError(f"every: batch goes with schedule=random, got {self.kind}")
        return self


class OptimSpec(_Values):
    """The optimiser, its rate over time and the loss."""

    name: Literal["sgd", "adamw"] = "adamw"
    lr: Annotated[float, Field(gt=0)] = 4e-3
    backbone_lr: AtLeast0 = 1.0
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    weight_decay: AtLeast0 = 0.05
    decay: Literal["cosine", "step", "none"] = "cosine"
    milestones: tuple[Share, ...] = (0.5, 0.75)
    warmup_epochs: AtLeast0 = 1.0
    clip_norm: AtLeast0 = 0.0
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.1
    class_weights: Literal["none", "balanced"] = "none"
    ema: Annotated[float, Field(ge=0, lt=1)] = 0.0


class TrainerSpec(_Values):
    """What Lightning's trainer is told."""

    max_epochs: Count = 7
    accelerator: str = "auto"
    devices: int | str = 1
    num_nodes: Count = 1
    strategy: str = "auto"
    precision: Literal["32-true", "16-mixed", "bf16-mixed"] = "32-true"
    deterministic: bool = False
    compile: bool = False
    channels_last: bool = True
    check_val_every: Count = 1
    checkpoint_every_steps: Count | None = None
    checkpoint_every_minutes: Annotated[float, Field(gt=0)] | None = 10.0


class MetricsSpec(_Values):
    """What is measured at the end of a run, and of the generalization gap on the way there (gap.csv).

    ``val_scale`` is where each epoch is validated and where top-1 and the gap of a run are read; null is the largest
    scale that is trained.

    At the end the gap is measured on ``gap_images`` training images (0: not at all). ``gap_every`` is for the curves
    alone: on all ``gap_images`` every so many epochs, 0 is never, and null is after as many validations and on as many
    of the images as a tenth of the training's pixels pays for (`training.overfitting.affordable`).
    """

    val_scale: Scale | None = None
    test_scales: Annotated[tuple[Scale, ...], Field(min_length=1)] | None = None
    gap_images: From0 = 600
    gap_every: From0 | None = None
    gap_scales: Annotated[tuple[Scale, ...], Field(min_length=1)] | None = None


class LoggerSpec(_Values):
    """Where curves go besides the run folder's metrics.csv."""

    name: Literal["none", "tensorboard", "wandb", "mlflow"] = "none"
    project: str = "sppcls"


class SweepSpec(_Values):
    """What belongs to a sweep as a whole; ``variants`` names sets of values, and a job takes those of ``variant``."""

    variant: str | None = None
    variants: dict[str, dict[str, Any]] = {}
    baseline: str | None = None
    dry_run: bool = False


class Spec(_Values):
    """Everything that makes a run what it is."""

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
    run_dir: Annotated[PathText, Field(min_length=1)] = "runs/run"
    sweep_dir: PathText | None = None
    resume_data: Literal["same", "changed"] = "same"
    resume: Annotated[PathText, Field(min_length=1)] | None = None
    plan_only: bool = False

    @model_validator(mode="after")
    def _fixed_needs_one_size(self) -> "Spec":
        if self.model.pool == "fixed" and (self.data.fit == "keep" or len(set(self.schedule.scales)) > 1):
            raise ValueError(
                f"model.pool=fixed takes one square size, got data.fit={self.data.fit} and schedule.scales="
                f"{list(self.schedule.scales)}; use data.fit=crop or warp with schedule=single"
            )
        return self

    @property
    def digest(self) -> str:
        """What a run is known by: a hash of the values that decide its result, not of its place or its machine."""
        beside = {"run_dir", "sweep_dir", "sweep", "logger", "resume", "resume_data", "plan_only"}
        how = {"data": {"num_workers", "cache"}, "trainer": {"checkpoint_every_steps", "checkpoint_every_minutes"}}
        left_out = dict.fromkeys(beside, True) | how
        values = self.model_dump(mode="json", exclude=left_out)
        return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:8]

    @property
    def val_scale(self) -> int:
        """The scale to validate at: the one asked for, else the largest that is trained."""
        low, high = min(self.schedule.scales), max(self.schedule.scales)
        largest = high - (high - low) % self.schedule.step if self.schedule.kind == "random" else high
        return (self.metrics.val_scale if self.model.pool != "fixed" else None) or largest

    @property
    def gap_scales(self) -> tuple[int, ...]:
        """The scales of the gap's curves: those asked for, else those of the schedule."""
        wanted = self.metrics.gap_scales if self.model.pool != "fixed" else None
        return tuple(sorted(set(wanted or self.schedule.scales)))

    @property
    def test_scales(self) -> tuple[int, ...]:
        """The scales to measure at: those asked for, else 0.5 to 2 times the largest trained and those trained."""
        trained = set(self.schedule.scales)
        if self.model.pool == "fixed":
            return tuple(trained)
        if self.metrics.test_scales:
            return tuple(sorted(set(self.metrics.test_scales)))
        largest = max(trained)
        around = {max(round(largest * factor / 8) * 8, 8) for factor in (0.5, 0.75, 1.5, 2.0)}
        return tuple(sorted(trained | around))


def keys(model: type[BaseModel] = Spec, prefix: str = "") -> Iterator[str]:
    """Yield every dotted key of the spec, ``data.batch_size`` and the like."""
    for name, field in model.model_fields.items():
        inner = field.annotation
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            yield from keys(inner, f"{prefix}{name}.")
        else:
            yield prefix + name


def parse_model(values: Any) -> ModelSpec:
    """Return a validated network alone; raises ``ConfigError`` naming the first key that is wrong."""
    try:
        return ModelSpec.model_validate(values)
    except ValidationError as error:
        raise ConfigError(_first_line(error, "model.")) from None


def parse(values: Mapping[str, Any]) -> Spec:
    """Return the validated spec; raises ``ConfigError`` naming the first key that is wrong.

    >>> parse({"schedule": {"kind": "single", "scales": [64]}}).schedule.scales
    (64,)
    >>> parse({"schedule": {"scale": [64]}})
    Traceback (most recent call last):
    sppcls.errors.ConfigError: unknown key schedule.scale; did you mean 'schedule.scales'?
    """
    try:
        return Spec.model_validate(values)
    except ValidationError as error:
        raise ConfigError(_first_line(error)) from None


def _first_line(error: ValidationError, prefix: str = "") -> str:
    first = error.errors()[0]
    key = prefix + ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        return f"unknown key {key}{did_you_mean(key, keys())}"
    if first["loc"][-1:] in (("int",), ("str",)):  # of the kinds that a value may be, pydantic names one
        key = key.rpartition(".")[0]
    said = first["msg"].removeprefix("Value error, ")
    if first["type"] == "value_error":
        return f"{key}: {said}" if key else said
    return f"{key}={first['input']!r:.100}: {said[0].lower()}{said[1:]}"
