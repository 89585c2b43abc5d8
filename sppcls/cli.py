"""``sppcls VERB``: the verbs, and nothing else; a verb's module is imported when it is called."""

import argparse
import os
import sys

BENCHES = ("pool", "loader", "train")


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


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="sppcls", description="Image classification at any image size.")
    verbs = parser.add_subparsers(required=True, metavar="VERB")
    bench = verbs.add_parser("bench", help="our numbers against the obvious way, in one process")
    bench.add_argument("name", choices=BENCHES)
    bench.add_argument("--json", action="store_true", help="print one JSON object")
    bench.add_argument("--data", metavar="DIR", help="images for `loader` and `train`: a folder of class folders")
    bench.set_defaults(run=_bench)
    return parser


def _bench(options: argparse.Namespace) -> int:
    from sppcls.bench import run_bench

    return run_bench(options.name, data=options.data, as_json=options.json)
