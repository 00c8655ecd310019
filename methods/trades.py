"""TRADES: Zhang et al., "Theoretically Principled Trade-off between Robustness and Accuracy", ICML 2019."""

import torch
import torch.nn.functional as F

from attacks.objectives import cross_entropy
from attacks.pgd import gaussian
from methods.losses import Step, kl, update_batchnorm


def trades(student, attack, x, y, epoch, *, beta, temp, label_smoothing=0.0):
    """Minimize the clean cross entropy and the KL divergence to the images that maximize it (at temperature 1).

    With mixed labels (B, C) the attack maximizes the cross entropy with them, as Rebuffi et al. and Wang et al. do.
    """

    def divergence(s):
        if y.is_floating_point():
            return lambda z: cross_entropy(s(z), y)
        with torch.no_grad():
            target = s(x)  # does not depend on x': computed once per attack, not once per step
        return lambda z: kl(target, s(z))

    x_adv = attack(divergence, x, noise=gaussian)
    clean, adv = student(x), student(x_adv)
    update_batchnorm(student, x)
    return Step(trades_loss(clean, adv, y, beta=beta, temp=temp, label_smoothing=label_smoothing), clean, adv)


def trades_loss(clean, adv, y, *, beta, temp=1.0, label_smoothing=0.0):
    """``CE(s, y) + beta * T^2 * mean KL(s || s'; T)``, gradient into s and s'; logits (B, C), labels (B,) or (B, C)."""
    error = F.cross_entropy(clean, y, label_smoothing=label_smoothing)
    return error + beta * temp**2 * kl(clean, adv, temp).mean()
