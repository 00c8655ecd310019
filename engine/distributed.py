"""Data parallelism under torchrun; without torchrun a single process."""

import logging
from collections.abc import Callable, Iterable, Sequence
from datetime import timedelta
from typing import Any, NamedTuple

import torch
import torch.distributed
from torch import Tensor

from utils.errors import UserError, torchrun_rank

# In an evaluation ranks synchronize only at the end of an attack, hours apart; in training at every step.
EVALUATION_TIMEOUT, TRAINING_TIMEOUT = timedelta(days=30), timedelta(minutes=30)


class Shard(NamedTuple):
    """One rank's share of a training batch of ``batch_size`` images.

    ``rows`` are its images; ``weight`` is the weight of their mean in the mean of the batch. If there are fewer images
    than ranks, the share is ``replicated``: every rank gets all images, with the same weight.
    """

    rows: slice
    batch_size: int
    weight: float
    replicated: bool = False


class Processes(NamedTuple):
    """Rank of this process and number of processes (the world size)."""

    rank: int = 0
    count: int = 1

    @property
    def is_rank0(self) -> bool:
        """Whether this process writes files and logs."""
        return self.rank == 0

    def rows(self, n: int) -> slice:
        """Return this rank's rows of ``n``: consecutive, balanced to within one row, possibly none."""
        return slice(n * self.rank // self.count, n * (self.rank + 1) // self.count)

    def shards(self, n: int, parts: int = 1) -> list[Shard]:
        """Return this rank's shares of the consecutive ``parts``, at most ``n``, of a training batch of ``n`` images.

        No share is empty: if a part has fewer images than there are ranks, all parts are replicated.
        """
        parts, shards = min(parts, n), []
        for part in range(parts):
            start, stop = n * part // parts, n * (part + 1) // parts
            if n // parts < self.count:
                shards.append(Shard(slice(start, stop), n, (stop - start) / n / self.count, replicated=True))
            else:
                rows = self.rows(stop - start)
                share = slice(start + rows.start, start + rows.stop)
                shards.append(Shard(share, n, (rows.stop - rows.start) / n))
        return shards

    def all_reduce_sum(self, values: Tensor) -> Tensor:
        """Sum a CPU tensor over all ranks, in place."""
        if self.count > 1:
            torch.distributed.all_reduce(values)
        return values

    def all_reduce_max(self, values: Sequence[int]) -> list[int]:
        """Return the maximum of each value over all ranks."""
        if self.count == 1:
            return list(values)
        maxima = torch.tensor(values)
        torch.distributed.all_reduce(maxima, torch.distributed.ReduceOp.MAX)
        return maxima.tolist()

    def broadcast(self, tensors: Iterable[Tensor]) -> None:
        """Overwrite tensors with those of rank 0."""
        if self.count > 1:
            for tensor in tensors:
                torch.distributed.broadcast(tensor, src=0)

    def on_rank0(self, function: Callable, *args) -> Any:
        """Call ``function`` on rank 0 and return its result on all ranks; its UserError is raised on all ranks."""
        result = self.on_all_ranks(function if self.is_rank0 else None, *args)
        if self.count == 1:
            return result
        message = [result]
        torch.distributed.broadcast_object_list(message)
        return message[0]

    def rank0_first(self, function: Callable, *args) -> Any:
        """Call ``function`` on the first rank of each machine, then on its other ranks, which find cached files.

        A UserError of any rank is raised on all ranks.
        """
        local_first = self.count == 1 or torchrun_rank("LOCAL_RANK") == 0
        first = self.on_all_ranks(function if local_first else None, *args)
        others = self.on_all_ranks(None if local_first else function, *args)
        return first if local_first else others

    def on_all_ranks(self, function: Callable | None, *args) -> Any:
        """Call ``function``, which must not communicate, on every rank; a UserError of any rank is raised on all.

        A rank for which it is None waits for the others.
        """
        if self.count == 1:
            return function(*args) if function else None
        result, error = None, None
        try:
            result = function(*args) if function else None
        except UserError as raised:
            error = str(raised)
        errors = [None] * self.count
        torch.distributed.all_gather_object(errors, error)
        if any(errors):
            raised = UserError(error or next(filter(None, errors)))
            # The ranks that have the error print it; only rank 0 if it is the same on all.
            raised.printed = error is not None and (self.is_rank0 or len(set(errors)) > 1)
            raise raised
        return result


SINGLE_PROCESS = Processes()


def init(timeout: timedelta) -> Processes:
    """Initialize the process group under torchrun; without torchrun return SINGLE_PROCESS.

    ``timeout`` limits how long a collective waits for a rank. CPU tensors use gloo, GPU tensors NCCL. Ranks other
    than 0 log errors only.
    """
    if torchrun_rank() is None:  # Slurm sets WORLD_SIZE in its shells too
        return SINGLE_PROCESS
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    torch.distributed.init_process_group(backend, timeout=timeout)
    processes = Processes(torch.distributed.get_rank(), torch.distributed.get_world_size())
    if not processes.is_rank0:
        logging.getLogger().setLevel(logging.ERROR)
    return processes


def is_peer_failure(error: RuntimeError, processes: Processes) -> bool:
    """Return whether an error means that another rank no longer responds."""
    reported = isinstance(error, torch.distributed.DistError) or "gloo" in str(error) or "Connection" in str(error)
    return processes.count > 1 and reported


def destroy() -> None:
    """Destroy the process group, if :func:`init` made one."""
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def local_gpu(gpu_id: int) -> int:
    """Return the GPU of this process: LOCAL_RANK under torchrun, else ``gpu_id``."""
    local_rank = torchrun_rank("LOCAL_RANK")
    return gpu_id if local_rank is None else local_rank
