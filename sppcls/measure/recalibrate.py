"""Batch-norm statistics of a test scale, re-estimated from training images."""

import copy
from contextlib import closing
from typing import Any

import torch
from torch import nn

from sppcls.data.loader import batches_of
from sppcls.data.plan import Batch, plan_epoch
from sppcls.data.schedule import Schedule
from sppcls.data.source import Source
from sppcls.measure.scales import Evaluation
from sppcls.models.classifier import SppClassifier


def recalibrate_bn(
    network: SppClassifier, scale: int, source: Source, *, images: int = 512, **how: Any
) -> SppClassifier:
    """Return a copy whose batch-norm statistics are those of training images at ``scale``, without augmentation.

    The weights stay; a plain average over batches replaces the running one, which training leaves at the last epoch's
    scale. ``how`` is as in `evaluate_scales`.
    """
    evaluation = Evaluation(source, **how)
    renewed = copy.deepcopy(network).to(evaluation.device)
    norms = [module for module in renewed.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a cumulative average
        norm.train()
    options: dict[str, Any] = {"batch_size": evaluation.batch_size, "max_aspect": evaluation.max_aspect}
    plan = plan_epoch(source.sizes, Schedule("single", (scale,)), 0, seed=0, fit=evaluation.fit, **options)
    drawn = [Batch(b.indices, b.size, b.scale) for b in plan.batches[: -(-images // evaluation.batch_size)]]
    batches = batches_of(evaluation.dataset(network), drawn, evaluation.num_workers)
    with closing(batches), torch.inference_mode():
        for batch in batches:
            renewed.features(network.normalize(batch["images"].to(evaluation.device)))
    return renewed.eval()
