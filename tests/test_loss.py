"""The loss of a step: over an epoch every image has the same weight, and with balanced weights every class."""

import math
import os
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from sppcls import LitSppClassifier
from sppcls.data.batch import IGNORED
from sppcls.data.catalog import load_splits
from sppcls.data.loader import PlannedLoader
from sppcls.data.plan import plan_epoch
from sppcls.data.schedule import Schedule
from sppcls.data.steps import Batch

CALTECH = os.environ.get("SPPCLS_CALTECH101")  # its folder
SCHEDULE = Schedule("alternate", (64, 48))


def like_caltech(images=1500, classes=20):
    """Return sizes and targets: classes of unequal counts, most of them of one aspect, as in Caltech-101."""
    rng = np.random.default_rng(0)
    shares = rng.dirichlet(np.ones(classes))
    targets = np.sort(np.concatenate([np.arange(classes), rng.choice(classes, images - classes, p=shares)]))
    aspects = np.exp(rng.normal(0.2, 0.4, classes)[targets] + rng.normal(0, 0.1, images) * rng.integers(0, 2, images))
    return np.stack([np.full(images, 240), np.rint(240 * aspects)], 1).astype(np.int64), targets


@pytest.fixture(scope="module", params=["synthetic", "headers"])
def images(request):
    """Return sizes and targets of a training set."""
    if request.param == "synthetic":
        return like_caltech()
    if CALTECH is None:
        pytest.skip("SPPCLS_CALTECH101 is not set")
    source = load_splits("caltech101", CALTECH).train
    return source.sizes, source.targets


class Numbered:
    """A data set whose images are their own numbers, one pixel each."""

    def __init__(self, targets, unreadable=()):
        self.targets, self.unreadable = torch.as_tensor(targets), set(unreadable)
        self.source = SimpleNamespace(names=range(len(self.targets)))

    def __getitem__(self, batch):
        indices = torch.tensor(batch.indices)
        broken = [(index, "broken") for index in batch.indices if index in self.unreadable]
        targets = self.targets[indices].clone()
        targets[[index in self.unreadable for index in batch.indices]] = IGNORED
        pixels = torch.stack([indices // 256**place % 256 for place in range(3)], 1)[:, :, None, None]
        found = {"images": pixels, "targets": targets, "indices": indices, "scale": batch.scale, "broken": broken}
        return found | ({"weight": batch.weight} if isinstance(batch, Batch) else {})


class Linear(nn.Module):
    """A classifier with one weight an image and class: the gradient says what each image weighed in the loss."""

    def __init__(self, images, classes):
        super().__init__()
        self.classes = tuple(map(str, range(classes)))
        self.weight = nn.Parameter(torch.zeros(images, classes, dtype=torch.float64))

    def normalize(self, images):
        return (images[:, :, 0, 0] * torch.tensor([1, 256, 65536])).sum(1)

    def forward(self, numbers):
        return self.weight[numbers]


class Constant(Linear):
    """Says the same of every image: the gradient says what each class weighed, also where images are mixed."""

    def normalize(self, images):
        return images.double()

    def forward(self, images):
        return self.weight[:1].expand(len(images), -1)


def plan_of(sizes, world, batch_size=32):
    return partial(plan_epoch, sizes, SCHEDULE, 0, world=world, seed=0, batch_size=batch_size)


def epoch(network, data, plan, **options):
    """Return (gradient, sum of the losses) of one epoch of all ranks, whose gradients DDP would average."""
    module = LitSppClassifier(network, **options)
    module.trainer = SimpleNamespace(is_last_batch=False)
    total, world = 0.0, plan().world
    for rank in range(world):
        loader = PlannedLoader(data, lambda _epoch: plan(), rank=rank, on_error="skip")
        for step, batch in enumerate(loader):
            loss = module.training_step(batch, step) / world
            loss.backward()
            total += loss.item()
    return network.weight.grad.numpy(), total


def weights_of_images(targets, plan, classes, unreadable=(), **options):
    """Return what each image weighed in an epoch: at even odds the gradient of its own class is -(K - 1) / K times."""
    network = Linear(len(targets), classes)
    gradient, _ = epoch(network, Numbered(targets, unreadable), plan, label_smoothing=0.0, **options)
    return -gradient[np.arange(len(targets)), targets] * classes / (classes - 1)


def balanced(targets, classes):
    counts = np.bincount(targets, minlength=classes)
    return torch.from_numpy(len(targets) / (classes * counts))


@pytest.mark.parametrize("world", [1, 2])
def test_every_image_has_the_same_weight_in_an_epochs_gradient(images, world):
    sizes, targets = images
    plan = plan_of(sizes, world)
    assert len({len(batch.indices) for batch in plan()}) > 3
    found = weights_of_images(targets, plan, int(targets.max()) + 1)
    assert np.allclose(found, plan().steps / len(targets), rtol=1e-6, atol=0)


@pytest.mark.parametrize("world", [1, 2])
def test_balanced_classes_have_the_same_weight_in_an_epochs_gradient(images, world):
    sizes, targets = images
    classes, plan = int(targets.max()) + 1, plan_of(sizes, world)
    found = weights_of_images(targets, plan, classes, loss_weights=balanced(targets, classes))
    of_classes = np.bincount(targets, found)
    assert np.allclose(of_classes, plan().steps / classes, rtol=1e-6, atol=0)


@pytest.mark.parametrize("options", [{"mixup": 0.4}, {"cutmix": 1.0}, {"mixup": 0.4, "cutmix": 1.0}], ids="-".join)
def test_balanced_classes_have_the_same_weight_where_images_are_mixed(options):
    sizes, targets = like_caltech()
    classes, plan = int(targets.max()) + 1, plan_of(sizes, 1)
    torch.manual_seed(0)
    options = options | {"loss_weights": balanced(targets, classes), "label_smoothing": 0.0}
    gradient, loss = epoch(Constant(1, classes), Numbered(targets), plan, **options)
    # At even odds each unit of weight costs log K, and its gradient is 1 / K less 1 for its class.
    of_classes = loss / math.log(classes) / classes - gradient[0]
    assert np.allclose(of_classes, plan().steps / classes, rtol=1e-6, atol=0)


def test_images_that_cannot_be_read_leave_the_weight_of_the_others():
    sizes, targets = like_caltech(300)
    plan = plan_of(sizes, 1)
    gone = plan()[0].indices[1:] + plan()[1].indices[:3]
    found = weights_of_images(targets, plan, 20, gone)
    assert np.flatnonzero(found == 0).tolist() == sorted(gone)
    assert np.allclose(np.delete(found, gone), plan().steps / len(targets), rtol=1e-6, atol=0)


@given(st.integers(1, 7), st.integers(2, 9), st.sampled_from([2, 8]))
@settings(max_examples=20, deadline=None)
def test_an_image_that_several_ranks_get_has_its_weight_once(count, world, batch_size):
    sizes, targets = like_caltech(100)
    plan = plan_of(sizes[:count], world, batch_size=batch_size)
    found = weights_of_images(targets[:count], plan, 20)
    assert np.allclose(found, plan().steps / count, rtol=1e-6, atol=0)


def test_batches_of_another_loader_have_the_mean_of_their_losses():
    network = Linear(6, 3)
    module = LitSppClassifier(network, label_smoothing=0.0)
    module.trainer = SimpleNamespace(is_last_batch=False)
    batch = Numbered([0, 1, 2, 0, 1, 2])[SimpleNamespace(indices=(0, 3, 4), scale=8)]
    assert module.training_step(batch, 0).item() == pytest.approx(math.log(3))


def losses(logits, targets, weights, smoothing):
    """Return the loss of each image in words: of each class in its target, weighted, against smoothed truth."""
    said = logits.log_softmax(1)
    found = []
    for row, target in zip(said, targets, strict=True):
        total = 0.0
        for wanted, share in enumerate(target.tolist()):
            truth = torch.full_like(row, smoothing / len(row))
            truth[wanted] += 1 - smoothing
            total += share * float(weights[wanted]) * float(-(truth * row).sum())
        found.append(total)
    return torch.tensor(found, dtype=logits.dtype)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_loss_of_an_image_is_the_mixture_of_its_classes_losses(smoothing):
    from sppcls.training.optim import image_losses

    rng = torch.Generator().manual_seed(0)
    logits = torch.randn(5, 4, generator=rng, dtype=torch.float64)
    classes, weights = torch.tensor([0, 1, 2, 3, 1]), torch.tensor([0.5, 2.0, 1.0, 0.25]).double()
    hard = nn.functional.one_hot(classes, 4).double()
    mixed = 0.7 * hard + 0.3 * hard.roll(1, 0)
    for wanted, target in ((hard, classes), (hard, hard), (mixed, mixed)):
        assert torch.allclose(
            image_losses(logits, target, weights, smoothing), losses(logits, wanted, weights, smoothing)
        )
        even = torch.ones(4).double()
        assert torch.allclose(image_losses(logits, target, None, smoothing), losses(logits, wanted, even, smoothing))


def test_balanced_weights_are_one_in_the_mean_over_images_also_where_a_class_has_none():
    from sppcls.training.optim import balanced_weights

    source = SimpleNamespace(targets=np.array([0, 0, 0, 2]), classes=("a", "b", "c"))
    weights = balanced_weights(source)
    assert torch.isfinite(weights).all()
    of_classes = np.bincount(source.targets, weights[source.targets])
    assert of_classes.tolist() == pytest.approx([2, 0, 2])
