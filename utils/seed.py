"""Every source of chance of a run, as a function of its seed."""

import hashlib
import random

import numpy as np
import torch


def seed_everything(seed: int) -> None:
    """Seed Python, NumPy and PyTorch on every device."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def derive_seed(seed: int, stream: str, *place: int) -> int:
    """The seed of one of a run's streams of chance at one place, for example (epoch, batch).

    Since no state goes from one place to the next, resuming there needs nothing but its numbers. Hashed, for PyTorch's
    generator of the CPU reads 32 bits alone, where sums of small numbers would meet each other.
    """
    digest = hashlib.blake2b(repr((seed, stream, *place)).encode(), digest_size=4).digest()
    return int.from_bytes(digest, "big")
