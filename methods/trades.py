"""TRADES: Zhang et al., "Theoretically Principled Trade-off between Robustness and Accuracy", ICML 2019."""

import torch
import torch.nn.functional as F

from attacks.pgd import gaussian
from methods.losses import Step, kl, repeat_forward


def trades(student, attack, x, y, epoch, *, beta):
    """Cross entropy on clean images, and the divergence between clean and adversarial predictions."""

    def divergence(s):
        with torch.no_grad():
            target = s(x)  # does not depend on the adversarial image: once an attack, not once a step
        return lambda z: kl(target, s(z))

    x_adv = attack(divergence, x, noise=gaussian)
    clean, adv = student(x), student(x_adv)
    repeat_forward(student, x)
    return Step(trades_loss(clean, adv, y, beta=beta), clean, adv)


def trades_loss(clean, adv, y, *, beta):
    """``CE(s, y) + beta * mean KL(s || s')``, gradient into both; logits (B, C), labels (B,)."""
    return F.cross_entropy(clean, y) + beta * kl(clean, adv).mean()
