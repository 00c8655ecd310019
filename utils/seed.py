"""Every source of chance of a run, as a function of its seed."""

import random

import numpy as np
import torch

EPOCHS = 2**20  # more than any run has: seeds of one epoch never reach those of the next seed


def seed_everything(seed: int) -> None:
    """Seed Python, NumPy and PyTorch on every device."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def epoch_seed(seed: int, epoch: int, stream: int) -> int:
    """The seed of one of a run's streams of chance (0 to 7) in one epoch; no two of them coincide.

    Since no state goes from one epoch to the next, resuming after an epoch needs nothing but its number.
    """
    return (seed * EPOCHS + epoch) * 8 + stream
