"""The processes of a torchrun, or the one process that there is without it."""

import os
from datetime import timedelta
from typing import NamedTuple

import torch
import torch.distributed
from torch import Tensor


class Processes(NamedTuple):
    """This process's number and how many share the work."""

    rank: int = 0
    count: int = 1

    @property
    def first(self) -> bool:
        """Whether this is the process that writes files and speaks."""
        return self.rank == 0

    def total(self, values: Tensor) -> Tensor:
        """Sum of a CPU tensor over all processes."""
        if self.count > 1:
            torch.distributed.all_reduce(values)
        return values


ALONE = Processes()


def join() -> Processes:
    """Join the processes that torchrun started; alone where it did not."""
    if not torch.distributed.is_torchelastic_launched():  # Slurm sets WORLD_SIZE in its shells too
        return ALONE
    # Counts of images are summed on the CPU, whatever attacks them. A process may wait for another's last hours.
    torch.distributed.init_process_group("gloo", timeout=timedelta(days=30))
    return Processes(torch.distributed.get_rank(), torch.distributed.get_world_size())


def leave() -> None:
    """End what :func:`join` began."""
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def gpu_of(gpu_id: int) -> int:
    """The GPU of this process: the one that was asked for, under torchrun the one of its place on the machine."""
    return int(os.environ.get("LOCAL_RANK", gpu_id))
