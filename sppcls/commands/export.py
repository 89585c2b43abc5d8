"""``sppcls export``: write a trained network to files, verified against the checkpoint."""

from argparse import ArgumentParser, Namespace

from sppcls.commands.arguments import checkpoint_option, path_text


def run(given: Namespace) -> int:
    """Export."""
    from sppcls.deploy.export import export

    export(
        given.model,
        given.format,
        given.out,
        input=given.normalize,
        probabilities=given.probabilities,
        half=given.half,
        regions=given.regions,
        force=given.force,
        checkpoint=given.checkpoint,
    )
    return 0


def options(verb: ArgumentParser) -> None:
    """Add the options of the verb."""
    add = verb.add_argument
    add("model", type=path_text, metavar="MODEL", help="a run folder, a checkpoint or a safetensors export")
    checkpoint_option(verb)
    add(
        "--format",
        required=True,
        metavar="FORMAT",
        type=lambda text: text.split(","),
        help="comma-separated: onnx,safetensors,pt2",
    )
    add("--out", type=path_text, metavar="DIR", help="output folder, must not exist (export in the run folder)")
    add(
        "--normalize",
        nargs="?",
        const="uint8",
        default="normalized",
        choices=("uint8", "float"),
        help="normalise inside the graph, which then takes uint8, or floats in 0..1",
    )
    add("--probabilities", action="store_true", help="apply softmax inside the graph")
    add("--half", action="store_true", help="store weights in float16")
    add("--regions", action="store_true", help="an ONNX graph with a second input for boxes")
    add("--force", action="store_true", help="replace an existing export")
