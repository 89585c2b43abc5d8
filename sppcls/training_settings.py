"""The settings of the optimiser and the trainer, each with its range, default and meaning."""

from typing import Annotated, Literal

from pydantic import Field

from sppcls.settings import AtLeast0, Count, Share, Values

OPTIMIZERS = ("adamw", "sgd")  # without other packages


class OptimSpec(Values):
    """The optimiser, the learning-rate schedule and the loss."""

    name: str = "adamw"
    """The optimiser: adamw, sgd, or one that another package adds."""
    lr: Annotated[float, Field(gt=0)] | Literal["auto"] = 4e-3
    """Learning rate of the head; auto runs a range test before epoch 1 (one process only)."""
    backbone_lr: AtLeast0 = 1.0
    """Learning rate of the trunk, as a multiple of lr."""
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """Momentum of sgd."""
    weight_decay: AtLeast0 = 0.05
    """Weight decay."""
    decay: Literal["cosine", "step", "none"] = "cosine"
    """Learning-rate decay."""
    milestones: tuple[Share, ...] = (0.5, 0.75)
    """Fractions of the run at which decay=step divides the learning rate by ten."""
    warmup_epochs: AtLeast0 = 1.0
    """Warm-up: epochs in which the learning rate rises to lr."""
    clip_norm: AtLeast0 = 0.0
    """Maximum gradient norm; 0 turns clipping off."""
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Label smoothing: fraction of the target spread over all classes."""
    consistency: AtLeast0 = 0.0
    """Weight, with schedule=all, of how far the answers at each scale are from those of all scales together."""
    regions: AtLeast0 = 0.0
    """Weight of the loss of images as regions of a canvas, and of how far these answers are from those to images."""
    class_weights: Literal["none", "balanced"] = "none"
    """Class weights in the loss; balanced gives every class the same share."""
    ema: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Decay of the moving average (EMA) of the weights; 0 turns it off."""

    @property
    def passes(self) -> int:
        """How often the pixels of a step go through the network."""
        return 2 if self.regions else 1

    @property
    def rate(self) -> float:
        """The learning rate of the head; raises ``ValueError`` while it is still auto."""
        if self.lr == "auto":
            raise ValueError("lr is 'auto', which a run resolves before training; expected a number")
        return self.lr


class TrainerSpec(Values):
    """Settings of Lightning's trainer."""

    max_epochs: Count = 14
    """Epochs."""
    accelerator: str = "auto"
    """Device type: cpu, gpu, or auto (Lightning's choice)."""
    devices: int | str = 1
    """Processes on this machine, one per device."""
    num_nodes: Count = 1
    """Number of machines; torchrun or srun starts their processes."""
    strategy: str = "auto"
    """Lightning's strategy name, such as ddp or fsdp."""
    precision: Literal["32-true", "16-mixed", "bf16-mixed"] = "32-true"
    """Numeric precision of training."""
    deterministic: bool = False
    """Raise an error at non-deterministic operations."""
    compile: bool = False
    """Compile the network for training."""
    channels_last: bool = True
    """Use channels-last memory, faster on most devices."""
    callbacks: tuple[str, ...] = ()
    """Lightning callbacks of other packages, by name."""
    patience: Count | None = None
    """Stop early after this many validations without a better val_acc1; null never does."""
    check_val_every: Count = 1
    """Epochs between validations."""
    checkpoint_every_steps: Count | None = None
    """Also save within an epoch, every N steps."""
    checkpoint_every_minutes: Annotated[float, Field(gt=0)] | None = 10.0
    """Also save within an epoch, every N minutes; takes at most 3 % of the time."""
