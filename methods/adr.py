"""ADR: Wu et al., "Annealing Self-Distillation Rectification Improves Adversarial Training", ICLR 2024."""

import math
from copy import deepcopy

import torch

from attacks.objectives import cross_entropy
from attacks.pgd import uniform
from methods.losses import Step, as_probabilities

DECAY = 0.995  # of the average (official)
# Temperature from high to low, lambda from low to high (official).
SCHEDULE = {
    "CIFAR10": {"temp_high": 2.5, "temp_low": 2.0, "lambda_low": 0.7, "lambda_high": 0.95},
    "CIFAR100": {"temp_high": 1.5, "temp_low": 1.0, "lambda_low": 0.7, "lambda_high": 0.95},
    "Tiny_Image": {"temp_high": 2.0, "temp_low": 1.5, "lambda_low": 0.5, "lambda_high": 0.9},
}


class ADR:
    """AT on soft labels from an exponential moving average of the student.

    The state is the average, with its own BatchNorm statistics, and the number of steps.
    """

    def __init__(self, *, epochs, **schedule):
        self.keywords = {"epochs": epochs, **schedule}
        self.steps = 0

    def setup(self, setup):
        """Receive a :class:`~methods.losses.Setup`."""
        self.student, self.total = setup.student, self.keywords["epochs"] * setup.steps_per_epoch
        self.average = deepcopy(setup.student).eval().requires_grad_(False)
        self.teacher = setup.forward(self.average)

    def __call__(self, student, attack, x, y, epoch):
        """Forward of the average: x; of the student: 10 of the attack, x'."""
        temperature, lam = annealed(self.steps / self.total, self.keywords)
        with torch.no_grad():
            labels = rectified_labels(self.teacher(x), y, temperature=temperature, lam=lam)
        x_adv = attack(lambda s: lambda z: cross_entropy(s(z), labels), x, noise=uniform, clamp=True, bn="train")
        adv = student(x_adv)
        return Step(adr_loss(adv, labels), adv=adv)

    @torch.no_grad()
    def after_step(self):
        """Update the average after the optimizer's step, BatchNorm statistics included."""
        self.steps += 1
        averages, values = (
            [value for value in network.state_dict().values() if value.is_floating_point()]
            for network in (self.average, self.student)
        )
        torch._foreach_lerp_(averages, values, 1 - DECAY)

    def state_dict(self):
        """Return the state to resume from."""
        return {"average": self.average.state_dict(), "steps": self.steps}

    def load_state_dict(self, state):
        """Load a state of :meth:`state_dict`; raises RuntimeError for another network."""
        self.average.load_state_dict(state["average"])
        self.steps = state["steps"]


def annealed(progress, schedule):
    """Return temperature and lambda at ``progress`` of the run, in [0, 1]."""
    factor = (1 + math.cos(math.pi * progress)) / 2  # from 1 to 0
    temperature = schedule["temp_low"] + (schedule["temp_high"] - schedule["temp_low"]) * factor
    return temperature, schedule["lambda_high"] + (schedule["lambda_low"] - schedule["lambda_high"]) * factor


def rectified_labels(t_ema, y, *, temperature, lam):
    """``m p + (1 - m) onehot(y)``, p = softmax(t / T), m = clip(lambda - (max p - p_y), 0, 1) per image.

    The less the average prefers a wrong class, the softer the label. Logits (B, C), labels (B,) or (B, C) -> (B, C).
    """
    p = (t_ema / temperature).softmax(1)
    labels = as_probabilities(y, p)
    mixing = (lam - (p.amax(1) - (p * labels).sum(1))).clamp(0, 1)[:, None]
    return mixing * p + (1 - mixing) * labels


def adr_loss(adv, labels):
    """Mean cross entropy of logits (B, C) and soft labels (B, C)."""
    return cross_entropy(adv, labels).mean()
