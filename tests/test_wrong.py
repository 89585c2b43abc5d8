"""Wrong and odd inputs of every command: the exit status and one line that says what to do.

`pytest -m slow -s tests/test_wrong.py` runs each as a command of its own and prints how long it took.
"""

import json
import pickle
import sys

import pytest
from PIL import Image

from sppcls import commands
from tests.processes import faults, run_to_end


@pytest.fixture(scope="module")
def place(tmp_path_factory, save_model):
    """Return a folder with a checkpoint, images in class folders and beside them, and files that are something else."""
    folder = tmp_path_factory.mktemp("place")
    save_model(folder / "a.ckpt")
    for name in ("photos/cat/1.png", "photos/cat/2.png", "photos/dog/1.png", "photos/dog/2.png", "loose/1.png"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (48, 40), "red").save(folder / name)
    for part in ("train", "vall"):
        (folder / "parts" / part / "cat").mkdir(parents=True)
        (folder / "parts" / part / "cat" / "1.png").write_bytes((folder / "loose" / "1.png").read_bytes())
    (folder / "empty").mkdir()
    (folder / "text.jpg").write_text("text")
    (folder / "empty.ckpt").touch()
    (folder / "photos.csv").write_text("path,label\nphotos/cat/1.png,cat\n")
    (folder / "pickle.ckpt").write_bytes(pickle.dumps({"a": 1}))
    (folder / "words.ckpt").write_text("weights\n")
    (folder / "turned.json").write_text(json.dumps([[30, 30, 10, 10]]))
    (folder / "three.json").write_text(json.dumps([[0, 0, 10]]))
    return folder


WRONG = [
    ("", 2, "required: VERB"),
    ("evalaute a.ckpt", 2, "VERB 'evalaute' is unknown; did you mean 'evaluate'? see sppcls --help"),
    ("evaluate", 2, "required: MODEL"),
    ("evaluate nowhere", 2, "no model at nowhere; name a run folder"),
    ("evaluate empty.ckpt", 1, "empty.ckpt is not a checkpoint"),
    ("evaluate text.jpg", 1, "text.jpg is not a checkpoint"),
    ("evaluate empty", 2, "it is not a run or export"),
    ("evaluate a.ckpt", 2, "use --data DIR, a folder of class folders"),
    ("evaluate a.ckpt --scales 64,", 2, "as 64,96,128"),
    ("evaluate a.ckpt --fit corp", 2, "--fit 'corp' is unknown; did you mean 'crop'?"),
    ("evaluate a.ckpt --split tset", 2, "--split 'tset' is unknown; did you mean 'test'?"),
    ("evaluate a.ckpt --device gpu0", 2, "--device gpu0"),
    ("evaluate a.ckpt --data nowhere", 3, "--data nowhere: no such file or folder"),
    ("evaluate a.ckpt --data loose", 3, "loose: no images in class folders"),
    (
        "evaluate a.ckpt --data parts",
        3,
        "vall has images next to train/, but is not a known part; did you mean 'val'?",
    ),
    ("evaluate a.ckpt --data photos --out text.jpg", 2, "--out text.jpg"),
    ("evaluate a.ckpt --data photos --object-scale", 2, "data=shapes only"),
    ("predict a.ckpt", 2, "required: IMAGE"),
    (
        "predict a.ckpt photos.csv",
        2,
        "photos.csv is a list, not an image; use - and pass the paths on stdin",
    ),
    ("predict pickle.ckpt loose", 1, "pickle.ckpt is not a checkpoint"),
    ("predict words.ckpt loose", 1, "words.ckpt is not a checkpoint"),
    ("predict a.ckpt none.jpg", 3, "none.jpg: No such file or directory; check its name"),
    ("predict a.ckpt empty", 3, "no images in empty"),
    ("predict a.ckpt loose --top 0", 2, "--top: got '0'"),
    ("predict a.ckpt loose --json --csv", 2, "not allowed with"),
    ("predict a.ckpt loose --scales 48", 2, "add --boxes FILE or --grid N"),
    ("predict a.ckpt loose/1.png --boxes turned.json", 3, "box 0 is 30 30 10 10"),
    ("predict a.ckpt loose/1.png --boxes three.json", 3, "not four numbers"),
    ("predict a.ckpt loose/1.png --boxes nowhere.json", 3, "nowhere.json: No such file"),
    ("predict a.ckpt loose/1.png --grid 2 --draw a.xyz", 2, "that ends in .png, .jpg or .webp"),
    ("export a.ckpt", 2, "required: --format"),
    ("export a.ckpt --format onxx", 2, "did you mean 'onnx'?"),
    ("export a.ckpt --format onnx --out text.jpg", 2, "--out text.jpg"),
    ("report nowhere", 2, "nowhere does not exist"),
    ("report empty", 2, "empty has no runs"),
    ("data nowhere", 3, "nowhere does not exist"),
    ("data empty", 3, "no images in class folders"),
    ("data parts", 3, "did you mean 'val'?"),
    ("data photos --scales 0", 2, "allowed: 8 to 8192 pixels"),
    ("data photos --out empty", 2, "cannot be written; give FILE.html"),
    ("bench trian", 2, "name 'trian' is unknown; did you mean 'train'?"),
    ("bench loader --data nowhere", 3, "nowhere: No such file or directory; name a folder that exists"),
    ("probe --data nowhere", 3, "--data nowhere: no such folder"),
    ("probe --data photos --train-per-class 9", 3, "needs at least 10"),
    ("probe --data photos --levels 0", 2, "allowed: gap, or grid sizes"),
    ("probe --data photos --backbone resnet81 --train-per-class 1", 2, "did you mean 'resnet18'?"),
    ("train photos", 2, "'photos' is not a setting; write key=value"),
    ("train data.batch_sise=3", 2, "unknown key data.batch_sise; did you mean 'data.batch_size'?"),
    ("train sead=3", 2, "unknown key sead; did you mean 'seed'?"),
    ("train +data.batch_sise=3", 2, "unknown key data.batch_sise; did you mean 'data.batch_size'?"),
    ("train lr=0.1", 2, "unknown key lr; did you mean 'optim.lr'?"),
    ("train epochs=3", 2, "unknown key epochs; did you mean 'trainer.max_epochs'?"),
    ("train scales=[96]", 2, "unknown key scales; did you mean 'schedule.scales'?"),
    ("train --epochs 3", 2, "unknown flag --epochs; settings are written key=value: use trainer.max_epochs=..."),
    ("train --lr=0.1", 2, "use optim.lr=0.1"),
    ("train -b 32", 2, "use data.batch_size=..."),
    ("train --zzz", 2, "unknown flag --zzz; settings are written key=value: --help lists them"),
    ("train model=resnet50", 2, "for other networks use model.backbone=resnet50"),
    ("train model=tinny", 2, "unknown model=tinny"),
    ("train optim=sdg", 2, "unknown optim=sdg; did you mean 'sgd'?"),
    ("train data=foldr", 2, "unknown data=foldr; did you mean 'folder'?"),
    ("train data=null", 2, "Config group override"),
    ("train model.levels=4", 2, "model.levels=4: expected a list; write model.levels=[4]"),
    ("train model.levels=[0]", 2, "model.levels: got 0, input should be greater than or equal to 1"),
    ("train model.levels=[]", 2, "model.levels=[]: expected at least 1 value"),
    ("train model.pool=sppp", 2, "model.pool='sppp'"),
    ("train model.pool=fixed", 2, "model.pool=fixed takes one square size"),
    ("train schedule.scales=[64,-2]", 2, "schedule.scales: got -2, input should be greater"),
    ("train schedule.scales=[]", 2, "schedule.scales=[]: expected at least 1 value"),
    ("train schedule.scales=64", 2, "write schedule.scales=[64]"),
    ("train schedule=random schedule.scales=[64]", 2, "random takes two scales or more, got [64]"),
    ("train data.batch_size=0", 2, "data.batch_size=0: input should be greater"),
    ("train data.batch_size=many", 2, "data.batch_size='many'"),
    ("train data.num_workers=-1", 2, "data.num_workers=-1"),
    ("train data.root=photos", 2, "data=shapes is generated and takes no root, got photos; use data=folder"),
    ("train data=folder", 3, "data=folder needs data.root"),
    ("train data=folder data.root=nowhere", 3, "data.root=nowhere: no such folder"),
    ("train data=folder data.root=empty", 3, "no class folders"),
    ("train data=folder data.root=loose", 3, "no class folders"),
    ("train data=folder data.root=parts", 3, "did you mean 'val'?"),
    ("train data=folder data.root=photos data.train_per_class=9", 3, "allowed: at most 1"),
    ("train data=folder data.root=photos data.classes=[cat,dogg]", 2, "no class 'dogg'; did you mean 'dog'?"),
    ("train optim.lr=inf", 2, "optim.lr=inf"),
    ("train optim.lr=-1", 2, "optim.lr=-1"),
    ("train run_dir=", 2, "run_dir=''"),
    ("train seed=[1", 2, "seed"),
    ("train seed=1.5", 2, "seed=1.5"),
    ("train resume=nowhere", 2, "nowhere is not a run folder"),
    ("train resume=auto", 2, "add run_dir=DIR"),
    ("train trainer.accelerator=gpu", 2, "no GPU here; use trainer.accelerator=cpu"),
    ("train trainer.num_nodes=2", 2, "with torchrun or srun"),
    ("train trainer.strategy=ddp_spawn trainer.devices=2", 2, "starts its own processes; use ddp"),
    ("train model.weights=nowhere.pth", 2, "model.weights=nowhere.pth: no such file"),
    ("train sweep.dry_run=true", 2, "add -m or use an experiment"),
    ("train -m seed=", 2, "seed"),
    ("train -m seed=0,1 run_dir=r", 2, "run_dir= is for a single run"),
    ("train -m seed=0,1 sweep.baseline=zzz", 2, "zzz"),
    ("train metrics.test_scales=[2]", 2, "metrics.test_scales: got 2"),
    ("train trainer.max_epochs=0", 2, "trainer.max_epochs=0"),
    ("train trainer.patience=0", 2, "trainer.patience=0"),
    ("train optim.name=adamm", 2, "optim.name=adamm is unknown; did you mean 'adamw'?"),
    ("train trainer.callbacks=[mine]", 2, "trainer.callbacks=mine is unknown; allowed: none is installed"),
]


@pytest.mark.parametrize(("arguments", "status", "said"), WRONG)
def test_wrong_input_is_one_line(place, monkeypatch, capsys, arguments, status, said):
    monkeypatch.chdir(place)
    monkeypatch.setattr(sys, "argv", ["sppcls"])  # `train` sets it
    with pytest.raises(SystemExit) as end:
        commands.main(arguments.split())
    out, err = capsys.readouterr()
    assert (end.value.code, out, err.count("\n")) == (status, "", 1), err
    assert err.startswith("error: ")
    assert said in err


@pytest.mark.slow
def test_wrong_input_as_a_command(place):
    took = {}
    for arguments, status, said in WRONG:
        ended = run_to_end([sys.executable, "-m", "sppcls", *arguments.split()], place, status)
        assert (ended.out, ended.err.count("\n")) == ("", 1)
        assert said in ended.err
        assert not faults(ended)
        took[arguments] = ended.seconds
    for arguments, seconds in sorted(took.items(), key=lambda one: -one[1]):
        print(f"{seconds:.1f} s  sppcls {arguments}")


def test_a_missing_image_is_not_called_broken(place, monkeypatch, capsys):
    monkeypatch.chdir(place)
    with pytest.raises(SystemExit) as end:
        commands.main(["predict", "a.ckpt", "nothing.jpg"])
    assert end.value.code == 3
    assert "nothing.jpg: No such file or directory; check its name" in capsys.readouterr().err
