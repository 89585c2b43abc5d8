"""Loading: files to normalised batches in one process, against ImageFolder, transforms.v2 and the default collate."""

from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from statistics import geometric_mean
from tempfile import TemporaryDirectory

import torch
from PIL import Image
from torch.utils.data import DataLoader

from sppcls.bench import BenchReport, paired
from sppcls.data.cache import PixelCache
from sppcls.data.cut import own_tensors
from sppcls.data.files import read_groups
from sppcls.data.folders import class_folders
from sppcls.data.images import BatchDataset
from sppcls.data.plan import plan_evaluation
from sppcls.data.shapes import ShapesSource
from sppcls.data.source import Source

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SCALES = (96, 160, 224)
BATCH = 32
Batches = Callable[[], Iterator[torch.Tensor]]


def run(data: str | None = None, batches: int = 8, repeats: int = 5) -> BenchReport:
    """Time one worker's work, one thread, at three output sizes; every pair reads the same number of images.

    Without ``data`` a folder of generated JPEGs stands in. "cold" decodes every image, "cache" is a filled
    ``data.cache=ram``. Ours hands out uint8, normalised on the device; torchvision's recipe normalises in the worker.
    "with normalisation" counts that as the worker's for ours too.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    rows: list[tuple[str | float, ...]] = []
    with TemporaryDirectory() as folder:
        root, images = Path(data or _photographs(folder, batches * BATCH)), batches * BATCH
        source, _ = read_groups(class_folders(root), root)  # in ImageFolder's order: by path
        for scale in SCALES:
            naive = _take(_naive(root, scale), batches)
            for state, cache in (
                ("cold", None),
                ("cache", PixelCache(source, own_tensors(source.sizes, SCALES, "warp"), "warp").open()),
            ):
                ours, whole = (_take(_ours(source, scale, cache, normalise), batches) for normalise in (False, True))
                a, b, ratio = paired(ours, naive, repeats=repeats)
                rows.append((scale, state, images / a, images / b, ratio, paired(whole, naive, 3)[2]))
    torch.set_num_threads(threads)
    summary = {
        f"{which}_{state}_ratio": pick([float(row[4]) for row in rows if row[1] == state])
        for state in ("cold", "cache")
        for which, pick in (("worst", min), ("mean", geometric_mean))
    }
    columns = ("scale", "state", "ours images/s", "torchvision images/s", "ratio", "with normalisation")
    return BenchReport("loader: one worker, one thread, same output size", columns, rows, summary)


def _take(make: Batches, batches: int) -> Callable[[], object]:
    return lambda: sum(batch.shape[0] for batch in islice(make(), batches))


def _ours(source: Source, scale: int, cache: PixelCache | None, normalise: bool) -> Batches:
    dataset = BatchDataset(source, fit="warp", cache=cache)
    plan = plan_evaluation(source.sizes, scale, batch_size=BATCH, fit="warp")
    mean, std = (torch.tensor(values).view(3, 1, 1) * 255 for values in (MEAN, STD))

    def batches() -> Iterator[torch.Tensor]:
        for batch in plan:
            images = dataset[batch]["images"]
            yield images.float().sub_(mean).div_(std) if normalise else images

    return batches


def _naive(root: Path, scale: int) -> Batches:
    from torchvision.datasets import ImageFolder
    from torchvision.transforms import v2

    to_float = v2.ToDtype(torch.float32, scale=True)
    steps = [v2.Resize((scale, scale)), v2.PILToTensor(), to_float, v2.Normalize(MEAN, STD)]
    loader = DataLoader(ImageFolder(root, v2.Compose(steps)), batch_size=BATCH)
    return lambda: (images for images, _ in loader)


def _photographs(folder: str, count: int) -> str:
    shapes = ShapesSource("train", count)
    for index, target in enumerate(shapes.targets):
        place = Path(folder, shapes.classes[target])
        place.mkdir(exist_ok=True)
        pixels = shapes.read(index).permute(1, 2, 0).numpy()
        Image.fromarray(pixels).resize((300, 240)).save(place / f"{index}.jpg", quality=90)
    return folder
