"""Averages of the student's weights over training, which validation, checkpoints and evaluations use in its place."""

import torch
from torch import nn

from engine.fast.folding import frozen_copy


class Ema:
    """Exponential moving average of the weights: ``average = d average + (1 - d) student`` after every step.

    ``d = min(tau, (1 + k) / (10 + k))`` after step k, counted from 1: early weights are soon forgotten. BatchNorm's
    statistics are averaged with the rest; its counters are copied. The device is never waited for.

    Args:
        student: Network that is trained; the average, ``network``, starts as a copy of it in eval mode.
        tau: Largest decay, below 1.

    Source: Rebuffi et al., "Fixing Data Augmentation to Improve Adversarial Robustness" (2021); k from 1 as in the code
    of Wang et al., "Better Diffusion Models Further Improve Adversarial Training" (ICML 2023).
    """

    def __init__(self, student: nn.Module, tau: float):
        self.network, self.tau, self.count = frozen_copy(student), tau, 0
        tensors = [[*net.parameters(), *net.buffers()] for net in (self.network, student)]
        self._averages, self._sources = ([t for t in each if t.is_floating_point()] for each in tensors)
        self._counters, self._counted = ([t for t in each if not t.is_floating_point()] for each in tensors)

    @torch.no_grad()
    def update(self) -> None:
        """Average the student's current weights in."""
        self.count += 1
        decay = min(self.tau, (1 + self.count) / (10 + self.count))
        torch._foreach_lerp_(self._averages, self._sources, 1 - decay)
        for counter, counted in zip(self._counters, self._counted, strict=True):
            counter.copy_(counted)
