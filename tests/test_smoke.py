"""What README.md says to type, typed: each command and program in a fresh folder, on small data, to its end."""

import doctest
import shutil
import sys

import pytest
import torch

from sppcls.data.shapes import ShapesSource
from sppcls.spec import parse
from sppcls.training.run import run
from tests.ending import photographs
from tests.processes import faults, patience, run_to_end
from tests.readme import ADDED, NOT_RUN, ROOT, RUN, SWEEP, begins, blocks, commands, made_small, other_lines

QUICK = {
    "uv run train.py data=folder data.root=photos 'schedule.scales=[96,128]'",
    "uv run sppcls predict runs/... photos --json",
    "uv run sppcls data photos --scales 96,128,224 --decode --out photos.html",
}
RUNS = [command for command in commands() if begins(command, NOT_RUN) is None]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Return a folder with what the commands name: photographs, boxes, a run."""
    folder = tmp_path_factory.mktemp("place")
    names = ShapesSource.classes[:2]
    photographs(folder / "photos", names)
    photographs(folder / "PATH" / "101_ObjectCategories", names)
    rows = [f"{file.relative_to(folder)},{file.parent.name}" for file in sorted((folder / "photos").rglob("*.jpg"))]
    (folder / "photos.csv").write_text("\n".join(["path,label", *rows]))
    photographs(folder / "single", ["one"], 1, (120, 160))
    shutil.copytree(folder / "single" / "one", folder / "more")
    shutil.copy(folder / "single" / "one" / "0.jpg", folder / "photo.jpg")
    (folder / "boxes.csv").write_text("0,0,60,60\n10,20,150,110\n")
    values = {
        "data": {"train_size": 44, "val_size": 20, "num_workers": 0},
        "model": {"width": 0.125},
        "schedule": {"scales": [32, 48]},
        "trainer": {"max_epochs": 1, "accelerator": "cpu"},
        "metrics": {"gap_images": 12, "test_scales": [48]},
    }
    assert run(parse(values | {"run_dir": str(folder / RUN)})) == 0
    return folder


@pytest.fixture
def fresh(place, tmp_path):
    """Return a copy of the place."""
    return shutil.copytree(place, tmp_path / "fresh")


def assert_clean(ended):
    assert faults(ended) == []
    assert ended.silent < patience()


def test_every_command_of_the_readme_is_run_or_has_a_reason():
    assert other_lines() == []
    assert [command for command in RUNS if begins(command, ADDED) is None] == []
    for beginning in (*NOT_RUN, *ADDED, *QUICK):
        assert any(command.startswith(beginning) for command in commands()), f"{beginning} is no longer in README.md"


@pytest.mark.parametrize(
    "command", [pytest.param(command, marks=() if command in QUICK else pytest.mark.slow) for command in RUNS]
)
def test_a_command_of_the_readme(command, fresh, request):
    if "model/model.onnx" in command:
        shutil.copytree(request.getfixturevalue("exported"), fresh / "model")
    if "quantize" in command:  # of the classes of that model
        for old, new in zip(sorted((fresh / "photos").iterdir()), ("cat", "dog"), strict=True):
            old.rename(old.with_name(new))
    if "sweeps/..." in command:
        sweep = "uv run train.py experiment=ablate_scales"
        more = ["sweep.variant=single-large,alternate", f"sweep_dir={SWEEP}"]
        run_to_end([*made_small(sweep), *more], fresh)
    refused = command.startswith("$")
    ended = run_to_end(made_small(command), fresh, 2 if refused else 0, 900)
    shown = next(block[1:] for block in blocks() if block[0].startswith("$")) if refused else []
    assert [line for line in ended.err.splitlines() if not line.startswith("model: ")] == shown
    assert_clean(ended)


@pytest.mark.slow
def test_the_program_of_the_readme(fresh):
    (lines,) = (block for block in blocks("python") if block[0].startswith("import pytorch_lightning"))
    program = "\n".join(
        ["import torch", "images = torch.zeros(2, 3, 40, 60, dtype=torch.uint8)", *lines, "print(logits)"]
    )
    (fresh / "program.py").write_text(program.replace("max_epochs=10", 'max_epochs=1, accelerator="cpu"'))
    ended = run_to_end([sys.executable, "program.py"], fresh, PYTHONPATH=str(ROOT))
    assert "tensor(" in ended.out
    assert_clean(ended)


def test_the_examples_of_the_readme():
    (lines,) = (block for block in blocks("python") if ">>>" in block[0])
    torch.manual_seed(0)
    example = doctest.DocTestParser().get_doctest("\n".join([*lines, ""]), {}, "README", "README.md", 0)
    assert doctest.DocTestRunner().run(example).failed == 0
