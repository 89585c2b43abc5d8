"""How many processes a run has, who starts them, and how one of several ends."""

import atexit
import os
import re
import sys
from typing import NoReturn

from sppcls.errors import ConfigError
from sppcls.spec import Spec


def joined_rank() -> int | None:
    """Return this process's rank in a job that torchrun or srun has started, or None alone."""
    if "GROUP_RANK" in os.environ and int(os.environ["WORLD_SIZE"]) > 1:
        return int(os.environ["RANK"])
    if int(os.environ.get("SLURM_STEP_NUM_TASKS", 1)) > 1:  # srun's, which a batch script without it has not
        return int(os.environ["SLURM_PROCID"])
    return None


def local_ranks(spec: Spec) -> int:
    """Return how many processes to start here: one a device, or 1 where they are started by others."""
    if re.search("spawn|fork|notebook", spec.trainer.strategy):
        raise ConfigError(f"trainer.strategy={spec.trainer.strategy} starts processes of its own; use ddp")
    if joined_rank() is not None:
        return 1
    if spec.trainer.num_nodes > 1:
        raise ConfigError(
            f"trainer.num_nodes={spec.trainer.num_nodes}: torchrun or srun has to start a process a device on each node"
        )
    import torch

    devices, cuda = str(spec.trainer.devices), torch.cuda.device_count()
    on_cpu = spec.trainer.accelerator == "cpu" or not cuda
    if devices in ("auto", "-1"):
        return 1 if on_cpu else cuda
    if "," in devices:
        return len([part for part in devices.split(",") if part])
    return int(devices) if devices.isdigit() else 1  # what is no number Lightning refuses


def leave(status: int) -> NoReturn:
    """End a process that is one of several.

    The interpreter's own end would destroy threads of a collective that may still wait for a rank that has failed,
    and then aborts or waits with it.
    """
    if not status:
        atexit._run_exitfuncs()  # loggers send what they hold
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
