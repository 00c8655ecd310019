"""The training loop: one step reads like the papers' algorithm boxes, one epoch never waits for the device."""

from collections.abc import Iterable, Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

from attacks.pgd import Noise, gaussian, pgd
from engine.precision import PLAIN, Arithmetic
from engine.views import Frozen, Live, View
from methods.losses import Step


class EpochMeans(NamedTuple):
    """Means over one training epoch; an accuracy, in percent, is None where the method computes no such logits."""

    loss: float
    clean_acc: float | None
    adv_acc: float | None


class Trainer:
    """Trains ``student`` with a method of :mod:`methods`, from any number of frozen teachers.

    Args:
        student: Any network from images (B, C, H, W) in [0, 1] to logits (B, K); trained in place.
        teachers: Networks in eval mode that the method receives after the student.
        method: ``method(student, *teachers, attack, x, y, epoch) -> Step``.
        optimizer: Optimizer of the student's parameters.
        epsilon: Radius of the inner attack's ball, in [0, 1].
        step_size: Length of its steps, in [0, 1].
        steps: Number of its steps.
        attack_bn: "eval" or "train" overrides the BatchNorm mode that the method asks for in its attack.
        generator: Source of the start noise, on the images' device; None takes PyTorch's own.
        arithmetic: Of every forward and backward pass; weights, losses and the optimizer stay as they are.
    """

    def __init__(
        self,
        student: nn.Module,
        teachers: Sequence[nn.Module],
        method,
        optimizer: torch.optim.Optimizer,
        *,
        epsilon: float,
        step_size: float,
        steps: int,
        attack_bn: str | None = None,
        generator: torch.Generator | None = None,
        arithmetic: Arithmetic = PLAIN,
    ):
        self.student, self.teachers, self.method, self.optimizer = student, tuple(teachers), method, optimizer
        if arithmetic.channels_last:
            student.to(memory_format=torch.channels_last)
        self.live, self.frozen = Live(student, arithmetic), Frozen(student, arithmetic)
        self.still = View(student, arithmetic)  # the student with BatchNorm in eval mode, refreshed for each attack
        self.guides = tuple(View(teacher, arithmetic) for teacher in teachers)
        self.climb = partial(pgd, epsilon=epsilon, step_size=step_size, steps=steps)
        self.epsilon, self.attack_bn, self.generator = epsilon, attack_bn, generator

    def attack(
        self,
        objective,
        x: Tensor,
        *,
        noise: Noise = gaussian,
        clamp: bool = False,
        bn: str = "eval",
        start_noise: Tensor | None = None,
    ) -> Tensor:
        """Adversarial images (B, C, H, W) that climb ``objective(student, *teachers)``, a function of images.

        ``objective`` is handed views of the networks: constant parameters, the student's BatchNorm in ``bn`` mode.
        ``start_noise`` is added to the images in place of a draw from ``noise``; ``clamp`` puts the start back into
        [0, 1].
        """
        climbed = self.frozen
        if (self.attack_bn or bn) == "eval":
            self.still.refresh()
            climbed = self.still
        delta = noise(x, self.epsilon, self.generator) if start_noise is None else start_noise
        start = (x + delta).clamp(0, 1) if clamp else x + delta
        return self.climb(objective(climbed, *self.guides), x, start)

    def step(self, x: Tensor, y: Tensor, epoch: int = 0, start_noise: Tensor | None = None) -> Step:
        """One optimizer step on images (B, C, H, W) and labels (B,); ``start_noise`` replaces the attack's own draw."""
        self.student.train()
        attack = partial(self.attack, start_noise=start_noise)
        outcome = self.method(self.live, *self.guides, attack, x, y, epoch)
        self.optimizer.zero_grad()
        outcome.loss.backward()
        self.optimizer.step()
        # Detached: logits that the loss leaves out would keep their whole forward alive through the next attack.
        return Step(*(None if value is None else value.detach() for value in outcome))

    def restore(self, state: dict) -> None:
        """Put student and optimizer back as a last checkpoint holds them."""
        self.student.load_state_dict(state["net"])
        self.optimizer.load_state_dict(state["optimizer"])

    def epoch(self, batches: Iterable[tuple[Tensor, Tensor]], epoch: int, lr: float) -> EpochMeans:
        """One pass over the training set at learning rate ``lr``."""
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        loss, clean, adv, n = 0, None, None, 0
        for x, y in batches:  # sums stay on the device: the host reads them once, after the last batch
            outcome = self.step(x, y, epoch)
            loss = loss + outcome.loss.double() * len(y)
            clean = _count(clean, outcome.clean, y)
            adv = _count(adv, outcome.adv, y)
            n += len(y)
        return EpochMeans(float(loss) / n, _percent(clean, n), _percent(adv, n))


def _count(so_far, logits, y):
    if logits is None:
        return None
    correct = (logits.argmax(1) == y).sum()
    return correct if so_far is None else so_far + correct


def _percent(count, n):
    return None if count is None else 100 * int(count) / n
