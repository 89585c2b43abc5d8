"""Builds objects from the names and numbers of a spec."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from sppcls.data.catalog import DATA_SETS, Splits, load_splits
from sppcls.data.cut import Sizes
from sppcls.data.planner import Planner
from sppcls.data.schedule import Schedule
from sppcls.errors import ConfigError
from sppcls.plugins import plugin
from sppcls.settings import AugmentSpec, DataSpec, ModelSpec
from sppcls.spec import Spec

if TYPE_CHECKING:
    from sppcls.data.images import Augment
    from sppcls.models.classifier import SppClassifier


def build_schedule(spec: Spec) -> Schedule:
    """Return the schedule of a run."""
    values = spec.schedule
    return Schedule(values.kind, values.scales, values.every, values.step, spec.trainer.max_epochs, spec.seed)


def build_planner(spec: Spec, sizes: Sizes) -> Planner:
    """Return the planner of a run's epochs, for images of these sizes."""
    how = spec.data.model_dump(include={"batch_size", "batch_pixels", "fit", "max_aspect", "mix", "batches"})
    return Planner(sizes, build_schedule(spec), seed=spec.seed, multiple=_multiple(spec), **how)


def _multiple(spec: Spec) -> int:
    """Return what the sides of images are multiples of, which is the stride of a network that is built to know it."""
    if spec.data.align != "stretch" or spec.model.pool == "fixed":
        return 1
    from sppcls.models.backbones import build_trunk

    return build_trunk(spec.model.backbone, width=spec.model.width, norm=spec.model.norm).stride


def build_augment(spec: AugmentSpec, seed: int) -> "Augment":
    """Return the per-sample augmentation; mixup and cutmix are applied in the training step."""
    from sppcls.data.images import Augment

    return Augment(**spec.model_dump(exclude={"mixup", "cutmix"}), seed=seed)


def build_splits(spec: DataSpec) -> Splits:
    """Return the training, validation and test sources."""
    if spec.name not in DATA_SETS:
        splits: Splits = plugin("sources", spec.name, "data.name", DATA_SETS)(spec)
        return splits
    loading = {
        *("name", "fit", "align", "batch_size", "batch_pixels", "mix", "batches", "num_workers", "cache"),
        *("split_seed", "max_aspect"),
    }
    return load_splits(spec.name, seed=spec.split_seed, **spec.model_dump(exclude=loading))


def build_network(spec: Spec, classes: Sequence[str], *, pretrained: bool = True) -> "SppClassifier":
    """Return the network of a run, with what its schedule makes of ``norm_per_scale``."""
    from sppcls.models.norm import has_batch_norm

    model, scales = spec.model, build_schedule(spec).choices
    if model.norm_per_scale is True:
        model = model.model_copy(update={"norm_per_scale": scales})
    how = spec.schedule.scales, spec.data.align
    network = build_classifier(model, classes, *how, pretrained=pretrained)
    alone = model.pool == "fixed" or model.freeze == "backbone" or spec.trainer.compile or spec.optim.regions
    draws = spec.schedule.kind in ("drawn", "all") and len(scales) > 1
    if model.norm_per_scale == "auto" and draws and not alone and has_batch_norm(network.trunk.net):
        network.trunk.norm_per_scale(scales, model.norm_affine)
    return network


def build_classifier(
    spec: ModelSpec,
    classes: Sequence[str],
    scales: Sequence[int],
    align: str = "none",
    *,
    pretrained: bool = True,
    input_size: tuple[int, int] | None = None,
) -> "SppClassifier":
    """Return the network; ``pretrained=False`` ignores ``spec.weights``, since a checkpoint has its own.

    ``input_size`` is for ``pool: fixed``; by default a square of the first scale. ``norm_per_scale: true`` stands for
    ``scales``, and auto for none (`build_network` knows the schedule).
    """
    from sppcls.models.backbones import build_trunk
    from sppcls.models.classifier import SppClassifier

    own: dict[str, Any] = spec.model_dump(include={"width", "norm", "blur_pool", "norm_affine"})
    wanted = spec.norm_per_scale
    own["norm_scales"] = scales if wanted is True else wanted if isinstance(wanted, tuple) else ()
    if wanted is True and not scales:
        raise ConfigError("model.norm_per_scale=true has no scales here; name them, such as [48,64]")
    network = SppClassifier(
        build_trunk(spec.backbone, weights=spec.weights if pretrained else None, **own),
        classes,
        pool=spec.pool,
        levels=spec.levels,
        mode=spec.mode,
        head=spec.head,
        hidden=spec.hidden,
        dropout=spec.dropout,
        input_size=(input_size or scales[0]) if spec.pool == "fixed" else None,
        scales=tuple(scales),
        align=align,
    )
    if spec.freeze != "none":
        network.freeze_trunk(norms=spec.freeze == "backbone")
    return network


def pick_device(name: str) -> str:
    """Return a device by name; ``auto`` is CUDA if available. Raises ``ConfigError`` if it does not exist."""
    import torch

    chosen = ("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name
    try:
        torch.empty(0, device=chosen)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(f"--device {name}: {str(error).splitlines()[0]}; use auto or cpu") from None
    return chosen
