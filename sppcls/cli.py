"""``sppcls VERB``: the verbs, and nothing else; a verb's module is imported when it is called."""

import argparse
import os
import sys
from collections.abc import Callable
from typing import NoReturn

BENCHES = ("pool", "loader", "train", "views")


def main(arguments: list[str] | None = None) -> None:
    """Run one verb; ends the process with the contract's exit status."""
    options = _parser().parse_args(arguments)
    try:
        status = options.run(options)
    except KeyboardInterrupt:
        sys.exit(130)
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


def _at_least(least: int) -> Callable[[str], int]:
    def whole(text: str) -> int:
        if not text.isdecimal() or int(text) < least:
            raise argparse.ArgumentTypeError(f"got {text!r}, a whole number of at least {least} is needed")
        return int(text)

    return whole


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="sppcls", description="Image classification at any image size.")
    verbs = parser.add_subparsers(required=True, metavar="VERB")

    def verb(name: str, run: object, said: str) -> argparse.ArgumentParser:
        added: argparse.ArgumentParser = verbs.add_parser(name, help=said, description=said)
        added.set_defaults(run=run)
        return added

    _add_evaluate(verb("evaluate", _evaluate, "accuracy, calibration and cost of a trained network at each scale"))
    report = verb("report", _report, "tables, plots and one offline page of a run or a sweep")
    report.add_argument("directory", metavar="DIR", help="a run folder, or a folder of run folders")
    report.add_argument(
        "--baseline", action="append", default=[], metavar="VARIANT", help="what variants are tested against"
    )
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


def _evaluate(options: argparse.Namespace) -> int:
    from sppcls.report.evaluation import run_evaluate

    return run_evaluate(options)


def _report(options: argparse.Namespace) -> int:
    from sppcls.report.report import report

    return report(options.directory, options.baseline)


def _data(options: argparse.Namespace) -> int:
    from sppcls.report.data_page import run_data

    return run_data(options.directory, options.scales, decode=options.decode, out=options.out)


def _bench(options: argparse.Namespace) -> int:
    from sppcls.bench import run_bench

    return run_bench(options.name, data=options.data, as_json=options.json)
