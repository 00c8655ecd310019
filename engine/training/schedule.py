"""Learning rate as a pure function of the epoch, counted from 0."""

import math
from collections.abc import Sequence

from utils.config import TrainConfig

WARMUP_START = 0.001  # official
COSINE_FLOOR = 1e-4  # official: cosine never decreases below it


def default_milestones(epochs: int) -> tuple[int, ...]:
    """Half and three quarters of the run, rounded up: 100 and 150 of 200, as in the papers."""
    return tuple(dict.fromkeys((math.ceil(epochs / 2), math.ceil(3 * epochs / 4))))  # equal if there is one epoch


def piecewise(epoch: int, epochs: int, lr_max: float, milestones: Sequence[int]) -> float:
    """``lr_max``, divided by 10 at each milestone."""
    return lr_max / 10 ** sum(epoch >= milestone for milestone in milestones)


def cosine(epoch: int, epochs: int, lr_max: float, milestones: Sequence[int]) -> float:
    """Half a cosine from ``lr_max`` down to the floor."""
    return max(lr_max * 0.5 * (1 + math.cos(math.pi * epoch / epochs)), min(COSINE_FLOOR, lr_max))


def constant(epoch: int, epochs: int, lr_max: float, milestones: Sequence[int]) -> float:
    """``lr_max`` in every epoch."""
    return lr_max


SCHEDULES = {"piecewise": piecewise, "cosine": cosine, "constant": constant}


def learning_rate(epoch: int, config: TrainConfig) -> float:
    """Learning rate of one epoch of a run.

    ``--warmup_lr`` first increases the rate linearly from 0.001 to ``lr_max``; cosine then decreases over the remaining
    epochs, while milestones keep their epochs. Source: ``lr_decay`` of the official DGAD code.
    """
    warmup = config.warmup_lr_epochs if config.warmup_lr else 0
    if epoch < warmup:
        return WARMUP_START + epoch / warmup * (config.lr_max - WARMUP_START)
    shift = warmup if config.lr_schedule == "cosine" else 0
    milestones = default_milestones(config.epochs) if config.milestones is None else config.milestones
    return SCHEDULES[config.lr_schedule](epoch - shift, config.epochs - shift, config.lr_max, milestones)
