"""Averages of the student's weights during training, which validation, checkpoints and evaluations use instead."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from engine.fast.folding import frozen_copy
from engine.fast.frozen import AutocastModel
from engine.fast.precision import PLAIN, Arithmetic


class WeightAverage:
    """A network whose weights are an average of the student's; ``count`` is the number of averaged states.

    The average, ``network``, is in eval mode and starts as a copy of the student. Updates do not wait for the device.
    """

    def __init__(self, student: nn.Module):
        self.network, self.count = frozen_copy(student), 0
        averages, sources = ([*net.parameters(), *net.buffers()] for net in (self.network, student))
        pairs = list(zip(averages, sources, strict=True))
        self._averaged = [(average, source) for average, source in pairs if average.is_floating_point()]
        self._counters = [(average, source) for average, source in pairs if not average.is_floating_point()]

    def after_step(self) -> None:
        """Update the average after a step of the optimizer."""

    def after_epoch(self, epoch: int, images: Iterable[Tensor]) -> None:
        """Update the average after an epoch, counted from 0; a second call for the same epoch changes nothing."""

    @torch.no_grad()
    def _average_in(self, weight: float) -> None:
        """``average = (1 - weight) average + weight student``, BatchNorm's statistics too; its counters are copied."""
        averages, sources = zip(*self._averaged, strict=True)
        torch._foreach_lerp_(averages, sources, weight)
        for counter, source in self._counters:
            counter.copy_(source)


class Ema(WeightAverage):
    """Exponential moving average: ``average = d average + (1 - d) student`` after every step.

    ``d = min(tau, (1 + k) / (10 + k))`` after step k, counted from 1, so that early weights are forgotten quickly.

    Source: Rebuffi et al., "Fixing Data Augmentation to Improve Adversarial Robustness" (2021); k from 1 as in the code
    of Wang et al., "Better Diffusion Models Further Improve Adversarial Training" (ICML 2023).
    """

    def __init__(self, student: nn.Module, tau: float):
        super().__init__(student)
        self.tau = tau

    def after_step(self) -> None:
        """Average the new weights in."""
        self.count += 1
        self._average_in(1 - min(self.tau, (1 + self.count) / (10 + self.count)))


class Swa(WeightAverage):
    """Stochastic weight averaging: the mean of the weights at the ends of the epochs from ``start``, counted from 0.

    Before ``start`` it is a copy of the student. ``arithmetic`` is how the forward passes that estimate BatchNorm's
    statistics compute.

    Source: Izmailov et al., "Averaging Weights Leads to Wider Optima and Better Generalization" (UAI 2018).
    """

    def __init__(self, student: nn.Module, start: int, arithmetic: Arithmetic = PLAIN):
        super().__init__(student)
        self.start, self.arithmetic = start, arithmetic

    def after_epoch(self, epoch: int, images: Iterable[Tensor]) -> None:
        """Average the weights in, then estimate BatchNorm's statistics on batches of ``images`` (B, C, H, W)."""
        number = epoch + 1 - self.start
        if number < 1:
            self._average_in(1.0)
            return
        if self.count < number:  # false after resuming from a state saved while the statistics were estimated
            self._average_in(1 / number)
            self.count = number
        estimate_statistics(self.network, images, self.arithmetic)


@torch.no_grad()
def estimate_statistics(network: nn.Module, images: Iterable[Tensor], arithmetic: Arithmetic = PLAIN) -> None:
    """Set BatchNorm's running statistics to their mean over images, batch by batch; leave the network in eval mode."""
    norms = [module for module in network.modules() if isinstance(module, _BatchNorm) and module.track_running_stats]
    if not norms:
        return
    momenta, seen = [norm.momentum for norm in norms], 0
    for norm in norms:
        norm.reset_running_stats()
    network.train()
    for x in images:
        seen += len(x)
        for norm in norms:
            norm.momentum = len(x) / seen
        AutocastModel(network, arithmetic)(x)
    network.eval()
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
