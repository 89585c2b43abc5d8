"""The settings of images, network, scales and measures, each with its range, default and meaning."""

from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from sppcls.files import path_fault
from sppcls.plugins import plugin


def _path(text: str) -> str:
    if fault := path_fault(text):
        raise ValueError(f"got {text[:60]!r}: {fault}")
    return text


SCHEDULES = ("single", "alternate", "random", "progressive", "drawn", "all")  # without other packages

Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=1, lt=2**31)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]
Drawn = Annotated[int, Field(ge=1, le=1_000_000)]  # number of images of the embedded data set
AtLeast0 = Annotated[float, Field(ge=0)]
Scale = Annotated[int, Field(ge=8, le=8192)]
PathText = Annotated[str, AfterValidator(_path)]


class Values(BaseModel):
    """Immutable values, validated once; unknown keys are rejected."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True)


class AugmentSpec(Values):
    """Augmentation of training images; only ``randaugment``, off by default, crops or warps."""

    flip: Share = 0.5
    """Probability of a horizontal flip."""
    brightness: AtLeast0 = 0.0
    """Maximum relative change of brightness; 0 turns it off."""
    contrast: AtLeast0 = 0.0
    """Maximum relative change of contrast."""
    saturation: AtLeast0 = 0.0
    """Maximum relative change of saturation."""
    hue: Annotated[float, Field(ge=0, le=0.5)] = 0.0
    """Maximum change of hue, as a fraction of the colour circle."""
    randaugment: Annotated[int, Field(ge=0, le=14)] = 0
    """RandAugment operations per image; the only augmentation that may warp."""
    erasing: Share = 0.0
    """Probability that a rectangle is erased (random erasing)."""
    mixup: AtLeast0 = 0.0
    """Alpha of mixup; 0 turns it off."""
    cutmix: AtLeast0 = 0.0
    """Alpha of cutmix; 0 turns it off."""


class DataSpec(Values):
    """Which images, and how they are fitted to a scale."""

    name: str = "shapes"
    """The data set, set with data=NAME; or with data.name=NAME one that another package adds."""
    root: PathText | None = None
    """The folder of the data set; for data=table a CSV or Parquet file of path, label and optionally split."""
    train_dir: PathText | None = None
    """Training folder of data=folder, relative to data.root or absolute; null is train, or the root itself."""
    val_dir: PathText | None = None
    """Validation folder of data=folder; if only train_dir is given, it is split."""
    fit: Literal["keep", "crop", "warp"] = "keep"
    """How images are fitted to a scale: keep the aspect; crop and warp are baselines to compare with."""
    align: Literal["stretch", "pad", "none"] = "stretch"
    """How sides become multiples of the stride: stretch the image, pad by repeating its edge, or none: not at all."""
    batch_size: Annotated[int, Field(ge=2, le=65_536)] = 32
    """Images per step and process, at most (schedule=drawn: at its middle scale); some steps have half or a quarter."""
    batch_pixels: Annotated[int, Field(ge=1, lt=2**40)] | Literal["auto"] | None = "auto"
    """Pixels per step and process: the smaller the scale, the more images; null is batch_size images at any scale."""
    mix: Share = 0.45
    """How mixed a step is: 0 is one tensor of one aspect; above, it has batch_size ** mix parts of many aspects."""
    batches: Literal["auto", "aspect", "random"] = "auto"
    """Which images share a step: of similar aspect, or any; auto is aspect for fit=keep, else random."""
    num_workers: Annotated[int, Field(ge=0, le=128)] = 2
    """Worker processes that load images."""
    cache: Literal["none", "ram", "disk"] = "none"
    """Cache each image's pixels at each scale; batches stay bit-identical."""
    on_error: Literal["fail", "skip"] = "fail"
    """What to do at an unreadable image."""
    download: bool = False
    """Allow torchvision to download the data set."""
    classes: Annotated[tuple[str, ...], Field(min_length=2)] | None = None
    """Use only these classes; null uses all."""
    split_seed: Seed = 0
    """Seed of the split, for a data set that has to be split."""
    train_per_class: Count | None = None
    """Training images per class; null uses all, or 80 % of a data set that has to be split."""
    val_per_class: Count | None = None
    """Validation images per class, at most."""
    test_per_class: Count | None = None
    """Test images per class of a data set that has to be split; the same for every data.split_seed."""
    val_fraction: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Fraction of each class used for validation if the data set has to be split; null uses 0.2."""
    train_size: Drawn = 4000
    """Training images of data=shapes."""
    val_size: Drawn = 600
    """Validation images of data=shapes."""
    test_size: Drawn = 600
    """Test images of data=shapes."""
    max_aspect: Annotated[float, Field(ge=1, le=16)] = 4.0
    """Maximum aspect (longer over shorter side) of a batch; longer images get more padding."""

    @model_validator(mode="after")
    def _root_is_used(self) -> "DataSpec":
        if self.name == "shapes" and self.root is not None:
            raise ValueError(f"data=shapes is generated and takes no root, got {self.root}; use data=folder")
        return self


class ModelSpec(Values):
    """The network: trunk, pooling, head."""

    backbone: str = "tiny"
    """The trunk: one of this package, a torchvision CNN, timm:NAME, or one that another package adds."""
    width: Annotated[float, Field(gt=0, le=8)] = 1.0
    """Width multiplier on the trunk's channels."""
    norm: Literal["batch", "lrn", "group"] | None = None
    """Normalisation layers, for trunks that offer a choice."""
    blur_pool: bool = False
    """Anti-aliased striding: blur maps where the trunk strides, so that accuracy depends less on exact sizes."""
    norm_per_scale: bool | Annotated[tuple[Scale, ...], Field(min_length=1)] | Literal["auto"] = "auto"
    """Batch norm of its own for each training scale, or each of a list; auto: with schedule=drawn or all, if it can."""
    norm_affine: Literal["apart", "shared"] = "apart"
    """Of norm_per_scale: weights and biases for each scale too, or statistics only."""
    weights: PathText | None = None
    """Initial weights: null, pretrained, or a .safetensors or .pth file."""
    start: PathText | None = None
    """A run or export of the same settings and classes whose network training starts from, head included."""
    freeze: Literal["none", "backbone", "convolutions"] = "none"
    """What to freeze; backbone trains only the head, convolutions the head and the normalisation layers."""
    pool: Literal["spp", "gap", "fixed"] = "spp"
    """Pooling: pyramid, global average, or the paper's fixed-size baseline."""
    levels: Annotated[tuple[Annotated[int, Field(ge=1, le=64)], ...], Field(min_length=1, max_length=32)] = (4, 2, 1)
    """Grid sizes of the pyramid."""
    mode: Literal["max", "avg"] = "max"
    """Pooling inside each bin."""
    head: Literal["levels", "stack"] = "levels"
    """One classifier per level, or the paper's stack of layers on all bins."""
    hidden: Annotated[tuple[Annotated[int, Field(ge=1, le=65_536)], ...], Field(max_length=32)] = ()
    """Hidden layer widths of head=stack, e.g. [4096, 4096]."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Dropout before the classifier."""

    @model_validator(mode="after")
    def _fixed_has_one_scale(self) -> "ModelSpec":
        if self.pool == "fixed" and self.norm_per_scale not in (False, "auto"):
            raise ValueError("pool=fixed takes images of one size, so norm_per_scale has no use; leave it out")
        return self


class ScheduleSpec(Values):
    """The scale of every epoch (or step)."""

    kind: str = "drawn"
    """drawn (by step), single, alternate (by epoch), random, progressive (in order), all (at once), or a plugin's."""
    scales: Annotated[tuple[Scale, ...], Field(min_length=1)] = (32, 48, 64, 96, 128)
    """Training scales: shorter sides in pixels."""
    every: Literal["epoch", "batch"] = "epoch"
    """How often schedule=random draws a scale."""
    step: Count = 8
    """Step in pixels between the scales that schedule=random draws from."""

    @model_validator(mode="before")
    @classmethod
    def _one_scale_is_single(cls, values: object) -> object:
        given = values if isinstance(values, dict) and isinstance(values.get("scales"), list | tuple) else {}
        alone = len(given.get("scales", ())) == 1 and given.get("kind", "drawn") in ("drawn", "alternate")
        return given | {"kind": "single"} if alone else values

    @model_validator(mode="after")
    def _enough_scales(self) -> "ScheduleSpec":
        if self.kind not in SCHEDULES:
            plugin("schedules", self.kind, "schedule.kind", SCHEDULES)
        elif self.kind == "single" and len(self.scales) != 1:
            raise ValueError(f"single takes one scale, got {list(self.scales)}; give one, or use schedule=alternate")
        elif self.kind != "single" and len(set(self.scales)) < 2:
            raise ValueError(f"{self.kind} takes two scales or more, got {list(self.scales)}; use schedule=single")
        if self.every == "batch" and self.kind != "random":
            raise ValueError(f"every=batch needs schedule=random, got {self.kind}")
        return self


class MetricsSpec(Values):
    """What is measured at the end of a run, and of the generalization gap during training (gap.csv)."""

    val_scale: Scale | None = None
    """Scale of validation, top-1 and gap; null is the largest training scale, of schedule=drawn the middle one."""
    test_scales: Annotated[tuple[Scale, ...], Field(min_length=1)] | None = None
    """Test scales at the end; null is 0.5 to 2 times the scale that val_scale stands for, plus the training scales."""
    part: Literal["val", "test"] = "val"
    """The part of the data that is measured at the end: test only when nothing is chosen any more."""
    recalibrate: Annotated[int, Field(ge=0, lt=2**31)] = 0
    """Training images for batch-norm statistics of each test scale, at the end, into calibrated.ckpt; 0: none."""
    gap_images: Annotated[int, Field(ge=0, lt=2**31)] = 600
    """Training images used to measure the gap; 0 turns it off."""
    gap_every: Annotated[int, Field(ge=0, lt=2**31)] | None = None
    """Epochs between rows of gap.csv; null costs at most a tenth of the training's pixels, 0 is never."""
    gap_scales: Annotated[tuple[Scale, ...], Field(min_length=1)] | None = None
    """Scales of the gap; null is the schedule's."""
