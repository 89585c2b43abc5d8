"""The Lightning module: a classifier, its loss, its metrics, its optimiser, and where a checkpoint of it resumes."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities.types import OptimizerLRSchedulerConfig
from torchmetrics import MeanMetric
from torchmetrics.classification import MulticlassAccuracy

from sppcls.checkpoints import Content
from sppcls.data.batch import IGNORED, ImageBatch, MixedBatch, batches_in, readable
from sppcls.data.source import class_difference
from sppcls.errors import ConfigError, DataError, SppclsError, counted
from sppcls.measure.answers import UNREAD, Answers
from sppcls.measure.scales import full_view, rows_of
from sppcls.model_files import KEY, describe
from sppcls.models.classifier import SppClassifier
from sppcls.spec import Spec
from sppcls.terminal import log
from sppcls.training.consistency import disagreement, seen_at
from sppcls.training.datamodule import MultiScaleDataModule, gathered, replan
from sppcls.training.generators import random_state, set_random_state
from sppcls.training.optim import build_optimizer, build_scheduler, image_losses, mixer
from sppcls.training.regions import region_losses
from sppcls.training_settings import OptimSpec

_Tensors = Sequence[torch.Tensor]


class LitSppClassifier(pl.LightningModule):
    """Trains an ``SppClassifier`` on the uint8 batches of ``MultiScaleDataModule``.

    Args:
        network: The classifier; its mean and std normalise the batches, on the device.
        mixup: Alpha of mixup; 0 turns it off. ``cutmix`` likewise.
        loss_weights: [K] weights of the classes in the loss, with mean 1 over the training images.
        compile: Compile the network for training.
        spec: The settings of the run, stored in each checkpoint.
        **optim: Values of ``sppcls.spec.OptimSpec``: ``lr=1e-3, weight_decay=0.05, label_smoothing=0.1`` ...
    """

    loss_weights: torch.Tensor | None

    def __init__(
        self,
        network: SppClassifier,
        *,
        mixup: float = 0.0,
        cutmix: float = 0.0,
        loss_weights: torch.Tensor | None = None,
        compile: bool = False,
        spec: Spec | None = None,
        **optim: object,
    ) -> None:
        super().__init__()
        self.network, self._spec = network, spec
        self.optim = OptimSpec.model_validate(optim)
        self.started = False
        self._mix = mixer(mixup, cutmix, len(network.classes))
        self.register_buffer("loss_weights", loss_weights, persistent=False)
        # Kept out of the module tree: the compiled form shares the network's weights and must not save them twice.
        compiled = torch.compile(network, dynamic=True) if compile else network
        self._forward: list[Callable[[torch.Tensor | _Tensors], torch.Tensor]] = [compiled]
        self.train_loss = MeanMetric(nan_strategy="disable")
        self.train_accuracy = MulticlassAccuracy(len(network.classes), average="micro", validate_args=False)
        self._answers = Answers.empty([], np.zeros(0, np.int64))
        self._gathered = False

    @property
    def _data(self) -> MultiScaleDataModule | None:
        data = getattr(self._trainer, "datamodule", None)
        return data if isinstance(data, MultiScaleDataModule) else None

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return logits [N, K] of uint8 images [N, 3, H, W]."""
        return self._forward[0](self.network.normalize(images))

    def on_train_start(self) -> None:
        """Note that all state is restored, and on the network how its images are fitted."""
        self.started = True
        if data := self._data:
            if data.multiple != (own := self.network.multiple):
                raise ConfigError(f"the datamodule's multiple is {data.multiple}; give it the network's, {own}")
            self.network.fit, self.network.max_aspect = data.fit, data.max_aspect
        self._expect_steps()

    def _expect_steps(self) -> None:
        """Tell Lightning the steps of this epoch, which it takes from the first one: epochs may differ."""
        trainer, loop = self.trainer, self.trainer.fit_loop
        if self._data and trainer.limit_train_batches == trainer.val_check_interval == 1.0:
            steps = loop.max_batches = trainer.val_check_batch = len(trainer.train_dataloader)  # type: ignore[arg-type]
            if loop._combined_loader and loop._data_fetcher:  # after a resume they know the steps of epoch 1
                loop._combined_loader.limits, loop._data_fetcher.length = [steps], steps

    def on_train_epoch_start(self) -> None:
        """Reset the epoch's metrics."""
        self._expect_steps()
        self.train_loss.reset()
        self.train_accuracy.reset()

    def training_step(self, batch: ImageBatch | MixedBatch, batch_idx: int) -> torch.Tensor | None:
        """Return the loss of one batch, or of the batches of a mixed step together; unreadable images are ignored.

        With a ``PlannedLoader`` images have the plan's weights; with other loaders it is the batch's mean.
        """
        batches = batches_in(batch)
        images, of_batch = zip(*map(readable, batches), strict=True)
        targets = torch.cat(of_batch)
        logits, losses = self.loss(images, of_batch) if len(targets) else self._no_part(batches[0]["images"])
        self.train_loss.update(losses.detach())
        if len(targets):
            self.train_accuracy.update(logits.detach(), targets)
        last = self.trainer.is_last_batch
        if last:  # logging at every step takes a tenth of a small network's time
            self._log_epoch()
        if not len(targets) and self.trainer.world_size == 1:
            return None  # skips the step
        weights = [part.get("weight", 1 / max(len(targets), 1)) for part in batches]
        each = torch.split(losses, [len(some) for some in of_batch])
        loss = torch.stack([weight * some.sum() for weight, some in zip(weights, each, strict=True)]).sum()
        if last or batch_idx % 50 == 0:  # to look at a value waits for the device
            self._refuse_divergence(loss)
        return loss

    def _log_epoch(self) -> None:
        loss = self.train_loss.compute()
        if bool(loss.isnan()) and not self.train_loss.weight:
            raise DataError(f"none of the training images of epoch {self.trainer.current_epoch + 1} could be read")
        epoch = {"train_loss": loss, "train_acc1": self.train_accuracy.compute()}
        self.log_dict(epoch, on_step=False, on_epoch=True, batch_size=1)

    def _no_part(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return empty logits and losses with zero gradients, as other ranks wait for them; updates no statistics."""
        self.network.eval()
        try:
            logits = self.forward(images[:1])[:0]
        finally:
            self.network.train()
        return logits, logits.sum(1)

    def loss(self, images: _Tensors, targets: _Tensors) -> tuple[torch.Tensor, torch.Tensor]:
        """Return logits [N, K] and losses [N] of batches of uint8 images and class targets, trained on together.

        With mixup or cutmix the images of a batch are mixed. With ``schedule=all`` the loss is the mean
        over scales, and the logits are those of the largest.
        """
        pairs = [self._mix(self.network.normalize(x), y) for x, y in zip(images, targets, strict=True) if len(y)]
        inputs, wanted = zip(*pairs, strict=True)
        schedule, mixed = self._data.schedule if self._data else None, torch.cat(wanted)
        scales = seen_at(inputs, schedule, self.network.multiple) if schedule else [inputs]
        logits = [self._forward[0](seen[0] if len(seen) == 1 else seen) for seen in scales]
        losses = partial(image_losses, weights=self.loss_weights, smoothing=self.optim.label_smoothing)
        loss = torch.stack([losses(one, mixed) for one in logits]).mean(0)
        if self.optim.consistency:
            loss = loss + self.optim.consistency * disagreement(logits)
        if self.optim.regions:
            loss = loss + self.optim.regions * region_losses(self.network, inputs, mixed, logits[0], losses)
        return logits[0], loss

    def on_validation_epoch_start(self) -> None:
        """Start without answers, and on every rank with rank 0's statistics, which are the ones in a checkpoint."""
        loader: Any = self.trainer.val_dataloaders
        self._answers = Answers.empty([0], loader.dataset.source.targets)
        self._gathered = False
        for buffer in self.network.buffers() if self.trainer.world_size > 1 else ():
            torch.distributed.broadcast(buffer, 0)

    def validation_step(self, batch: ImageBatch, batch_idx: int) -> None:
        """Keep the answers to one batch."""
        images, targets = readable(batch)
        if not len(targets):
            return
        log_probabilities = full_view(self.network, images).cpu()
        self._refuse_divergence(log_probabilities.sum())
        kept = batch["targets"] != IGNORED
        self._answers.scales[0] = batch["scale"]
        self._answers.keep(0, batch["indices"][kept].cpu(), log_probabilities, targets.cpu())

    def validated(self) -> Answers:
        """Return the answers of this validation, gathered from all ranks; every rank has to call it."""
        if not self._gathered:
            self._answers = Answers.joined(gathered(self._answers, self.trainer.world_size))
        self._gathered = True
        return self._answers

    def _refuse_divergence(self, loss: torch.Tensor) -> None:
        """Raise ``SppclsError`` if a loss is not finite: all later results would be meaningless."""
        if not bool(torch.isfinite(loss)):
            epoch = self.trainer.current_epoch + 1
            raise SppclsError(f"training diverged in epoch {epoch}: the loss is not finite; lower optim.lr")

    def on_validation_epoch_end(self) -> None:
        """Log the validation metrics: bit-identical to those of `sppcls evaluate` for the same weights."""
        answers = self.validated()
        if not (answers.predicted != UNREAD).any():
            raise DataError(f"none of {counted(len(answers.targets), 'validation image')} could be read")
        row = rows_of(answers, self.network.scales)[0]
        values = {"loss": row.loss, "acc1": row.acc1, "acc5": row.acc5, "ece": row.ece}
        values["class_acc"] = answers.class_accuracy(0)
        self.log_dict({f"val_{name}": torch.tensor(value, dtype=torch.float64) for name, value in values.items()})

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """Return the optimiser and its per-step rate."""
        epochs, optimizer = self.trainer.max_epochs or 1, build_optimizer(self.network, self.optim)
        # Asking the trainer would set up its loaders before their state is restored, and a resumed run would lose it.
        trainer, planner = self.trainer, self._data.planner if self._data else None
        steps = [planner.steps([epoch], trainer.world_size) for epoch in range(epochs)] if planner else []
        updates = sum(-(-of // trainer.accumulate_grad_batches) for of in steps)
        updates = updates or int(trainer.estimated_stepping_batches)
        scheduler = build_scheduler(optimizer, self.optim, updates, epochs)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def configure_gradient_clipping(self, optimizer: torch.optim.Optimizer, *args: object, **kwargs: object) -> None:
        """Clip the gradient's norm to ``clip_norm``; 0 does nothing."""
        self.clip_gradients(optimizer, gradient_clip_val=self.optim.clip_norm or None, gradient_clip_algorithm="norm")

    def on_save_checkpoint(self, checkpoint: Content) -> None:
        """Add what rebuilds the network, and of each rank the random numbers and the metrics of the epoch so far."""
        data = self._data
        metrics = {name: float(value) for name, value in self.trainer.callback_metrics.items()}
        checkpoint[KEY] = describe(self.network, self._spec, metrics)
        state = {"rng": random_state(), "metrics": [self.train_loss.metric_state, self.train_accuracy.metric_state]}
        state |= {"skipped": dict(data.skipped) if data else {}}
        checkpoint["ranks"] = gathered(state, self.trainer.world_size)
        checkpoint["threads"] = torch.get_num_threads()
        if data:
            checkpoint["data"] = data.identity.digest

    def on_load_checkpoint(self, checkpoint: Content) -> None:
        """Continue with the random numbers and the epoch's metrics of the checkpoint, on the images of now."""
        ranks = checkpoint.get("ranks", [])
        if not ranks:
            return
        if differ := class_difference(self.network.classes, tuple(checkpoint[KEY]["signature"]["classes"])):
            raise DataError(f"the classes differ from the checkpoint's ({differ}); its outputs would be mislabelled")
        if self._data:
            line = replan(checkpoint, self._data)
            for rank in ranks:
                self._data.skipped.update(rank["skipped"])
            if line and self.trainer.is_global_zero:
                log.info(line)
        state = ranks[self.trainer.global_rank % len(ranks)]
        set_random_state(state["rng"])
        for metric, values in zip((self.train_loss, self.train_accuracy), state["metrics"], strict=False):
            for key, value in values.items():
                setattr(metric, key, value.to(metric.device))
