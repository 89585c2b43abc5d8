"""A checkpoint of one number of ranks, or of some images, taken up by another number or with others."""

from typing import Any

from sppcls.training.datamodule import MultiScaleDataModule


def replan(checkpoint: dict[str, Any], data: MultiScaleDataModule) -> str | None:
    """Make a Lightning checkpoint count in steps of the ranks and images of now; returns what to say of it, if any.

    With other images, an epoch under way starts again. With another number of ranks, the images that the epoch has had
    stay had and the rest is planned anew (`plan_rest`). The learning rate goes on at the same share of the training.
    """
    loop = checkpoint["loops"]["fit_loop"]
    state = loop["state_dict"]["combined_loader"][0]
    epoch, position, done = state["epoch"], state["position"], state.get("done", ())
    now = data.plan(epoch)
    if checkpoint.get("data", data.identity.digest) != data.identity.digest:
        return _start_again(checkpoint, now.steps)
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
    _move_schedules(checkpoint, epoch * now.steps + at)
    return f"{now.world} ranks after {before}: {left} of {now.steps} batches of epoch {epoch + 1} are left"


def _start_again(checkpoint: dict[str, Any], steps: int) -> str:
    loop = checkpoint["loops"]["fit_loop"]
    progress, state = loop["epoch_loop.batch_progress"], loop["state_dict"]["combined_loader"][0]
    over = progress["is_last_batch"]
    _move_schedules(checkpoint, (state["epoch"] + over) * steps)
    state |= {"epoch": state["epoch"] + over, "position": 0, "done": ()}
    progress["current"] = dict.fromkeys(progress["current"], steps if over else 0)
    for rank in checkpoint["ranks"]:
        rank["metrics"] = {}
    return f"the images have changed: epoch {state['epoch'] + 1} starts with its first batch"


def _move_schedules(checkpoint: dict[str, Any], step: int) -> None:
    for scheduler in checkpoint["lr_schedulers"]:
        scheduler["last_epoch"] = step
