"""MART: Wang et al., "Improving Adversarial Robustness Requires Revisiting Misclassified Examples", ICLR 2020."""

import torch
import torch.nn.functional as F

from attacks.objectives import cross_entropy
from attacks.pgd import gaussian
from methods.losses import Step, kl


def mart(student, attack, x, y, epoch, *, beta):
    """Adversarial training with a KL regularizer whose weight is the clean image's ``1 - softmax(s)[y]``."""
    x_adv = attack(lambda s: lambda z: cross_entropy(s(z), y), x, noise=gaussian)
    clean, adv = student(x), student(x_adv)
    return Step(mart_loss(clean, adv, y, beta=beta), clean, adv)


def mart_loss(clean, adv, y, *, beta):
    """``mean [BCE(s', y) + beta * KL(s || s') * (1 - softmax(s)[y])]`` (equations 7 to 9).

    ``BCE(s', y) = -log p'_y - log(1 - max_{k != y} p'_k)`` with ``p' = softmax(s')``. The second logarithm is computed
    as the log-probability of all classes but k, which stays finite if p'_k rounds to 1. Gradient into s and s'; logits
    (B, C), labels (B,).
    """
    label = y[:, None]
    rival = adv.detach().scatter(1, label, -torch.inf).argmax(1, keepdim=True)
    log_not_rival = adv.scatter(1, rival, -torch.inf).logsumexp(1) - adv.logsumexp(1)
    boosted = F.cross_entropy(adv, y, reduction="none") - log_not_rival
    weight = 1 - clean.softmax(1).gather(1, label).squeeze(1)
    return (boosted + beta * kl(clean, adv) * weight).mean()
