"""The loader: the plan's batches, in any number of workers, resumable, with and without a cache."""

import gc
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

import sppcls
from sppcls.data import loader as loading
from sppcls.data.batch import IGNORED
from sppcls.data.cache import PixelCache
from sppcls.data.cut import own_tensors
from sppcls.data.images import Augment, BatchDataset
from sppcls.data.loader import PlannedLoader, batches_of
from sppcls.data.plan import plan_epoch, plan_evaluation
from sppcls.data.schedule import Schedule
from sppcls.errors import DataError
from tests.processes import run_to_end


class Noise:
    """Random images of known sizes; those in ``broken`` cannot be read."""

    classes = ("a", "b")

    def __init__(self, count=30, broken=(), wide=False):
        rng = np.random.default_rng(0)
        self.sizes = rng.integers(20, 90, (count, 2))
        if wide:  # so that no batch has wide and tall images, whose tensor is larger than the scale
            self.sizes.sort(1)
        self.targets = np.arange(count) % 2
        self.names = [f"image {i}" for i in range(count)]
        self.broken = broken
        self.reads = 0

    def read(self, index, min_short=None):
        self.reads += 1
        if index in self.broken:
            raise DataError(f"image {index}: truncated")
        height, width = self.sizes[index]
        pixels = np.random.default_rng(index).integers(0, 256, (height, width, 3), np.uint8)
        return torch.from_numpy(pixels).permute(2, 0, 1)


def loader(source=None, *, workers=0, augment=None, cache=None, scales=(24, 32), **options):
    source = source or Noise()
    schedule = Schedule("alternate", scales)

    def plan(epoch):
        return plan_epoch(source.sizes, schedule, epoch, seed=0, batch_size=5)

    return PlannedLoader(BatchDataset(source, augment=augment, cache=cache), plan, num_workers=workers, **options)


def seen(batches):
    return [(tuple(b["images"].shape), b["indices"].tolist(), b["images"].sum().item()) for b in batches]


@pytest.mark.parametrize("workers", [0, 2])
def test_every_epoch_has_the_plans_batches_and_scale(workers):
    multi = loader(workers=workers)
    for epoch in range(3):
        batches = list(multi)
        planned = multi.plan(epoch)
        assert [tuple(b["images"].shape[2:]) for b in batches] == [b.size for b in planned]
        assert [tuple(b["indices"].tolist()) for b in batches] == [b.indices for b in planned]
        assert len(batches) == len(multi)


@pytest.mark.filterwarnings("ignore:This DataLoader will create 4")  # on machines of fewer processors
def test_batches_are_the_same_for_any_number_of_workers():
    augment = Augment(flip=0.5, brightness=0.3, seed=4)
    expected = None
    for count in (0, 1, 2, 4):
        multi = loader(workers=count, augment=augment)
        got = seen(list(multi) + list(multi))
        expected = expected or got
        assert got == expected


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("handed_out", [0, 3, 6])
def test_a_loaded_state_goes_on_with_the_next_batch(workers, handed_out):
    whole = loader(workers=workers)
    epochs = [seen(whole) for _ in range(3)]
    first = loader(workers=workers)
    list(first)
    running = iter(first)
    for _ in range(handed_out):
        next(running)
    state = first.state_dict()
    second = loader(workers=workers)
    second.load_state_dict(state)
    second.set_epoch(1)
    length = len(second)
    rest = seen(second)
    if handed_out == 0:  # nothing of epoch 1 was asked for: the state still is the end of epoch 0
        assert rest == epochs[1]
    else:
        assert rest == epochs[1][handed_out:]
    assert seen(second) == epochs[2]
    assert len(second) == length


def test_an_epoch_that_was_left_is_not_taken_up_again():
    multi = loader()
    next(iter(multi))
    assert seen(multi) == seen_of_epoch(1)
    multi.set_epoch(0)
    assert seen(multi) == seen_of_epoch(0)


def seen_of_epoch(epoch):
    fresh = loader()
    fresh.set_epoch(epoch)
    return seen(fresh)


def test_the_workers_of_a_loader_in_a_cycle_of_garbage_end_at_once():
    multi = loader(workers=2)
    list(multi)
    multi.itself = multi
    kept, start = multiprocessing.active_children(), time.monotonic()
    del multi
    gc.collect()
    assert time.monotonic() - start < 4, "torch waits 5 s for a worker that hears nothing"
    assert len(kept) >= 2
    assert not {*kept} & {*multiprocessing.active_children()}


def test_unreadable_images_fail_by_name_or_are_left_out():
    with pytest.raises(DataError, match=r"image 3: truncated; data\.on_error=skip"):
        list(loader(Noise(broken=(3,))))
    skipping = loader(Noise(broken=(3, 7)), on_error="skip")
    batches = list(skipping)
    left_out = [int(i) for b in batches for i, t in zip(b["indices"], b["targets"], strict=True) if t == IGNORED]
    assert sorted(left_out) == [3, 7]
    assert skipping.skipped == {"image 3": "image 3: truncated", "image 7": "image 7: truncated"}
    assert sum(len(b["targets"]) for b in batches) == 30


@pytest.mark.parametrize("kind", ["ram", "disk"])
def test_a_cache_reads_once_and_changes_nothing(kind, tmp_path):
    source = Noise(wide=True)
    path = tmp_path / "a.pixels" if kind == "disk" else None
    cache = PixelCache(source, own_tensors(source.sizes, (24, 32))).open(path)
    cached = loader(source, cache=cache)
    epochs = [seen(cached) for _ in range(3)]
    assert source.reads == 30
    again = loader(source, cache=PixelCache(source, own_tensors(source.sizes, (24, 32))).open(path) if path else cache)
    assert [seen(again) for _ in range(3)] == epochs
    assert source.reads == 30


def test_workers_fill_one_cache():
    source = Noise(wide=True)
    cached = loader(source, cache=PixelCache(source, own_tensors(source.sizes, (24, 32))).open(), workers=2)
    batches = list(cached)
    source.broken = range(30)
    assert seen(cached.dataset[batch] for batch in cached.plan(0)) == seen(batches)
    assert source.reads == 0  # not in this process


def test_an_image_does_not_depend_on_its_batch_mates():
    source = Noise()
    dataset = BatchDataset(source)
    together = {}
    for batch in plan_evaluation(source.sizes, 32, batch_size=8):
        tensors = dataset[batch]
        together |= dict(zip(batch.indices, tensors["images"], strict=True))
    for batch in plan_evaluation(source.sizes, 32, batch_size=1):
        assert torch.equal(dataset[batch]["images"][0], together[batch.indices[0]])


def test_augmentation_depends_on_seed_epoch_and_index_alone():
    image = torch.arange(3 * 8 * 8, dtype=torch.uint8).view(3, 8, 8)
    augment = Augment(flip=0.5, brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1, erasing=0.5, seed=1)
    torch.manual_seed(0)
    one = augment(image, augment.draw(2, 5))
    after = torch.rand(1)
    torch.manual_seed(0)
    assert torch.equal(after, torch.rand(1))  # the network's random numbers are left alone
    assert torch.equal(one, augment(image, augment.draw(2, 5)))
    different = [augment(image, augment.draw(epoch, index)) for epoch, index in ((3, 5), (2, 6), (4, 7))]
    assert any(not torch.equal(one, other) for other in different)


def test_random_crops_move_and_centre_crops_do_not():
    source = Noise(4)
    source.sizes[:] = (40, 80)
    dataset = BatchDataset(source, fit="crop", augment=Augment(flip=0))
    train = plan_epoch(source.sizes, Schedule("single", (32,)), 0, seed=0, batch_size=4, fit="crop")[0]
    later = plan_epoch(source.sizes, Schedule("single", (32,)), 1, seed=0, batch_size=4, fit="crop")[0]
    by_index = [dict(zip(b.indices, dataset[b]["images"], strict=True)) for b in (train, later)]
    assert not torch.equal(by_index[0][0], by_index[1][0])
    test = plan_evaluation(source.sizes, 32, batch_size=4, fit="crop")[0]
    assert torch.equal(dataset[test]["images"], dataset[test]["images"])


@pytest.mark.skipif(not hasattr(os, "fork"), reason="kills the leader of a worker")
def test_a_worker_whose_leader_was_killed_ends():
    """Also where that happened before torch's own watch began, which takes whoever is there for the leader."""
    reading, writing = os.pipe()
    worker = os.fork()
    if not worker:
        os.close(reading)
        loading._begin(1, False, 0)  # the leader that it was told of is not its parent
        time.sleep(60)
        os._exit(1)
    os.close(writing)
    assert os.read(reading, 1) == b""  # until the worker has ended
    assert os.waitstatus_to_exitcode(os.waitpid(worker, 0)[1]) == 0


def workers_now():
    return {child.pid for child in multiprocessing.active_children()}


@pytest.fixture
def served(monkeypatch):
    """Let workers come from a server without threads, as those of a rank do."""
    if not hasattr(signal, "sigtimedwait"):
        pytest.skip("has no server")
    monkeypatch.setattr(loading, "_served", False)
    loading.serve_workers()


@pytest.fixture(params=["forked", "served"])
def begun(request):
    """Return a loader of two workers that has handed out one batch, and the workers' processes."""
    if request.param == "served":
        request.getfixturevalue("served")
    before, multi = workers_now(), loader(workers=2)
    batches = iter(multi)
    next(batches)
    yield multi, [child for child in multiprocessing.active_children() if child.pid not in before]
    multi.close()


@pytest.mark.skipif(not hasattr(signal, "sigtimedwait"), reason="cannot tell who sent a signal")
def test_a_worker_ends_at_its_leaders_sigterm_and_at_nobody_elses(begun):
    _, (one, two) = begun
    for number in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2"):
        subprocess.run(["kill", f"-{number[3:]}", str(one.pid)], check=True)
    one.join(1.5)
    assert one.is_alive()
    two.terminate()  # as multiprocessing does when the interpreter exits, which then waits for it
    two.join(10)
    assert two.exitcode == 0


def test_a_closed_loader_has_no_workers_and_starts_new_ones(begun):
    multi, workers = begun
    multi.close()
    assert not any(worker.is_alive() for worker in workers)
    assert [b["indices"].tolist() for b in multi] == [list(b.indices) for b in multi.plan(1)]
    multi.close()


@pytest.mark.parametrize("stage", ["teardown", "on_exception"])
def test_a_datamodule_ends_its_workers_with_the_training(stage):
    data = sppcls.MultiScaleDataModule(Noise(), Noise(), schedule=(24, 32), num_workers=1)
    before = workers_now()
    for each in (data.train_dataloader(), data.val_dataloader()):
        next(iter(each))
    assert len(workers_now() - before) == 2
    getattr(data, stage)("fit")
    assert workers_now() == before


def test_batches_that_are_left_early_end_their_workers():
    source, before = Noise(), workers_now()
    batches = batches_of(BatchDataset(source), plan_evaluation(source.sizes, 24, batch_size=4), 2)
    next(batches)
    assert len(workers_now() - before) == 2
    batches.close()
    assert workers_now() == before


@pytest.mark.usefixtures("served")
@pytest.mark.parametrize("room", [None, "memory", "disk"])
def test_workers_of_a_server_read_the_same_and_fill_the_cache_of_their_leader(tmp_path, room):
    source = Noise(wide=True)
    cache = PixelCache(source, own_tensors(source.sizes, (24,))) if room else None
    if cache:
        cache.open(tmp_path / "pixels" if room == "disk" else None)
    batches = plan_evaluation(source.sizes, 24, batch_size=4)
    read = list(batches_of(BatchDataset(source, cache=cache), batches, 2))
    assert seen(read) == seen(batches_of(BatchDataset(source), batches))
    assert source.reads == len(source.sizes)  # by the second of these alone: it has no workers
    if cache:
        assert seen(batches_of(BatchDataset(source, cache=cache), batches)) == seen(read)
        assert source.reads == len(source.sizes)


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="counts threads in /proc")
def test_the_server_of_a_rank_has_one_thread_and_its_workers_end_with_a_leader_that_is_killed(tmp_path):
    program = tmp_path / "killed.py"
    program.write_text(
        "import os, signal\n"
        "from multiprocessing import forkserver\n"
        "from tests.test_loader import loader, loading\n"
        "if __name__ == '__main__':\n"
        "    loading.serve_workers()\n"
        "    kept = iter(loader(workers=2))\n"
        "    next(kept)\n"
        "    print(len(os.listdir(f'/proc/{forkserver._forkserver._forkserver_pid}/task')), flush=True)\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = run_to_end([sys.executable, program], tmp_path, -9, PYTHONPATH=str(Path(__file__).parent.parent))
    assert (done.out, done.err) == ("1\n", "")


def test_a_program_that_forgets_its_loader_ends(tmp_path):
    """The interpreter terminates the workers that are left, and waits for them."""
    program = tmp_path / "forgets.py"
    program.write_text(
        "import numpy as np, torch\n"
        "from tests.test_loader import loader\n"
        "multi = loader(workers=2)\n"
        "kept = iter(multi)\n"
        "next(kept)\n"
        "print('done', flush=True)\n"
    )
    done = run_to_end([sys.executable, program], tmp_path, PYTHONPATH=str(Path(__file__).parent.parent))
    assert (done.out, done.err) == ("done\n", "")
