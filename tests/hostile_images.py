"""Images whose headers have no end, checkpoints that ask for much or hold no numbers, and names that lead elsewhere."""

import json

import torch
from hostile_runs import SMALL
from PIL import Image
from test_headers import GIF, PNG, chunk

from sppcls.model_files import KEY

MARKERS = b"\xff\xd8" + b"\xff\xe5\0\2" * 15_000_000
EXIF = b"\xff\xd8" + (b"\xff\xe1\xff\xff" + b"Exif\0\0" + bytes(65527)) * 900
HEADERS = {
    "60 MB of markers": ("a.jpg", MARKERS, "more than 100,000 parts"),
    "60 MB of EXIF": ("a.jpg", EXIF, "more than 2 s"),
    "24 MB of chunks": ("a.png", PNG + chunk(b"abCd") * 2_000_000, "more than 100,000 parts"),
    "8 MB of comments": ("a.gif", GIF + b"!\xfe\1a\0" * 1_600_000, "more than 100,000 parts"),
}


def _images(name, content):
    def make(path, _):
        for label in ("cat", "dog"):
            (path.parent / "images" / label).mkdir(parents=True)
            Image.new("RGB", (48, 40)).save(path.parent / "images" / label / "b.png")
        (path.parent / "images" / "cat" / name).write_bytes(content)
        return f"data.root={path.parent / 'images'}"

    return make


def headers(corpus):
    for title, (name, content, says) in HEADERS.items():
        make = _images(name, content)
        corpus.add(f"header, {title}", "train", make, says, "data=folder", *SMALL, names=f"/images/cat/{name}")


def _weights(change):
    def make(model):
        key = next(key for key, tensor in model["state_dict"].items() if tensor.ndim > 1)
        return model | {"state_dict": model["state_dict"] | {key: change(model["state_dict"][key].clone())}}

    return make


FAULTS = {
    "NaN": (_weights(lambda w: w.fill_(float("nan"))), "non-finite"),
    "infinite": (_weights(lambda w: w.fill_(float("inf"))), "non-finite"),
    "complex": (_weights(lambda w: w.to(torch.complex64)), "real numbers"),
}


def numbers(corpus):
    for title, (change, says) in FAULTS.items():
        corpus.add(f"weights, {title}", "load", lambda p, _, c=change: torch.save(c(corpus.model), p), says)
    known = corpus.model[KEY]["signature"]
    for key, value, says in (("scales", [8192], "67 megapixels"), ("std", [1e-300] * 3, "std")):
        make = corpus.described(signature=known | {key: value})
        corpus.add(f"signature, {key}", "predict", make, says, corpus.image, names="")
    dots = {"a" + ".b" * 1_000_000: torch.zeros(1)}
    corpus.add("a million dots", "weights", lambda p, _: torch.save(dots, p), "does not match", file="a.pth")


def names(corpus):
    out = "a\0b"
    make = lambda p, _: torch.save(corpus.model, p)  # noqa: E731
    corpus.add("a null byte", "export", make, "null byte", "--format", "safetensors", "--out", out, names="--out")
    said = "\x1b]52;c;cm0=\x07\x1b[2J"

    def sweep(name):
        def make(path, canary):
            folder = path.with_name("sweep")
            folder.mkdir()
            (folder / "sweep.json").write_text(json.dumps({"jobs": {name.replace("CANARY", str(canary)): {}}}))
            return folder

        return make

    for name in ("../victim", "CANARY", said):
        corpus.add(f"job {name!r}", "report", sweep(name), "not a valid name for a job folder")


def folders(corpus):
    def linked(path, _):
        target = path.parent.with_name("elsewhere")
        path.rename(target)
        path.symlink_to(target)

    make = corpus.copied("checkpoints", linked)
    corpus.add("link as checkpoints", "resume", make, "is a link")
    status = {"state": "failed", "error": "no \x1b]52;c;cm0=\x07\x1b[2J"}
    make = corpus.copied("status.json", lambda p, _: p.write_text(json.dumps(status)))
    corpus.add("reported status", "report", make, harmless="escapes are shown, not obeyed")
    make = corpus.copied("train.log", lambda p, _: p.write_text("one\nlast\x1b[2J\x07\n"))
    corpus.add("reported log", "report", make, harmless="escapes are shown, not obeyed")
