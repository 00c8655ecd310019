"""The few pieces that several methods share: KL divergence, the exchange of two logits, what a step returns."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class Step(NamedTuple):
    """What a method returns for one batch: its loss, and the logits (B, C) that it computed on the way.

    ``clean`` and ``adv`` are the student's, ``t_clean`` and ``t_adv`` the robust teacher's on the same images. They are
    only logged; a method leaves out what its paper does not forward, because every forward of the student in train mode
    moves the BatchNorm statistics, and every forward of a teacher takes time.
    """

    loss: Tensor
    clean: Tensor | None = None
    adv: Tensor | None = None
    t_clean: Tensor | None = None
    t_adv: Tensor | None = None


def repeat_forward(student, x) -> None:
    """Forward ``x`` once more for BatchNorm's sake, where an official loss does so; its logits would be the same."""
    with torch.no_grad():
        student(x)


def kl(target: Tensor, logits: Tensor, temperature: float = 1.0) -> Tensor:
    """KL(softmax(target / T) || softmax(logits / T)) of every image, (B,); both arguments are logits (B, C).

    Gradients flow into both. Log-probabilities on both sides keep value and gradient finite where a probability
    underflows to exactly 0: there the summand is 0, as by definition.
    """
    log_p = F.log_softmax(target / temperature, dim=1)
    log_q = F.log_softmax(logits / temperature, dim=1)
    return (log_p.exp() * (log_p - log_q)).sum(1)


def swap(logits: Tensor, y: Tensor) -> Tensor:
    """Exchange the label's logit with the largest other one wherever that one is strictly larger.

    So the label becomes the prediction and every other class keeps its probability (error-corrective label swapping,
    Park & Min, ECCV 2024). A tie is left alone. Logits (B, C), labels (B,) -> logits (B, C).
    """
    label = y[:, None]
    of_label = logits.gather(1, label)
    others = logits.scatter(1, label, -torch.inf)
    largest, rival = others.max(1, keepdim=True)
    exchanged = logits.scatter(1, label, largest).scatter(1, rival, of_label)
    return torch.where(of_label < largest, exchanged, logits)
