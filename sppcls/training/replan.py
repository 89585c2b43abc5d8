"""A checkpoint of one number of ranks, taken up by another."""

from typing import Any

from sppcls.training.datamodule import MultiScaleDataModule


def replan(checkpoint: dict[str, Any], data: MultiScaleDataModule) -> str | None:
    """Make a Lightning checkpoint count in steps of as many ranks as there are now; returns what to say of it, if any.

    The images that the epoch has had stay had, the rest is planned anew (`plan_rest`), and the learning rate goes on
    at the same share of the training.
    """
    loop = checkpoint["loops"]["fit_loop"]
    state = loop["state_dict"]["combined_loader"][0]
    epoch, position, done = state["epoch"], state["position"], state.get("done", ())
    now = data.plan(epoch)
    before = state.get("world", now.world)
    if before == now.world:
        return None
    over = position >= data.plan(epoch, done, before).steps
    left = 0 if over else data.plan(epoch, (*done, (before, position))).steps
    at = now.steps - left
    current = loop["epoch_loop.batch_progress"]["current"]
    moved = at - current["ready"]
    for name in current:
        current[name] += moved
    for scheduler in checkpoint["lr_schedulers"]:
        scheduler["last_epoch"] = epoch * now.steps + at
    return f"{now.world} ranks after {before}: {left} of {now.steps} batches of epoch {epoch + 1} are left"
