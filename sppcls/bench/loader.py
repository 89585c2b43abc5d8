"""Loading: files to normalised batches in one process, against ImageFolder, transforms.v2 and the default collate."""

from collections.abc import Callable, Iterable, Iterator
from itertools import islice, product
from pathlib import Path
from statistics import geometric_mean
from tempfile import TemporaryDirectory

import torch
from PIL import Image
from torch.utils.data import DataLoader

from sppcls.bench import BenchReport, Row, paired
from sppcls.data.cache import PixelCache
from sppcls.data.cut import own_tensors
from sppcls.data.files import read_groups
from sppcls.data.folders import class_folders
from sppcls.data.images import BatchDataset
from sppcls.data.plan import plan_evaluation
from sppcls.data.shapes import ShapesSource
from sppcls.data.steps import Batch
from sppcls.models.backbones import IMAGENET_MEAN, IMAGENET_STD

SCALES = (96, 160, 224)
BATCH = 32
Batches = Iterator[torch.Tensor]


def loader(data: str | None = None, batches: int = 8, repeats: int = 5) -> BenchReport:
    """Time one worker's work, one thread, at three output sizes; every pair reads the same number of images.

    Without ``data``, generated JPEGs are used. "cold" decodes every image, "cache" is a filled
    ``data.cache=ram``. Ours yields uint8, normalised on the device; torchvision's recipe normalises in the worker.
    "with normalisation" adds it to the worker's time for ours too.
    """
    threads, images = torch.get_num_threads(), batches * BATCH
    torch.set_num_threads(1)
    rows: list[Row] = []
    with TemporaryDirectory() as folder:
        root = Path(data or _photographs(folder, images))
        source, _ = read_groups(class_folders(root), root)  # in ImageFolder's order: by path

        def read(make: Callable[..., Batches], *how: object) -> Callable[[], object]:
            return lambda: sum(batch.shape[0] for batch in islice(make(*how), batches))

        for scale, state in product(SCALES, ("cold", "cache")):
            tensors = own_tensors(source.sizes, SCALES, "warp")
            cache = PixelCache(source, tensors, "warp").open() if state == "cache" else None
            plan = plan_evaluation(source.sizes, scale, batch_size=BATCH, fit="warp")
            ours = (BatchDataset(source, fit="warp", cache=cache), plan)
            naive = read(_images, _torchvision(root, scale))
            a, b, ratio = paired(read(_ours, *ours), naive, repeats)
            normalised = paired(read(_ours, *ours, True), naive, 3)[2]
            rows.append((scale, state, images / a, images / b, ratio, normalised))
    torch.set_num_threads(threads)
    ratios = {state: [float(row[4]) for row in rows if row[1] == state] for state in ("cold", "cache")}
    summary = {f"worst_{state}_ratio": min(found) for state, found in ratios.items()}
    summary |= {f"mean_{state}_ratio": geometric_mean(found) for state, found in ratios.items()}
    columns = ("scale", "state", "ours images/s", "torchvision images/s", "ratio", "with normalisation")
    return BenchReport("loader: one worker, one thread, same output size", columns, rows, summary)


def _ours(dataset: BatchDataset, plan: Iterable[Batch], normalise: bool = False) -> Batches:
    mean, std = (torch.tensor(values).view(3, 1, 1) * 255 for values in (IMAGENET_MEAN, IMAGENET_STD))
    for batch in plan:
        images = dataset[batch]["images"]
        yield images.float().sub_(mean).div_(std) if normalise else images


def _images(loader: Iterable[tuple[torch.Tensor, torch.Tensor]]) -> Batches:
    return (images for images, _ in loader)


def _torchvision(root: Path, scale: int) -> DataLoader[tuple[torch.Tensor, torch.Tensor]]:
    from torchvision.datasets import ImageFolder
    from torchvision.transforms import v2

    to_float = v2.ToDtype(torch.float32, scale=True)
    steps = [v2.Resize((scale, scale)), v2.PILToTensor(), to_float, v2.Normalize(IMAGENET_MEAN, IMAGENET_STD)]
    return DataLoader(ImageFolder(root, v2.Compose(steps)), batch_size=BATCH)


def _photographs(folder: str, count: int) -> str:
    shapes = ShapesSource("train", count)
    for index, target in enumerate(shapes.targets):
        place = Path(folder, shapes.classes[target])
        place.mkdir(exist_ok=True)
        pixels = shapes.read(index).permute(1, 2, 0).numpy()
        Image.fromarray(pixels).resize((300, 240)).save(place / f"{index}.jpg", quality=90)
    return folder
