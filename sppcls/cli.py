"""``sppcls VERB``: the verbs, and nothing else; a verb's module is imported when it is called."""

import argparse
import os
import signal
import sys
from collections.abc import Callable
from typing import NoReturn

BENCHES = ("pool", "loader", "train", "views", "regions")


def main(arguments: list[str] | None = None) -> None:
    """Run one verb; ends the process with the contract's exit status."""
    options = _parser().parse_args(arguments)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that what is half written is taken away
    try:
        status = options.run(options)
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:
        # What reads the output has seen enough; Python would complain once more when it flushes.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    except Exception as error:
        from sppcls.errors import SppclsError

        if os.environ.get("SPPCLS_DEBUG") == "1":
            raise
        line = str(error) if isinstance(error, SppclsError) else f"{type(error).__name__}: {error}".splitlines()[0]
        print(f"error: {line}", file=sys.stderr)
        sys.exit(error.exit_status if isinstance(error, SppclsError) else 1)
    sys.exit(status)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        print(f"error: {message}; {self.prog} --help says more", file=sys.stderr)
        sys.exit(2)


def _scales(text: str) -> tuple[int, ...]:
    try:
        scales = tuple(int(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"got {text!r}, allowed: whole numbers and commas, as 64,96,128") from None
    if min(scales) < 1 or max(scales) > 8192:
        raise argparse.ArgumentTypeError(f"got {text!r}, a scale is 1 to 8192 pixels")
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
    verbs = parser.add_subparsers(required=True, metavar="VERB")

    def verb(name: str, run: object, said: str) -> argparse.ArgumentParser:
        added: argparse.ArgumentParser = verbs.add_parser(name, help=said, description=said)
        added.set_defaults(run=run)
        return added

    _add_evaluate(verb("evaluate", _evaluate, "accuracy, calibration and cost of a trained network at each scale"))
    _add_predict(verb("predict", _predict, "labels for images, from a run, a checkpoint or any export"))
    _add_export(verb("export", _export, "files that prove themselves: safetensors, onnx, pt2"))
    report = verb("report", _report, "tables, plots and one offline page of a run or a sweep")
    report.add_argument("directory", metavar="DIR", help="a run folder, or a folder of run folders")
    report.add_argument(
        "--baseline", action="append", default=[], metavar="VARIANT", help="what variants are tested against"
    )
    _add_probe(verb("probe", _probe, "a linear SVM on features of a frozen network: the paper's protocol"))
    data = verb("data", _data, "what is in a data set, and what is broken in it")
    data.add_argument("directory", metavar="DIR", help="a folder of class folders, or of train/ and val/")
    data.add_argument("--scales", type=_scales, default=(96, 128, 224), help="what each would do (96,128,224)")
    data.add_argument("--decode", action="store_true", help="decode every image whole, to find truncated ones")
    data.add_argument("--out", metavar="FILE.html", help="write an offline page")
    bench = verb("bench", _bench, "our numbers against the obvious way, in one process")
    bench.add_argument("name", choices=BENCHES)
    bench.add_argument("--json", action="store_true", help="print one JSON object")
    bench.add_argument("--data", metavar="DIR", help="images for `loader` and `train`: a folder of class folders")
    return parser


def _add_evaluate(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("model", metavar="MODEL", help="a run folder or a checkpoint")
    verb.add_argument("--scales", type=_scales, help="test scales, as 64,96,128 (those of the run)")
    verb.add_argument(
        "--data", metavar="DIR", help="a folder of class folders; with --split, the run's data set moved there"
    )
    verb.add_argument("--split", choices=("val", "test", "train"), help="which part of the run's data set (val)")
    verb.add_argument("--fit", choices=("keep", "crop", "warp"), help="how an image meets a scale (the run's)")
    verb.add_argument("--gap", action="store_true", help="measure a fixed part of the training set too")
    verb.add_argument(
        "--views", choices=("full", "multi"), default="full", help="multi: crops and mirror images of one map"
    )
    verb.add_argument(
        "--places", type=int, choices=range(2, 17), metavar="N", default=3, help="crops along each axis (3)"
    )
    verb.add_argument(
        "--fuse", type=_scales, metavar="SCALES", help="average whole-image predictions over these scales"
    )
    verb.add_argument("--recalibrate-bn", action="store_true", help="batch-norm statistics of each test scale")
    verb.add_argument("--object-scale", action="store_true", help="accuracy by the object's true size (data=shapes)")
    verb.add_argument("--batch-size", type=_at_least(1), default=32)
    verb.add_argument("--num-workers", type=_at_least(0), default=0)
    verb.add_argument("--device", default="auto", help="auto, cpu, cuda ...")
    verb.add_argument("--out", metavar="DIR", help="where evaluation.json, .csv and .svg go (the run folder)")


def _add_predict(verb: argparse.ArgumentParser) -> None:
    verb.add_argument(
        "model", metavar="MODEL", help="a run, a checkpoint, an exported folder, .safetensors, .onnx, .pt2"
    )
    verb.add_argument(
        "images", metavar="IMAGE", nargs="+", help="files, folders, globs, or - for a list on standard input"
    )
    scale = verb.add_mutually_exclusive_group()
    scale.add_argument("--scale", type=_at_least(1, 8192), help="shorter side in pixels (the largest trained)")
    scale.add_argument("--fuse", type=_scales, metavar="SCALES", help="average the probabilities of these scales")
    verb.add_argument("--top", type=_at_least(1), default=5, metavar="N", help="how many classes to name (5)")
    kind = verb.add_mutually_exclusive_group()
    kind.add_argument("--json", action="store_true", help="a JSON object a line")
    kind.add_argument("--csv", action="store_true", help="a table with a heading")
    boxes = verb.add_mutually_exclusive_group()
    boxes.add_argument("--boxes", metavar="FILE", help="regions of one image to label, x1 y1 x2 y2: .json or .csv")
    boxes.add_argument("--grid", type=_at_least(1, 64), metavar="N", help="propose squares, N to the shorter side")
    verb.add_argument("--scales", type=_scales, help="scales to take regions from, as 480,576,688,864")
    verb.add_argument("--draw", metavar="FILE", help="draw the regions, as a .png or .jpg")
    verb.add_argument("--batch-size", type=_at_least(1), default=32)
    verb.add_argument("--device", default="auto", help="auto, cpu, cuda ...")


def _add_export(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("model", metavar="MODEL", help="a run folder, a checkpoint or a safetensors export")
    verb.add_argument("--format", required=True, type=lambda text: text.split(","), help="as onnx,safetensors,pt2")
    verb.add_argument("--out", metavar="DIR", help="a new folder (export, in the run folder)")
    verb.add_argument(
        "--normalize",
        nargs="?",
        const="uint8",
        default="normalized",
        choices=("uint8", "float"),
        help="mean and std inside the graph, which then takes uint8, or floats of 0..1",
    )
    verb.add_argument("--probabilities", action="store_true", help="softmax inside the graph")
    verb.add_argument("--half", action="store_true", help="weights in float16")
    verb.add_argument("--regions", action="store_true", help="an ONNX graph that takes boxes beside the images")
    verb.add_argument("--force", action="store_true", help="replace an export that is there")


def _add_probe(verb: argparse.ArgumentParser) -> None:
    verb.epilog = "Several --levels, --scales or --fit, with / between them, give a row each, from the same splits."
    verb.add_argument("--data", required=True, metavar="DIR", help="a folder of class folders")
    verb.add_argument("--backbone", default="efficientnet_lite0", help="as model.backbone (efficientnet_lite0)")
    verb.add_argument("--weights", default="pretrained", help="pretrained, a file, or none (pretrained)")
    verb.add_argument("--layer", default="spp", help="spp, the last map, or a module such as net.blocks.10 (spp)")
    verb.add_argument("--levels", type=_several(_levels), default="3,2,1", help="pyramids or gap, as gap/6,3,2,1")
    verb.add_argument("--scales", type=_several(_scales), default="224", help="shorter sides, as 224/160,224,288")
    verb.add_argument("--fit", type=_several(_fit), default="keep", help="how an image meets a scale, as keep/warp")
    verb.add_argument("--train-per-class", type=_at_least(1), default=30, metavar="N")
    verb.add_argument("--test-per-class", type=_at_least(1), default=50, metavar="N", help="at most (50)")
    verb.add_argument("--splits", type=_at_least(1), default=10, metavar="N", help="random splits (10)")
    verb.add_argument("--seed", type=_at_least(0), default=0, help="of the first split, the next has the next (0)")
    verb.add_argument("--C", type=_cost, default=1.0, dest="c", metavar="C", help="of the SVM (1)")
    verb.add_argument("--batch-size", type=_at_least(1), default=8)
    verb.add_argument("--device", default="auto", help="auto, cpu, cuda ...")
    verb.add_argument(
        "--cache", action=argparse.BooleanOptionalAction, default=True, help="keep features for the next time"
    )
    verb.add_argument("--out", default="runs/probe", metavar="DIR", help="where probe.json goes (runs/probe)")


def _evaluate(options: argparse.Namespace) -> int:
    from sppcls.report.evaluation import run_evaluate

    return run_evaluate(options)


def _predict(options: argparse.Namespace) -> int:
    from sppcls.deploy.labels import run_predict

    return run_predict(options)


def _export(options: argparse.Namespace) -> int:
    from sppcls.deploy.export import run_export

    return run_export(options)


def _report(options: argparse.Namespace) -> int:
    from sppcls.report.report import report

    return report(options.directory, options.baseline)


def _probe(options: argparse.Namespace) -> int:
    from sppcls.report.probe import run_probe

    return run_probe(options)


def _data(options: argparse.Namespace) -> int:
    from sppcls.report.data_page import run_data

    return run_data(options.directory, options.scales, decode=options.decode, out=options.out)


def _bench(options: argparse.Namespace) -> int:
    from sppcls.bench import run_bench

    return run_bench(options.name, data=options.data, as_json=options.json)
