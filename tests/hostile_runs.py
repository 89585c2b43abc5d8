"""Hostile run folders, and hostile words on the command line."""

import json
import os

import numpy as np
import torch
import yaml
from hostile_files import DIGITS, HYPER, OBJ, written
from hostile_pickles import OPCODES, archive

SMALL = (
    "data.train_size=32",
    "data.val_size=16",
    "data.num_workers=0",
    "trainer.max_epochs=1",
    "trainer.accelerator=cpu",
)
LAUGHS = "a0: &a0 [x, x]\n" + "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 30))


def _pipe(path, _):
    path.unlink(missing_ok=True)
    os.mkfifo(path)


def _zeros(path, _):
    path.unlink(missing_ok=True)
    path.symlink_to("/dev/zero")


def _linked(path, canary):
    path.unlink(missing_ok=True)
    path.symlink_to(canary)


CONFIGS = {
    "tag apply": (written(b"seed: !!python/object/apply:os.mkdir [CANARY]\n"), "constructor for the tag"),
    "tag name": (written(b"seed: !!python/name:os.mkdir\n"), "constructor for the tag"),
    "laughs": (written(LAUGHS.encode()), "aliases"),
    "large": (written(b"a: " + b"x" * (100 << 20)), "more than 1 MB"),
    "deep": (written(b"a: " + b"[" * 50_000), "too many lists"),
    "digits": (written(b"seed: " + DIGITS.encode()), "limit"),
    "pipe": (_pipe, "no file"),
}


def _merged(values):
    def make(path, canary):
        more = json.loads(json.dumps(values).replace("CANARY", str(canary)))
        path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | more))

    return make


MADE = {"_target_": "os.mkdir", "path": "CANARY"}
VALUES = {
    "_target_": (MADE, "unknown key"),
    "code": ({"seed": "${eval:__import__('os').mkdir('CANARY')}"}, "valid integer"),
    "hydra": ({"hydra": {"callbacks": {"x": MADE}}}, "unknown key hydra"),
    "escapes": ({"\x1b[2J\nseed": 1}, "unknown key"),
}


def _state(change):
    """Return a change of a checkpoint's values, which is given the canary too."""

    def make(path, canary):
        loaded = torch.load(path)
        change(loaded, str(canary))
        torch.save(loaded, path)

    return make


STATES = {
    "callbacks": lambda c, canary: c.update(callbacks={key: {"best": canary} for key in c["callbacks"]}),
    "loops": lambda c, canary: c.update(loops=["os.mkdir", canary]),
    "no loops": lambda c, _: c.pop("loops"),
    "loop progress": lambda c, _: c["loops"]["fit_loop"].update(epoch_progress={"_target_": "os.mkdir"}),
    "loader": lambda c, _: c["loops"]["fit_loop"]["state_dict"].update(combined_loader=[{"_target_": "os.mkdir"}]),
    "optimizers": lambda c, canary: c.update(optimizer_states=[{"state": {}, "param_groups": canary}]),
    "schedulers": lambda c, canary: c.update(lr_schedulers=[{"_target_": "os.mkdir", "path": canary}]),
    "random numbers": lambda c, _: c.update(ranks=[{"rng": {"_target_": "os.mkdir"}}]),
}


def _objects(path, canary):
    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(canary),)

    names = ("scales", "targets", "predicted", "confidence", "loss", "in_top5", "images")
    np.savez(path, **{name: np.array([Evil()], dtype=object) for name in names})


REPORTED = {
    "summary.json": written(b"[" * 200_000), "mistakes.json": written(b" " * (65 << 20)), "metrics.csv": _zeros,
    "gap.csv": _pipe, "train.log": written(b" " * (65 << 20)), "answers.npz": _objects,
}  # fmt: skip
BROKEN = {
    "answers as a pickle": written(OBJ("CANARY")),
    "answers that grow": lambda path, _: np.savez_compressed(path, scales=np.zeros(1 << 27, np.int64)),
}
WRITTEN = ("metrics.csv", "gap.csv", "summary.json", "status.json", "answers.npz", "report.html", "skipped.txt")


def _links(folder, canary):
    for name in WRITTEN:
        _linked(folder / name, canary.with_name(f"linked_{name}"))


def runs(corpus):
    for name, (change, says) in CONFIGS.items():
        corpus.add(f"config, {name}", "resume", corpus.copied("config.yaml", change), says)
    for name, (values, says) in VALUES.items():
        corpus.add(f"config, {name}", "resume", corpus.copied("config.yaml", _merged(values)), says)
    for name, key in (("model", "backbone"), ("trainer", "strategy")):
        make = corpus.copied("config.yaml", _merged({name: {key: "os.system"}}))
        corpus.add(f"config, {key}", "resume", make, "os.system", names=f"{name}")
    for name in (".lock", "train.log"):
        corpus.add(f"link as {name}", "resume", corpus.copied(name, _linked), "not a regular file")
        corpus.add(f"pipe as {name}", "resume", corpus.copied(name, _pipe), "not a regular file")
    for name in ("GLOBAL and REDUCE", "BUILD"):
        change = lambda p, c, m=OPCODES[name]: archive(p, m(c))  # noqa: E731
        corpus.add(f"{name} in a run", "resume", corpus.copied("checkpoints/last.ckpt", change), "last.ckpt is refused")
    for name, change in STATES.items():
        make = corpus.copied("checkpoints/last.ckpt", _state(change))
        corpus.add(f"state, {name}", "resume", make, "last.ckpt (cannot be resumed|does not record)")
    hyper = _state(lambda c, canary: c.update(json.loads(json.dumps(HYPER).replace("CANARY", canary))))
    make = corpus.copied("checkpoints/last.ckpt", hyper)
    corpus.add("state, hyper-parameters", "resume", make, harmless="hyper-parameters are not read")
    make = corpus.copied("", _links)
    corpus.add("links", "resume", make, "not a regular file")
    why = "a page leaves out what cannot be read"
    for name, change in REPORTED.items():
        corpus.add(f"reported {name}", "report", corpus.copied(name, change), harmless=why)
    for name, change in BROKEN.items():
        corpus.add(f"reported {name}", "report", corpus.copied("answers.npz", change), harmless=why)
    corpus.add("reported config", "report", corpus.copied("config.yaml", CONFIGS["tag apply"][0]), "constructor")


OVERRIDES = (
    ("+_target_=os.mkdir", "_target_"),
    ("model.backbone=os.system", "model.backbone"),
    ("model.weights=/dev/zero", "model.weights"),
    ("model={_target_:os.mkdir,path:'CANARY'}", "model"),
    ("seed=${eval:1}", "eval"),
    ("model.hidden=[1000000000000]", "model.hidden"),
    ("data.batch_size=1000000000000", "data.batch_size"),
)


def overrides(corpus):
    for words, key in OVERRIDES:
        make = lambda _, c, w=words: w.replace("CANARY", str(c))  # noqa: E731
        corpus.add(f"override {words[:60]}", "train", make, "", *SMALL, names=key)
