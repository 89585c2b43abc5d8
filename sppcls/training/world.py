"""How many processes a run has, who starts them, and how one of several ends."""

import os
import re

from sppcls.errors import ConfigError
from sppcls.spec import Spec


def joined_rank() -> int | None:
    """Return this process's rank in a job that torchrun or srun has started, or None alone."""
    if "GROUP_RANK" in os.environ and int(os.environ["WORLD_SIZE"]) > 1:
        return int(os.environ["RANK"])
    if int(os.environ.get("SLURM_STEP_NUM_TASKS", 1)) > 1:  # srun's, which a batch script without it has not
        return int(os.environ["SLURM_PROCID"])
    return None


def threads_of_each(ranks: int) -> int:
    """Return the threads that each of ``ranks`` processes of this machine computes with."""
    import torch

    if ranks == 1 or "OMP_NUM_THREADS" in os.environ:
        return torch.get_num_threads()
    return max((os.cpu_count() or 1) // ranks, 1)


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
    devices = str(spec.trainer.devices)
    if devices in ("auto", "-1") and spec.trainer.accelerator != "cpu":
        import torch

        return torch.cuda.device_count() or 1
    if "," in devices:
        return len([part for part in devices.split(",") if part])
    return int(devices) if devices.isdigit() else 1  # what is no number Lightning refuses
