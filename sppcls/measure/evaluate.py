"""``sppcls evaluate``: measure a trained network on any labelled images, at training scales and others."""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from sppcls.build import build_splits, pick_device
from sppcls.data.decode import shown
from sppcls.data.files import read_groups
from sppcls.data.folders import class_folders, part_folders, table_parts
from sppcls.data.geometry import PIXELS, Fit
from sppcls.data.source import Source, Subset
from sppcls.deploy.runtime import graph_file
from sppcls.errors import ConfigError, DataError
from sppcls.files import checked_path
from sppcls.measure.answers import Answers, by_class
from sppcls.measure.scales import Evaluation, ScaleResult, evaluate_scales, full_view, gap_subset
from sppcls.measure.views import GraphNetwork, multi_view, opened_graph, recalibrate_bn
from sppcls.model_files import Model, load
from sppcls.models.classifier import SppClassifier
from sppcls.settings import DataSpec, ModelSpec, ScheduleSpec
from sppcls.signature import Signature, far_scales, refuse_small
from sppcls.spec import Spec


@dataclass(frozen=True)
class Options:
    """What to measure, from the command line; None is the run's own value."""

    scales: tuple[int, ...] | None = None
    data: str | None = None
    split: str | None = None
    fit: Fit | None = None
    views: str = "full"
    places: int = 3
    fuse: tuple[int, ...] | None = None
    gap: bool = False
    recalibrate_bn: bool = False
    object_scale: bool = False
    batch_size: int = 32
    num_workers: int = 0
    device: str = "cpu"
    checkpoint: str | None = None
    trust: bool = False


@dataclass(frozen=True)
class Evaluated:
    """The content of evaluation.json, the answers behind it, the names of images and classes, and the weights."""

    found: dict[str, Any]
    answers: Answers
    names: Sequence[str]
    classes: Sequence[str]
    model: str
    warning: str


def evaluate(model: str, options: Options) -> Evaluated:
    """Measure a run, a checkpoint or any export according to ``options``.

    Raises:
        ConfigError: No usable checkpoint, a scale too small, or incompatible options.
        DataError: Images that cannot be read, or of classes that the network does not have.
    """
    opened = _open(model, options)
    network = opened.network
    spec = opened.spec or _spec_of(network.signature)
    graph = isinstance(opened.network, GraphNetwork)
    device = torch.device("cpu") if graph else pick_device(options.device)
    fit, multi = options.fit or spec.data.fit, options.views == "multi"
    scales = _scales(network, spec, options, fit)
    images = _sources(network, spec, options)
    if options.object_scale and not hasattr(images.source, "object_scale"):
        raise ConfigError("--object-scale works with data=shapes only; leave it out for other images")
    if multi and network.pool == "fixed":
        raise ConfigError("--views multi pools regions of a map, but model.pool=fixed takes whole images; use full")
    how = (fit, options.batch_size, options.num_workers, spec.data.max_aspect, device)
    look = Evaluation(images.source, *how, bar=True)
    predict = multi_view(max(network.scales), options.places) if multi else full_view
    prepare = None
    if options.recalibrate_bn:
        prepare = partial(
            recalibrate_bn, look=Evaluation(images.train(), *how), mix=spec.data.mix, batches=spec.data.batches
        )
    measure = partial(evaluate_scales, network, predict=predict, prepare=prepare)
    result = measure(look, scales)
    found: dict[str, Any] = {"model": model, "checkpoint": str(opened.file.resolve()), "epoch": opened.epoch}
    found |= {"split": images.split, "data": images.where, "fit": fit, "views": options.views}
    found |= {"folder": shown(Path(options.data).resolve()) if options.data else None}
    found |= {"recalibrated": options.recalibrate_bn, "own_fit": fit == spec.data.fit, "classes": len(network.classes)}
    found["multiple"] = network.multiple
    found |= {"label_smoothing": opened.spec and opened.spec.optim.label_smoothing} | result.summary()
    for row, speed in zip(found["scales"], result.images_per_s, strict=True):
        row["images_per_s"] = round(speed, 1)
    if options.gap:
        part = gap_subset(images.train(), spec.metrics.gap_images or 600)
        for row, on_train in zip(found["scales"], measure(replace(look, source=part), scales).rows, strict=True):
            row |= {"train_acc1": on_train.acc1, "generalization_gap": on_train.acc1 - row["acc1"]}
    if fused := options.fuse or (scales if multi and len(scales) > 1 else None):
        found["fused"] = asdict(measure(look, fused, fuse=True).rows[0]) | {"scale": list(fused)}
    if options.object_scale:
        found["object_scale"] = _by_object(images.source, result)
    # One figure stands for all: of the largest scale trained, or where that was not measured of the largest.
    headline = max([scale for scale in scales if scale in network.scales] or scales)
    found |= by_class(result.answers, network.classes, headline)
    warning = far_scales(scales, network.scales)
    return Evaluated(found, result.answers, images.source.names, network.classes, str(opened), warning)


def _open(model: str, options: Options) -> Model:
    file = graph_file(checked_path(model, "model"))
    if file is None or options.checkpoint:
        return load(model, options.checkpoint)
    if options.views != "full" or options.recalibrate_bn:
        raise ConfigError(f"{model} is a graph, but --views multi and --recalibrate-bn need layers; use the checkpoint")
    return opened_graph(file, options.device, options.trust)


def _scales(network: SppClassifier, spec: Spec, options: Options, fit: Fit) -> tuple[int, ...]:
    if network.pool == "fixed" and (fit == "keep" or options.fuse):
        raise ConfigError("model.pool=fixed takes one square size; use --fit crop or warp, and no --fuse")
    smallest = network.signature.smallest_scale
    scales = tuple(sorted(set(options.scales or [s for s in spec.test_scales if s >= smallest])))
    if not options.scales and max(scales, default=0) ** 2 > PIXELS:
        raise ConfigError(
            f"the model's own test scales go up to {scales[-1]}: one image there has "
            f"{scales[-1] ** 2 / 1e6:.0f} megapixels, more than {PIXELS / 1e6:.1f}; choose scales with --scales"
        )
    only = network.input_size[0] if network.input_size else None
    every = (*scales, *(options.fuse or ()))
    refuse_small("scale", every, smallest, spec.model.backbone)
    for scale in every:
        if only and scale != only:
            raise ConfigError(f"scale {scale}: model.pool=fixed takes {only} only; use --scales {only}")
    return scales


class _Images(NamedTuple):
    """The images to measure, a function that gives the training images, and the names of both."""

    source: Source
    train: Callable[[], Source]
    split: str | None
    where: str


def _sources(network: SppClassifier, spec: Spec, options: Options) -> _Images:
    classes, given = network.classes, Path(options.data) if options.data else None
    trained = spec.data.model_copy(update={"download": False})  # a checkpoint must not trigger a download
    moved = {"root": options.data} if given else {}
    own = trained.model_copy(update=moved | ({"name": "table"} if given and given.is_file() else {}))
    itself = own.root and spec.data.root and Path(own.root).resolve() == Path(spec.data.root).resolve()
    if given and options.split is None and not itself:  # its own training images would inflate the scores
        source, place = _labelled(given, classes)
        return _Images(source, cache(lambda: build_splits(trained).train), None, shown(place))
    if own.name == "folder" and not own.root and not own.train_dir:
        raise ConfigError("this model does not record its data set; use --data DIR, a folder of class folders")
    splits, split, where = build_splits(own), options.split or "val", own.root or own.name
    source = getattr(splits, split)
    if source is None:
        raise DataError(f"{own.name} has no {options.split} split; use --split val or train, or --data DIR")
    return _Images(mapped(source, classes, where), lambda: mapped(splits.train, classes, where), split, where)


def _spec_of(signature: Signature) -> Spec:
    """Return a spec for a model trained in another way: its usage is known, its data set is not."""
    how: dict[str, Any] = {name: getattr(signature, name) for name in ("fit", "align", "max_aspect")}
    data = DataSpec(name="folder", mix=0, **how)
    scales = signature.scales or (signature.scale,)
    schedule = ScheduleSpec(kind="single" if len(set(scales)) == 1 else "alternate", scales=scales)
    return Spec(data=data, schedule=schedule, model=ModelSpec(pool=signature.pool))  # type: ignore[arg-type]


def _labelled(root: Path, classes: Sequence[str]) -> tuple[Source, Path]:
    """Return the images of class folders or of a table, of the validation part if there are parts, and its path."""
    if root.is_file():
        place, groups = root, dict([*table_parts(root).values()][:2][-1])
    elif root.is_dir():
        place = part_folders(root)[:2][-1]
        groups = {name: files for name, files in class_folders(place).items() if files}
    else:
        raise DataError(f"--data {root}: no such file or folder; name class folders, or a table of path and label")
    if not groups:
        raise DataError(f"{shown(root)}: no images in class folders; at least one folder must have the name of a class")
    _check_classes(tuple(groups), classes, str(root))
    return mapped(read_groups(groups, root, "skip")[0], classes, str(root)), place


def mapped(source: Source, classes: Sequence[str], where: str) -> Source:
    """Return a source whose targets are positions in ``classes``, by name; raises ``DataError`` for unknown classes."""
    if tuple(source.classes) == tuple(classes):
        return source
    _check_classes(source.classes, classes, where)
    return Subset(source, range(len(source.targets)), classes)


def _check_classes(got: Sequence[str], classes: Sequence[str], where: str) -> None:
    strange = [repr(name) for name in got if name not in classes]
    if strange:
        more = f" and {len(strange) - 5} more" if len(strange) > 5 else ""
        known = f"{', '.join(classes[:5])}{', ...' * (len(classes) > 5)}"
        raise DataError(f"{where}: the model has no class {', '.join(strange[:5])}{more}; its {len(classes)}: {known}")


def _by_object(source: Source, result: ScaleResult, parts: int = 5) -> list[dict[str, Any]]:
    """Return accuracy by the object's true size, its diameter over the image's shorter side, in equal parts."""
    sizes = source.object_scale  # type: ignore[attr-defined]
    edges = np.quantile(sizes, np.linspace(0, 1, parts + 1))
    part = np.clip(np.searchsorted(edges, sizes, side="right") - 1, 0, parts - 1)
    rows = []
    for p, (low, high) in enumerate(itertools.pairwise(edges.round(4).tolist())):
        right = result.answers.right[:, part == p]
        acc1 = {str(row.scale): float(mean) for row, mean in zip(result.rows, right.mean(axis=1), strict=True)}
        rows.append({"from": low, "to": high, "images": right.shape[1], "acc1": acc1})
    return rows
