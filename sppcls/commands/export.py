"""``sppcls export``: a trained network as files that another program can trust."""

import argparse
from typing import Any

from sppcls.commands.arguments import checkpoint_option, path_text


def run(**given: Any) -> int:
    """Export, and return 0."""
    from sppcls.deploy.export import export

    export(**given)
    return 0


def options(verb: argparse.ArgumentParser) -> None:
    """Add the options of the verb."""
    add = verb.add_argument
    add("model", type=path_text, metavar="MODEL", help="a run folder, a checkpoint or a safetensors export")
    checkpoint_option(verb)
    add(
        "--format",
        required=True,
        dest="formats",
        metavar="FORMAT",
        type=lambda text: text.split(","),
        help="as onnx,safetensors,pt2",
    )
    add("--out", type=path_text, metavar="DIR", help="a new folder (export, in the run folder)")
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
