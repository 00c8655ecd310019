"""Learning rate as a pure function of the epoch (counted from 0)."""

import math
from collections.abc import Sequence

WARMUP_START = 0.001  # official: the rate rises from here
COSINE_FLOOR = 1e-4  # official: cosine never falls below


def default_milestones(epochs: int) -> tuple[int, ...]:
    """Half and three quarters of the run, rounded up: 100 and 150 of 200, as in the papers."""
    return tuple(dict.fromkeys((math.ceil(epochs / 2), math.ceil(3 * epochs / 4))))  # of one epoch they are one


def piecewise(epoch: int, epochs: int, lr_max: float, milestones: Sequence[int]) -> float:
    """``lr_max``, divided by 10 at each milestone that has been reached."""
    return lr_max / 10 ** sum(epoch >= milestone for milestone in milestones)


def cosine(epoch: int, epochs: int, lr_max: float, milestones: Sequence[int]) -> float:
    """Half a cosine from ``lr_max`` down to the floor."""
    return max(lr_max * 0.5 * (1 + math.cos(math.pi * epoch / epochs)), min(COSINE_FLOOR, lr_max))


def constant(epoch: int, epochs: int, lr_max: float, milestones: Sequence[int]) -> float:
    """``lr_max`` throughout."""
    return lr_max


SCHEDULES = {"piecewise": piecewise, "cosine": cosine, "constant": constant}


def learning_rate(
    epoch: int,
    *,
    epochs: int,
    lr_max: float,
    schedule: str = "piecewise",
    milestones: Sequence[int] | None = None,
    warmup_epochs: int = 0,
) -> float:
    """Learning rate of one epoch.

    ``warmup_epochs`` > 0 raises the rate linearly from 0.001 to ``lr_max`` first; cosine then falls over the rest,
    while milestones keep their epochs. Source: ``lr_decay`` of the official DGAD code.
    """
    if epoch < warmup_epochs:
        return WARMUP_START + epoch / warmup_epochs * (lr_max - WARMUP_START)
    shift = warmup_epochs if schedule == "cosine" else 0
    return SCHEDULES[schedule](epoch - shift, epochs - shift, lr_max, milestones or default_milestones(epochs))
