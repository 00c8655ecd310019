"""What to say when a GPU has no room for a batch."""

import torch

from data.loader import Batches
from engine.distributed import Processes
from engine.training.trainer import Trainer


def advice(trainer: Trainer, batches: Batches, epoch: int, processes: Processes) -> str:
    """One line with a batch size that fits: tried by training steps, so the run is over afterwards.

    Several processes cannot try without each other, so there half the batch is only proposed.
    """
    batch_size = batches.batch_size
    wrong = f"--bs {batch_size}: the GPU's memory does not hold a training step of so many images"
    if processes.count > 1:
        return f"{wrong}; try --bs {batch_size // 2}, or more processes"
    x, y = next(iter(batches))
    n = len(y)
    while n := n // 2:
        torch.cuda.empty_cache()
        if _fits(trainer, x[:n], y[:n], epoch):
            return f"{wrong}; --bs {n} fits"
    return f"{wrong}, nor of one; take a smaller network, or --device cpu"


def _fits(trainer: Trainer, x: torch.Tensor, y: torch.Tensor, epoch: int) -> bool:
    try:
        trainer.step(x, y, epoch)
    except torch.OutOfMemoryError:
        return False
    return True
