"""``sppcls VERB``: the verbs, and nothing else; a verb's module is imported when it is called."""

import argparse
import os
import re
import signal
import sys
from collections.abc import Callable
from importlib import import_module
from importlib.metadata import version
from typing import NoReturn

from sppcls.errors import SppclsError, did_you_mean
from sppcls.path_checks import path_fault
from sppcls.process import leave, own_process
from sppcls.signals import Interrupted, Signals
from sppcls.terminal import say

BENCHES = ("pool", "loader", "train", "views", "regions", "saves", "plan")


def main(arguments: list[str] | None = None) -> None:
    """Run one verb; ends the process with the contract's exit status."""
    own_process()
    given = sys.argv[1:] if arguments is None else arguments
    if given[:1] == ["train"]:
        sys.argv = ["sppcls train", *given[1:]]
        import_module("sppcls.app").main()
    options = vars(_parser().parse_args(given))
    module, _, name = options.pop("run").partition(":")
    try:
        with Signals():  # so that what is half written is taken away
            status = getattr(import_module(f"sppcls.{module}"), name)(**options)
    except Interrupted as ended:
        sys.exit(ended.status)
    except BrokenPipeError:
        # What reads the output has seen enough; Python would complain once more when it flushes.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    except Exception as error:
        if os.environ.get("SPPCLS_DEBUG") == "1":
            raise
        from sppcls.failure import one_line

        say(f"error: {one_line(error)}")
        sys.exit(error.exit_status if isinstance(error, SppclsError) else 1)
    sys.exit(status)


def command() -> None:
    """Run ``sppcls`` as a program."""
    _as_program(main)


def train() -> None:
    """Run ``train.py`` as a program."""
    _as_program(lambda: import_module("sppcls.app").main())


def _as_program(run: Callable[[], None]) -> None:
    """Run to the end of the process; Ctrl-C during the imports, or once all is done, prints no traceback."""
    status: object = 0
    try:
        run()
    except KeyboardInterrupt:
        status = 130
    except SystemExit as ended:
        status = ended.code
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    leave(status if isinstance(status, int) else 0)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        if wrong := re.match(r"argument (\S+): invalid choice: '(.*)' \(choose from (.*)\)", message, re.S):
            meant = did_you_mean(wrong[2], re.findall(r"[\w-]+", wrong[3]))
            message = f"{wrong[1]} {wrong[2][:40]!r} is unknown{meant}"
        end = "" if message.endswith("?") else ";"
        say(f"error: {message}{end} {self.prog} --help says more")
        sys.exit(2)


def _scales(text: str) -> tuple[int, ...]:
    try:
        scales = tuple(int(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"got {text!r}, allowed: whole numbers and commas, as 64,96,128") from None
    if min(scales) < 8 or max(scales) > 8192:
        raise argparse.ArgumentTypeError(f"got {text!r}, a scale is 8 to 8192 pixels")
    return scales


def _at_least(least: int, most: int = 2**31) -> Callable[[str], int]:
    def whole(text: str) -> int:
        if not (text.isascii() and text.isdecimal() and len(text) < 12 and least <= int(text) <= most):
            upto = f", and {most} at most," if most < 2**31 else ""
            raise argparse.ArgumentTypeError(f"got {text[:40]!r}, a whole number of at least {least}{upto} is needed")
        return int(text)

    return whole


def _several(one: Callable[[str], object]) -> Callable[[str], object]:
    return lambda text: tuple(one(part) for part in text.split("/"))


def _levels(text: str) -> tuple[int, ...]:
    if text == "gap":
        return (0,)
    if not all(part.isdecimal() and 1 <= int(part) <= 32 for part in text.split(",")):
        raise argparse.ArgumentTypeError(f"got {text!r}, allowed: gap, or grid sizes from 1 to 32, as 6,3,2,1")
    return tuple(map(int, text.split(",")))


def _path(text: str) -> str:
    if fault := path_fault(text):
        raise argparse.ArgumentTypeError(f"got {text[:60]!r}: {fault}")
    return text


def _fit(text: str) -> str:
    if text not in ("keep", "crop", "warp"):
        raise argparse.ArgumentTypeError(f"got {text!r}, allowed: keep, crop, warp")
    return text


def _cost(text: str) -> float:
    try:
        cost = float(text)
    except ValueError:
        cost = 0.0
    if not 1e-6 <= cost <= 1e3:
        raise argparse.ArgumentTypeError(f"got {text!r}, a number from 1e-6 to 1000 is needed")
    return cost


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="sppcls", description="Image classification at any image size.")
    parser.add_argument("--version", action="version", version=f"sppcls {version('sppcls')}")
    verbs = parser.add_subparsers(required=True, metavar="VERB")
    verbs.add_parser("train", help="train a network, or a sweep of them; sppcls train --help lists all settings")
    for name, (run, said, add_options) in _VERBS.items():
        verb = verbs.add_parser(name, help=said, description=said)
        verb.set_defaults(run=run)
        add_options(verb)
    return parser


def _evaluate(verb: _Parser) -> None:
    add = verb.add_argument
    add("model", type=_path, metavar="MODEL", help="a run folder, a checkpoint or any export")
    _which(verb)
    add("--scales", type=_scales, help="test scales, as 64,96,128 (those of the run)")
    add(
        "--data",
        type=_path,
        metavar="DIR",
        help="class folders or a table; with --split, the run's data set moved there",
    )
    add("--split", choices=("val", "test", "train"), help="which part of the run's data set (val)")
    add("--fit", choices=("keep", "crop", "warp"), help="how an image meets a scale (the run's)")
    add("--gap", action="store_true", help="measure a fixed part of the training set too")
    add("--views", choices=("full", "multi"), default="full", help="multi: crops and mirror images of one map")
    add("--places", type=int, choices=range(2, 17), metavar="N", default=3, help="crops along each axis (3)")
    add("--fuse", type=_scales, metavar="SCALES", help="average whole-image predictions over these scales")
    add("--recalibrate-bn", action="store_true", help="batch-norm statistics of each test scale")
    add("--classes", action="store_true", help="show precision, recall and F1 of each class")
    add("--answers", type=_path, metavar="FILE.csv", help="write each image's path, class, answer and probability")
    add("--object-scale", action="store_true", help="accuracy by the object's true size (data=shapes)")
    add("--batch-size", type=_at_least(1), default=32)
    add("--num-workers", type=_at_least(0), default=0)
    add("--device", default="auto", help="auto, cpu, cuda ...")
    add("--out", type=_path, metavar="DIR", help="where evaluation.json, .csv and .svg go (the run folder)")


def _which(verb: _Parser) -> None:
    verb.add_argument("--checkpoint", choices=("last", "best"), help="which of a run's (last)")


def _predict(verb: _Parser) -> None:
    add = verb.add_argument
    add("model", type=_path, metavar="MODEL", help="a run, a checkpoint, an exported folder, .safetensors, .onnx, .pt2")
    _which(verb)
    add("images", type=_path, metavar="IMAGE", nargs="+", help="files, folders, globs, or - for a list on stdin")
    scale = verb.add_mutually_exclusive_group()
    scale.add_argument("--scale", type=_at_least(8, 8192), help="shorter side in pixels (the largest trained)")
    scale.add_argument("--fuse", type=_scales, metavar="SCALES", help="average the probabilities of these scales")
    add("--top", type=_at_least(1), default=5, metavar="N", help="how many classes to name (5)")
    kind = verb.add_mutually_exclusive_group()
    kind.add_argument("--json", action="store_true", help="a JSON object a line")
    kind.add_argument("--csv", action="store_true", help="a table with a heading")
    boxes = verb.add_mutually_exclusive_group()
    boxes.add_argument(
        "--boxes",
        type=_path,
        metavar="FILE",
        help="regions, x1 y1 x2 y2: .json or .csv; of many images path,x1,y1,x2,y2",
    )
    boxes.add_argument("--grid", type=_at_least(1, 64), metavar="N", help="propose squares, N to the shorter side")
    add("--scales", type=_scales, help="scales to take regions from, as 480,576,688,864")
    add(
        "--draw",
        type=_path,
        metavar="FILE",
        help="draw labels and regions, as a .png or .jpg; of many images into a folder",
    )
    add("--batch-size", type=_at_least(1), default=32)
    add("--device", default="auto", help="auto, cpu, cuda ...")


def _export(verb: _Parser) -> None:
    add = verb.add_argument
    add("model", type=_path, metavar="MODEL", help="a run folder, a checkpoint or a safetensors export")
    _which(verb)
    add(
        "--format",
        required=True,
        dest="formats",
        metavar="FORMAT",
        type=lambda text: text.split(","),
        help="as onnx,safetensors,pt2",
    )
    add("--out", type=_path, metavar="DIR", help="a new folder (export, in the run folder)")
    add(
        "--normalize",
        dest="input",
        nargs="?",
        const="uint8",
        default="normalized",
        choices=("uint8", "float"),
        help="mean and std inside the graph, which then takes uint8, or floats of 0..1",
    )
    add("--probabilities", action="store_true", help="softmax inside the graph")
    add("--half", action="store_true", help="weights in float16")
    add("--regions", action="store_true", help="an ONNX graph that takes boxes beside the images")
    add("--force", action="store_true", help="replace an export that is there")


def _quantize(verb: _Parser) -> None:
    add = verb.add_argument
    add("model", type=_path, metavar="MODEL.onnx", help="a file of sppcls export --format onnx")
    add(
        "--data",
        type=_path,
        required=True,
        metavar="DIR",
        help="what was trained on: class folders, train/ and val/, or a table",
    )
    add("--images", type=_at_least(1, 10_000), default=200, metavar="N", help="training images to calibrate on (200)")
    add("--out", type=_path, metavar="FILE.onnx", help="a new file (MODEL-int8.onnx)")


def _report(verb: _Parser) -> None:
    add = verb.add_argument
    add("directory", type=_path, metavar="DIR", help="a run folder, or a folder of run folders")
    what = "what variants are tested against"
    add("--baseline", action="append", default=[], dest="baselines", metavar="VARIANT", help=what)


def _probe(verb: _Parser) -> None:
    add = verb.add_argument
    verb.epilog = "Several --levels, --scales or --fit, with / between them, give a row each, from the same splits."
    add("--data", type=_path, required=True, metavar="DIR", help="a folder of class folders")
    add("--backbone", default="efficientnet_lite0", help="as model.backbone (efficientnet_lite0)")
    add("--weights", type=_path, default="pretrained", help="pretrained, a file, or none (pretrained)")
    add("--layer", default="spp", help="spp, the last map, or a module such as net.blocks.10 (spp)")
    add("--levels", type=_several(_levels), default="3,2,1", help="pyramids or gap, as gap/6,3,2,1")
    add("--scales", type=_several(_scales), default="224", help="shorter sides, as 224/160,224,288")
    add("--fit", type=_several(_fit), default="keep", help="how an image meets a scale, as keep/warp")
    add("--train-per-class", type=_at_least(1), default=30, metavar="N")
    add("--test-per-class", type=_at_least(1), default=50, metavar="N", help="at most (50)")
    add("--splits", type=_at_least(1), default=10, metavar="N", help="random splits (10)")
    add("--seed", type=_at_least(0), default=0, help="of the first split, the next has the next (0)")
    add("--C", type=_cost, default=1.0, dest="c", metavar="C", help="of the SVM (1)")
    add("--batch-size", type=_at_least(1), default=8)
    add("--device", default="auto", help="auto, cpu, cuda ...")
    add("--cache", action=argparse.BooleanOptionalAction, default=True, help="keep features for the next time")
    add("--out", type=_path, default="runs/probe", metavar="DIR", help="where probe.json goes (runs/probe)")


def _data(verb: _Parser) -> None:
    add = verb.add_argument
    add("directory", type=_path, metavar="DIR", help="class folders, train/ and val/, or a table")
    add("--scales", type=_scales, default=(96, 128, 224), help="what each would do (96,128,224)")
    add("--decode", action="store_true", help="decode every image whole, to find truncated ones")
    add("--out", type=_path, metavar="FILE.html", help="write an offline page")


def _cache(verb: _Parser) -> None:
    add = verb.add_argument
    add("--clear", action="store_true", help="remove the files that no process uses")
    add(
        "--older-than",
        type=_at_least(0),
        default=0,
        dest="days",
        metavar="DAYS",
        help="only files that were not used for so long",
    )


def _bench(verb: _Parser) -> None:
    add = verb.add_argument
    add("name", choices=BENCHES)
    add("--json", action="store_true", dest="as_json", help="print one JSON object")
    add("--data", type=_path, metavar="DIR", help="images for `loader` and `train`: a folder of class folders")


# A verb: the function that is called with its options by name, what it does, and its options.
_VERBS: dict[str, tuple[str, str, Callable[[_Parser], None]]] = {
    "evaluate": (
        "report.evaluation:run_evaluate",
        "accuracy, calibration and cost of a trained network at each scale",
        _evaluate,
    ),
    "predict": ("deploy.labels:run_predict", "labels for images, from a run, a checkpoint or any export", _predict),
    "export": ("deploy.export:run_export", "files that prove themselves: safetensors, onnx, pt2", _export),
    "quantize": ("measure.quantize:run_quantize", "an ONNX export in 8 bits, and what that does to it", _quantize),
    "report": ("report.report:report", "tables, plots and one offline page of a run or a sweep", _report),
    "probe": ("report.probe:run_probe", "a linear SVM on features of a frozen network: the paper's protocol", _probe),
    "data": ("report.data_page:run_data", "what is in a data set, and what is broken in it", _data),
    "cache": ("data.cache_files:run_cache", "list or remove cached pixels, image sizes and features", _cache),
    "bench": ("bench:run_bench", "our numbers against the obvious way, in one process", _bench),
}
