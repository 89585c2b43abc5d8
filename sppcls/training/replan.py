"""A checkpoint of one number of ranks, or of some images, resumed by another number or with others."""

from typing import Any

from sppcls.training.datamodule import MultiScaleDataModule


def replan(checkpoint: dict[str, Any], data: MultiScaleDataModule) -> str | None:
    """Make a Lightning checkpoint count in steps of the ranks and images of now; returns what to say of it, if any.

    With other images or another number of ranks an epoch under way starts again. The learning rate goes on at the same
    share of the training.
    """
    loop = checkpoint["loops"]["fit_loop"]
    state = loop["state_dict"]["combined_loader"][0]
    now = data.plan(state["epoch"])
    before = state.get("world", now.world)
    if checkpoint.get("data", data.identity.digest) != data.identity.digest:
        said = "the images have changed"
    elif before != now.world:
        said = f"{now.world} ranks after {before}"
    else:
        return None
    progress = loop["epoch_loop.batch_progress"]
    over = progress["is_last_batch"]
    state |= {"epoch": state["epoch"] + over, "position": 0}
    progress["current"] = dict.fromkeys(progress["current"], now.steps if over else 0)
    for scheduler in checkpoint["lr_schedulers"]:
        scheduler["last_epoch"] = state["epoch"] * now.steps
    for rank in checkpoint["ranks"]:
        rank["metrics"] = {}
    return f"{said}: epoch {state['epoch'] + 1} starts with its first batch"
