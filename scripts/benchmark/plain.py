"""The plain reference of the benchmarks: a training step structured as in the official codes.

float32, channels-first, eager, BatchNorm not folded, parameters that require gradients during the attack. A training
step allows TF32, as PyTorch does by default for convolutions on a GPU.
"""

from copy import deepcopy

import torch
from torch import Tensor

from engine.device import allow_tf32
from methods.losses import Setup, set_up


class Trainer:
    """The training step of the official codes, with this project's methods and losses.

    The attack runs the networks themselves: the student in the mode that the method requests, its parameters requiring
    gradients. Arguments are those of engine.training.trainer.Trainer.
    """

    def __init__(self, student, teachers, method, optimizer, *, epsilon: float, step_size: float, steps: int):
        self.student, self.teachers, self.method, self.optimizer = student, teachers, method, optimizer
        self.epsilon, self.step_size, self.steps = epsilon, step_size, steps
        set_up(method, optimizer, Setup(student, lambda: deepcopy(student), lambda network: network, 1))

    def attack(self, objective, x: Tensor, *, noise, clamp: bool = False, bn: str = "eval") -> Tensor:
        """Adversarial images (B, C, H, W) that maximize ``objective(student, *teachers)``."""
        self.student.train(bn == "train")
        x_adv = x + noise(x, self.epsilon, None)
        x_adv = x_adv.clamp(0, 1) if clamp else x_adv
        losses = objective(self.student, *self.teachers)
        for _ in range(self.steps):
            x_adv = x_adv.detach().requires_grad_()
            (gradient,) = torch.autograd.grad(losses(x_adv).sum(), x_adv)
            x_adv = x_adv.detach() + self.step_size * gradient.sign()
            x_adv = torch.min(torch.max(x_adv, x - self.epsilon), x + self.epsilon).clamp(0, 1)
        self.student.train()
        return x_adv.detach()

    def step(self, x: Tensor, y: Tensor, epoch: int = 0) -> None:
        """Perform one optimizer step on images (B, C, H, W) and labels (B,)."""
        self.student.train()
        with allow_tf32(x.is_cuda):
            result = self.method(self.student, *self.teachers, self.attack, x, y, epoch)
            self.optimizer.zero_grad()
            result.loss.backward()
        self.optimizer.step()
        getattr(self.method, "after_step", lambda: None)()
