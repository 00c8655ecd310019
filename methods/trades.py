"""TRADES: Zhang et al., "Theoretically Principled Trade-off between Robustness and Accuracy", ICML 2019."""

import torch
import torch.nn.functional as F

from attacks.pgd import gaussian
from methods.losses import Step, kl, update_batchnorm


def trades(student, attack, x, y, epoch, *, beta):
    """Minimize the clean cross entropy and the KL divergence to the images that maximize it."""

    def divergence(s):
        with torch.no_grad():
            target = s(x)  # does not depend on x': computed once per attack, not once per step
        return lambda z: kl(target, s(z))

    x_adv = attack(divergence, x, noise=gaussian)
    clean, adv = student(x), student(x_adv)
    update_batchnorm(student, x)
    return Step(trades_loss(clean, adv, y, beta=beta), clean, adv)


def trades_loss(clean, adv, y, *, beta):
    """``CE(s, y) + beta * mean KL(s || s')``, gradient into s and s'; logits (B, C), labels (B,) or (B, C)."""
    return F.cross_entropy(clean, y) + beta * kl(clean, adv).mean()
