"""The processes of a torchrun, or the one process that there is without it."""

import os
from collections.abc import Callable, Iterable, Sequence
from datetime import timedelta
from typing import Any, NamedTuple

import torch
import torch.distributed
from torch import Tensor

from utils.errors import UserError

# Evaluations only meet at the end of an attack, when one may have hours left to another; in training all keep step.
EVALUATION_PATIENCE, TRAINING_PATIENCE = timedelta(days=30), timedelta(minutes=30)


class Part(NamedTuple):
    """One process's part of a batch of ``whole`` images: its ``rows``, and the weight of their mean in the batch's.

    Where there are fewer images than processes, each takes ``all_alike``: the whole batch, with an equal weight.
    """

    rows: slice
    whole: int
    share: float
    all_alike: bool = False


class Processes(NamedTuple):
    """This process's number and how many share the work."""

    rank: int = 0
    count: int = 1

    @property
    def first(self) -> bool:
        """Whether this is the process that writes files and speaks."""
        return self.rank == 0

    def rows(self, n: int) -> slice:
        """This process's rows of ``n``: consecutive, and as many as another's or one more or less, maybe none."""
        return slice(n * self.rank // self.count, n * (self.rank + 1) // self.count)

    def part(self, n: int) -> Part:
        """This process's part of a training batch of ``n`` images; never empty, for a mean over none is none."""
        if n < self.count:
            return Part(slice(0, n), n, 1 / self.count, all_alike=True)
        rows = self.rows(n)
        return Part(rows, n, (rows.stop - rows.start) / n)

    def total(self, values: Tensor) -> Tensor:
        """Sum of a CPU tensor over all processes."""
        if self.count > 1:
            torch.distributed.all_reduce(values)
        return values

    def largest(self, values: Sequence[int]) -> list[int]:
        """The largest of each value over all processes, so that all act alike on what one has seen."""
        if self.count == 1:
            return list(values)
        seen = torch.tensor(values)
        torch.distributed.all_reduce(seen, torch.distributed.ReduceOp.MAX)
        return seen.tolist()

    def spread(self, tensors: Iterable[Tensor]) -> None:
        """Overwrite tensors by those of the first process."""
        if self.count > 1:
            for tensor in tensors:
                torch.distributed.broadcast(tensor, src=0)

    def from_first(self, work: Callable[[], Any]) -> Any:
        """What ``work`` returns in the first process, alone to call it; its UserError is raised in all."""
        if self.count == 1:
            return work()
        outcome = [None, None]
        if self.first:
            try:
                outcome[0] = work()
            except UserError as error:
                outcome[1] = str(error)
        torch.distributed.broadcast_object_list(outcome)
        if outcome[1] is not None:
            raise UserError(outcome[1])
        return outcome[0]

    def in_turn(self, work: Callable[[], Any]) -> Any:
        """Call ``work`` in the first process of each machine, then in its others: they find what it left on the disk.

        A UserError of any process is raised in all.
        """
        if self.count == 1:
            return work()
        ahead = os.environ["LOCAL_RANK"] == "0"
        first, then = (self.together(lambda mine=mine: work() if mine else None) for mine in (ahead, not ahead))
        return first if ahead else then

    def together(self, work: Callable[[], Any]) -> Any:
        """Call ``work``, which waits for no other process, in each of them; a UserError of any is raised in all."""
        if self.count == 1:
            return work()
        done, trouble = None, None
        try:
            done = work()
        except UserError as error:
            trouble = str(error)
        troubles = [None] * self.count
        torch.distributed.all_gather_object(troubles, trouble)
        for text in filter(None, troubles):
            raise UserError(text)
        return done


ALONE = Processes()


def join(patience: timedelta) -> Processes:
    """Join the processes that torchrun started; alone where it did not. ``patience`` is how long one waits for another.

    Tensors of the CPU go through gloo, those of a GPU through NCCL.
    """
    if not torch.distributed.is_torchelastic_launched():  # Slurm sets WORLD_SIZE in its shells too
        return ALONE
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    torch.distributed.init_process_group(backend, timeout=patience)
    return Processes(torch.distributed.get_rank(), torch.distributed.get_world_size())


def lost(error: RuntimeError, processes: Processes) -> bool:
    """Whether an error says that another process does not answer any more."""
    reported = isinstance(error, torch.distributed.DistError) or "gloo" in str(error) or "Connection" in str(error)
    return processes.count > 1 and reported


def leave() -> None:
    """End what :func:`join` began."""
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def gpu_of(gpu_id: int) -> int:
    """The GPU of this process: the one that was asked for, under torchrun the one of its place on the machine."""
    return int(os.environ.get("LOCAL_RANK", gpu_id))
