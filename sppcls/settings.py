"""The groups of a run's values, each with its range, its default and what it means."""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from sppcls.files import path_fault
from sppcls.plugins import plugin


def _path(text: str) -> str:
    if fault := path_fault(text):
        raise ValueError(f"got {text[:60]!r}: {fault}")
    return text


SCHEDULES = ("single", "alternate", "random", "progressive")  # that need no other package, as
OPTIMIZERS = ("adamw", "sgd")

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


class Values(BaseModel):
    """Values that are checked once and then stay; unknown keys are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True)


class AugmentSpec(Values):
    """Augmentation of training images; nothing here crops or warps but ``randaugment``, which is off."""

    flip: Share = 0.5
    """Chance that an image is mirrored."""
    brightness: AtLeast0 = 0.0
    """Most relative change of brightness; 0 is none."""
    contrast: AtLeast0 = 0.0
    """Most relative change of contrast."""
    saturation: AtLeast0 = 0.0
    """Most relative change of saturation."""
    hue: Annotated[float, Field(ge=0, le=0.5)] = 0.0
    """Most change of hue, as a share of the circle."""
    randaugment: Annotated[int, Field(ge=0, le=14)] = 0
    """Operations of RandAugment an image; the only augmentation that may warp."""
    erasing: Share = 0.0
    """Chance that a rectangle of an image is erased."""
    mixup: AtLeast0 = 0.0
    """Alpha of mixup; 0 is none."""
    cutmix: AtLeast0 = 0.0
    """Alpha of cutmix; 0 is none."""


class DataSpec(Values):
    """Which images, and how they meet a scale."""

    name: str = "shapes"
    """The data set, set by data=name; another package's by data.name=name."""
    root: PathText | None = None
    """The folder of the data set; of data=table, a CSV or Parquet file of path, label and perhaps split."""
    train_dir: PathText | None = None
    """Training folder of data=folder, relative to data.root or absolute; null is train, or the root itself."""
    val_dir: PathText | None = None
    """Validation folder of data=folder; where only train_dir is given, that is split."""
    fit: Literal["keep", "crop", "warp"] = "keep"
    """How an image meets a scale: aspect kept, or crop or warp, which exist to be compared against."""
    batch_size: Annotated[int, Field(ge=2, le=65_536)] = 32
    """Images a step of each process; the plan cuts batches of half to all of it."""
    num_workers: Annotated[int, Field(ge=0, le=128)] = 2
    """Processes that load images."""
    cache: Literal["none", "ram", "disk"] = "none"
    """Keep each image's pixels at each scale: the same batches to the bit."""
    on_error: Literal["fail", "skip"] = "fail"
    """What an unreadable image does."""
    download: bool = False
    """Allow torchvision to download the data set."""
    classes: Annotated[tuple[str, ...], Field(min_length=2)] | None = None
    """Only these classes; null is all."""
    split_seed: Seed = 0
    """Which images go where in a set that has to be split."""
    train_per_class: Count | None = None
    """Training images a class; null is all, or 80 % of a set that has to be split."""
    val_per_class: Count | None = None
    """Validation images a class, at most."""
    val_fraction: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Share of each class for validation in a set that has to be split; null is 0.2."""
    train_size: Drawn = 4000
    """Training images of data=shapes."""
    val_size: Drawn = 600
    """Validation images of data=shapes."""
    test_size: Drawn = 600
    """Test images of data=shapes."""
    max_aspect: Annotated[float, Field(ge=1, le=16)] = 4.0
    """Longer side over shorter side of a batch, at most; beyond it images are padded more."""

    @model_validator(mode="after")
    def _root_is_used(self) -> "DataSpec":
        if self.name == "shapes" and self.root is not None:
            raise ValueError(f"data=shapes is generated and has no root, got {self.root}; add data=folder")
        return self


class ModelSpec(Values):
    """The network: trunk, pooling, head."""

    backbone: str = "tiny"
    """The trunk: one of ours, a convolutional network of torchvision, timm:NAME, or another package's."""
    width: Annotated[float, Field(gt=0, le=8)] = 1.0
    """Channels, as a multiple of the trunk's own."""
    norm: Literal["batch", "lrn", "group"] | None = None
    """Normalisation of the trunks that have a choice."""
    weights: PathText | None = None
    """Weights to start from: null, pretrained, or a .safetensors or .pth file."""
    freeze: Literal["none", "backbone"] = "none"
    """What is not trained; backbone trains the head alone."""
    pool: Literal["spp", "gap", "fixed"] = "spp"
    """Pyramid, global average, or the paper's baseline of one fixed size."""
    levels: Annotated[tuple[Level, ...], Field(min_length=1, max_length=32)] = (4, 2, 1)
    """Grid sizes of the pyramid."""
    mode: Literal["max", "avg"] = "max"
    """What is pooled in a bin."""
    head: Literal["levels", "stack"] = "levels"
    """A classifier a level, or the paper's layers on all bins."""
    hidden: Annotated[tuple[Width, ...], Field(max_length=32)] = ()
    """Hidden layers of head=stack, as [4096, 4096]."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Dropout before the classifier."""


class ScheduleSpec(Values):
    """The scale of every epoch (or step)."""

    kind: str = "alternate"
    """single scale, alternate by epoch, random between smallest and largest, progressive, or another package's."""
    scales: Annotated[tuple[Scale, ...], Field(min_length=1)] = (64, 48)
    """Shorter sides in pixels that are trained."""
    every: Literal["epoch", "batch"] = "epoch"
    """How often schedule=random draws a scale."""
    step: Count = 8
    """Pixels between the scales that schedule=random draws from."""

    @model_validator(mode="before")
    @classmethod
    def _one_scale_is_single(cls, values: Any) -> Any:
        given = values if isinstance(values, dict) and isinstance(values.get("scales"), list | tuple) else {}
        alone = len(given.get("scales", ())) == 1 and given.get("kind", "alternate") == "alternate"
        return given | {"kind": "single"} if alone else values

    @model_validator(mode="after")
    def _enough_scales(self) -> "ScheduleSpec":
        if self.kind not in SCHEDULES:
            plugin("schedules", self.kind, "schedule.kind", SCHEDULES)
        elif self.kind == "single" and len(self.scales) != 1:
            raise ValueError(f"single takes one scale, got {list(self.scales)}; name one, or use schedule=alternate")
        elif self.kind != "single" and len(set(self.scales)) < 2:
            raise ValueError(f"{self.kind} takes two scales or more, got {list(self.scales)}; or use schedule=single")
        if self.every == "batch" and self.kind != "random":
            raise ValueError(f"every: batch goes with schedule=random, got {self.kind}")
        return self


class OptimSpec(Values):
    """The optimiser, its rate over time and the loss."""

    name: str = "adamw"
    """The optimiser: adamw, sgd, or one that another package adds."""
    lr: Annotated[float, Field(gt=0)] | Literal["auto"] = 4e-3
    """Learning rate of the head; auto finds one by a range test before epoch 1, in one process."""
    backbone_lr: AtLeast0 = 1.0
    """Learning rate of the trunk, as a multiple of lr."""
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """Momentum of sgd."""
    weight_decay: AtLeast0 = 0.05
    """Weight decay."""
    decay: Literal["cosine", "step", "none"] = "cosine"
    """How the rate falls."""
    milestones: tuple[Share, ...] = (0.5, 0.75)
    """Shares of the run at which decay=step divides the rate by ten."""
    warmup_epochs: AtLeast0 = 1.0
    """Epochs in which the rate rises to lr."""
    clip_norm: AtLeast0 = 0.0
    """Longest gradient; 0 is no limit."""
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Share of the target that goes to all classes."""
    class_weights: Literal["none", "balanced"] = "none"
    """Weights in the loss; balanced gives every class the same."""
    ema: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Decay of the weights' moving average; 0 is none."""

    @property
    def rate(self) -> float:
        """The learning rate of the head; raises ``ValueError`` where it is still to be found."""
        if self.lr == "auto":
            raise ValueError("lr is 'auto', which a run finds before it trains; expected a number")
        return self.lr


class TrainerSpec(Values):
    """What Lightning's trainer is told."""

    max_epochs: Count = 7
    """Epochs."""
    accelerator: str = "auto"
    """Where it runs: cpu, gpu, or auto, what Lightning finds."""
    devices: int | str = 1
    """Processes of this machine, one a device."""
    num_nodes: Count = 1
    """Machines, whose processes torchrun or srun starts."""
    strategy: str = "auto"
    """Lightning's name, as ddp or fsdp."""
    precision: Literal["32-true", "16-mixed", "bf16-mixed"] = "32-true"
    """Precision of the training's arithmetic."""
    deterministic: bool = False
    """Refuse operations that are not deterministic."""
    compile: bool = False
    """Compile the network for training."""
    channels_last: bool = True
    """Memory format; the faster one on most devices."""
    callbacks: tuple[str, ...] = ()
    """Callbacks of Lightning that other packages add, by name."""
    patience: Count | None = None
    """Validations without a better val_acc1 after which the run stops; null is never."""
    check_val_every: Count = 1
    """Epochs between validations."""
    checkpoint_every_steps: Count | None = None
    """Save inside an epoch every so many steps."""
    checkpoint_every_minutes: Annotated[float, Field(gt=0)] | None = 10.0
    """Save inside an epoch every so many minutes, at most 3 % of the time."""


class MetricsSpec(Values):
    """What is measured at the end of a run, and of the generalization gap on the way there (gap.csv)."""

    val_scale: Scale | None = None
    """Scale of validation, of top-1 and of the gap; null is the largest that is trained."""
    test_scales: Annotated[tuple[Scale, ...], Field(min_length=1)] | None = None
    """Scales measured at the end; null is 0.5 to 2 times the largest trained, and those trained."""
    gap_images: From0 = 600
    """Training images that the gap is measured on; 0 is no gap at all."""
    gap_every: From0 | None = None
    """Epochs between rows of gap.csv; null is what a tenth of the training's pixels pays for, 0 never."""
    gap_scales: Annotated[tuple[Scale, ...], Field(min_length=1)] | None = None
    """Scales of the gap; null is the schedule's."""
