"""ARD: Goldblum et al., "Adversarially Robust Distillation", AAAI 2020."""

import torch
import torch.nn.functional as F

from attacks.objectives import cross_entropy
from attacks.pgd import uniform
from methods.losses import Step, kl

TEMPERATURE = 30.0  # official; the IAD paper compares with 1


def ard(student, teacher, attack, x, y, epoch, *, alpha, temp, kl_weight=None):
    """The student's adversarial predictions follow the teacher's clean ones.

    ``kl_weight`` None takes 1 / classes: the official loss averages over the classes too.
    """
    x_adv = attack(lambda s, t: lambda z: cross_entropy(s(z), y), x, noise=uniform, bn="train")
    adv, clean = student(x_adv), student(x)
    with torch.no_grad():
        t_clean = teacher(x)
    weight = 1 / adv.shape[1] if kl_weight is None else kl_weight
    return Step(ard_loss(clean, adv, t_clean, y, alpha=alpha, temp=temp, kl_weight=weight), clean, adv, t_clean)


def ard_loss(clean, adv, t_clean, y, *, alpha, temp, kl_weight):
    """``alpha T^2 w * mean KL(t || s'; T) + (1 - alpha) * CE(s, y)``; logits (B, C), labels (B,)."""
    distilled = temp**2 * kl_weight * kl(t_clean, adv, temp).mean()
    return alpha * distilled + (1 - alpha) * F.cross_entropy(clean, y)
