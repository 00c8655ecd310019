"""Learning rate as a pure function of the epoch, counted from 0."""

import math

from utils.config import TrainConfig

WARMUP_START = 0.001  # official
COSINE_FLOOR = 1e-4  # official: cosine never decreases below it


def default_milestones(epochs: int) -> tuple[int, ...]:
    """Half and three quarters of the run, rounded up: 100 and 150 of 200, as in the papers."""
    return tuple(dict.fromkeys((math.ceil(epochs / 2), math.ceil(3 * epochs / 4))))  # equal if there is one epoch


def cosine(epoch: int, epochs: int, lr_max: float) -> float:
    """Half a cosine from ``lr_max`` down to the floor."""
    return max(lr_max * 0.5 * (1 + math.cos(math.pi * epoch / epochs)), min(COSINE_FLOOR, lr_max))


def onecycle(epoch: float, epochs: int, lr_max: float) -> float:
    """Half a cosine up from ``lr_max / 25`` in the first 2.5 % of the epochs, then one down to ``lr_max / 250000``.

    PyTorch's ``OneCycleLR`` with one step per epoch, as Wang et al. (ICML 2023) use it, but with constant momentum.
    """
    peak, last = max(0.025 * epochs - 1, 0), max(epochs - 1, 1)
    if epoch < peak:
        start, end, share = lr_max / 25, lr_max, epoch / peak
    else:
        start, end, share = lr_max, lr_max / 250_000, (epoch - peak) / (last - peak)
    return end + (start - end) * 0.5 * (1 + math.cos(math.pi * share))


def cyclic(epoch: float, epochs: int, lr_max: float) -> float:
    """Linear from 0 to ``lr_max`` at 2/5 of the run, then linear to 0 (Rice et al., ICML 2020)."""
    peak = 0.4 * epochs
    return lr_max * (epoch / peak if epoch < peak else (epochs - epoch) / (epochs - peak))


ANNEALING = {"cosine": cosine, "onecycle": onecycle, "cyclic": cyclic}  # rates that depend on the number of epochs


def epsilon_scale(epoch: int, config: TrainConfig) -> float:
    """Return the factor of radius and step size in an epoch: ``--epsilon_ramp`` increases it linearly to 1."""
    return min(1.0, (epoch + 1) / max(config.epsilon_ramp, 1))


def learning_rate(epoch: int, config: TrainConfig, done: float = 0.0) -> float:
    """Return the learning rate of an epoch; of cyclic, which changes every step, after ``done`` (0 to 1) of the epoch.

    ``--warmup_lr`` first increases the rate linearly from 0.001 to ``lr_max``; cosine then decreases over the remaining
    epochs, while milestones keep their epochs. Source: ``lr_decay`` of the official DGAD code.
    """
    now = epoch + (done if config.lr_schedule == "cyclic" else 0)
    warmup = config.warmup_lr_epochs if config.warmup_lr else 0
    if epoch < warmup:
        return WARMUP_START + now / warmup * (config.lr_max - WARMUP_START)
    if config.lr_schedule in ANNEALING:
        return ANNEALING[config.lr_schedule](now - warmup, config.epochs - warmup, config.lr_max)
    if config.lr_schedule == "constant":
        return config.lr_max
    milestones = default_milestones(config.epochs) if config.milestones is None else config.milestones
    return config.lr_max / 10 ** sum(epoch >= milestone for milestone in milestones)
