"""Random seeds."""

import hashlib
import random

import numpy as np
import torch


def seed_everything(seed: int) -> None:
    """Seed Python, NumPy and PyTorch on every device."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def derive_seed(seed: int, stream: str, *position: int) -> int:
    """Return the 32-bit seed of a stream of random numbers at a position, for example (epoch, batch).

    No state is carried from one position to the next, so a resumed run needs only the position. The arguments are
    hashed: PyTorch's CPU generator uses 32 bits of a seed, for which sums of small numbers would collide.
    """
    digest = hashlib.blake2b(repr((seed, stream, *position)).encode(), digest_size=4).digest()
    return int.from_bytes(digest, "big")
