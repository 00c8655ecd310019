"""Adversarial weight perturbation (AWP): a step's gradient is computed at weights that increase its loss."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

TINY = 1e-20  # added to the norm of a gradient that may be 0 (official)


class WeightPerturbation:
    """Adds ``v = gamma ||w|| g / ||g||`` to the weights w of convolutions and linear layers, g their gradients.

    Norms are over a layer's whole weight tensor; biases and BatchNorm are not perturbed. The optimizer steps from
    ``w + v``; its update is then applied to ``w``.

    Args:
        student: Network that is trained.
        gamma: Size of v relative to w.
        start: First epoch with AWP, from 0.

    Source: Wu et al., "Adversarial Weight Perturbation Helps Robust Generalization", NeurIPS 2020, equations 8 and 10.
    """

    def __init__(self, student: nn.Module, gamma: float, start: int = 0):
        self.student, self.gamma, self.start = student, gamma, start
        self.weights = [value for name, value in student.named_parameters() if "weight" in name and value.ndim > 1]
        self._original, self._perturbed = [], []

    @torch.no_grad()
    def perturb(self) -> None:
        """Add v to the weights, from their gradients."""
        self._original = [weight.clone() for weight in self.weights]
        for weight in self.weights:
            if weight.grad is not None:
                weight += weight.grad * (self.gamma * weight.norm() / (weight.grad.norm() + TINY))
        self._perturbed = [weight.clone() for weight in self.weights]

    @torch.no_grad()
    def restore(self) -> None:
        """Remove v after the optimizer's step; a weight without an update gets back exactly its old value."""
        torch._foreach_sub_(self.weights, self._perturbed)
        torch._foreach_add_(self.weights, self._original)
        self._original, self._perturbed = [], []

    def untracked(self, network: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        """Return a function that calls ``network``, which calls the student, and keeps BatchNorm's statistics."""
        norms = [m for m in self.student.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]

        def forward(x: Tensor) -> Tensor:
            for norm in norms:
                norm.track_running_stats = False
            logits = network(x)
            for norm in norms:
                norm.track_running_stats = True
            return logits

        return forward
