"""Pieces that several methods share: KL divergence, label swapping, the result of a step or of an attack, state."""

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Step(NamedTuple):
    """The result of a method for one batch: its loss, and the logits (B, C) computed for it.

    ``clean`` and ``adv`` are logits of the student, ``t_clean`` and ``t_adv`` of the robust teacher on the same images.
    They are only logged. A method omits logits that its paper does not compute: every forward pass of the student in
    train mode updates the BatchNorm statistics, and every forward pass of a teacher takes time.
    """

    loss: Tensor
    clean: Tensor | None = None
    adv: Tensor | None = None
    t_clean: Tensor | None = None
    t_adv: Tensor | None = None


class Setup(NamedTuple):
    """What a method with state receives before the first step."""

    student: nn.Module  # the network that is trained; the method's argument ``student`` wraps it
    make_network: Callable[[], nn.Module]  # creates a network of the student's architecture, with new weights
    forward: Callable[[nn.Module], Callable[[Tensor], Tensor]]  # network -> its forward pass in training's precision
    steps_per_epoch: int


def set_up(method, optimizer: torch.optim.Optimizer, setup: Setup) -> None:
    """Call ``method.setup`` if there is one, and give the optimizer ``method.parameters()`` if there are any."""
    if hasattr(method, "setup"):
        method.setup(setup)
    if hasattr(method, "parameters"):
        optimizer.add_param_group({"params": list(method.parameters())})


def concatenate(results: list[Step], weights: list[float]) -> Step:
    """Join the results of parts of a batch; the loss is their mean with ``weights``."""
    if len(results) == 1:
        return results[0]
    loss = sum(result.loss * weight for result, weight in zip(results, weights, strict=True)) / sum(weights)
    _, *logits = zip(*results, strict=True)
    return Step(loss, *(None if parts[0] is None else torch.cat(parts) for parts in logits))


class Recording:
    """Results of an attack to be used twice: :meth:`record` computes them, :meth:`replay` returns them in order."""

    def __init__(self, attack: Callable[..., Tensor]):
        self.attack, self.results = attack, []

    def record(self, *args, **options) -> Tensor:
        """Attack, and keep the adversarial images."""
        self.results.append(self.attack(*args, **options))
        return self.results[-1]

    def replay(self, *args, **options) -> Tensor:
        """Return the images that the attack computed."""
        return self.results.pop(0)


def update_batchnorm(student, x) -> None:
    """Forward ``x`` without gradient, only to update the BatchNorm statistics, as an official loss does."""
    with torch.no_grad():
        student(x)


def kl(target: Tensor, logits: Tensor, temperature: float = 1.0) -> Tensor:
    """Return ``KL(softmax(target / T) || softmax(logits / T))`` per image, (B,); both arguments are logits (B, C).

    Gradients flow into both. Log-probabilities on both sides keep value and gradient finite if a probability underflows
    to exactly 0: its summand is then 0, as by definition.
    """
    log_p = F.log_softmax(target / temperature, dim=1)
    log_q = F.log_softmax(logits / temperature, dim=1)
    return (log_p.exp() * (log_p - log_q)).sum(1)


def reliability(t_adv: Tensor, y: Tensor, beta: float) -> Tensor:
    """Return IAD's ``A = softmax(t')[y] ** beta`` per adversarial image, (B,), without gradient."""
    return t_adv.detach().softmax(1).gather(1, y[:, None]).squeeze(1) ** beta


def term_weights(alpha, own, *, label_weight=None, self_weight=None, teacher_weight=None) -> tuple:
    """Return the weights of cross entropy, self term and teacher's term: 1 - alpha, ``own`` and alpha for None."""
    label_weight = 1 - alpha if label_weight is None else label_weight
    self_weight = own if self_weight is None else self_weight
    return label_weight, self_weight, alpha if teacher_weight is None else teacher_weight


def swap(logits: Tensor, y: Tensor) -> Tensor:
    """Swap the label's logit with the largest other logit if that one is strictly larger.

    The label becomes the prediction, and every other class keeps its probability: error-corrective label swapping
    (Park & Min, ECCV 2024). A tie is unchanged. Logits (B, C), labels (B,) -> logits (B, C).
    """
    label = y[:, None]
    label_logit = logits.gather(1, label)
    largest_other, rival = logits.scatter(1, label, -torch.inf).max(1, keepdim=True)
    swapped = logits.scatter(1, label, largest_other).scatter(1, rival, label_logit)
    return torch.where(label_logit < largest_other, swapped, logits)


def as_probabilities(y, logits):
    """Return labels y, (B,) or mixed (B, C), as probabilities (B, C) in the type of ``logits``.

    F.one_hot would read the labels on the host.
    """
    return y if y.ndim == 2 else (y[:, None] == torch.arange(logits.shape[1], device=y.device)).to(logits.dtype)
