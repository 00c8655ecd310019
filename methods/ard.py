"""ARD: Goldblum et al., "Adversarially Robust Distillation", AAAI 2020."""

import torch
import torch.nn.functional as F

from attacks.objectives import cross_entropy
from attacks.pgd import uniform
from methods.losses import Step, kl, term_weights

TEMPERATURE = 30.0  # official; the IAD code has 1


def ard(student, teacher, attack, x, y, epoch, *, alpha, temp, kl_weight=None, **weights):
    """Distill the teacher's clean predictions into the student's adversarial ones.

    ``kl_weight`` None means 1 / classes: the official mean is over images and classes.
    """
    x_adv = attack(lambda s, t: lambda z: cross_entropy(s(z), y), x, noise=uniform, bn="train")
    adv, clean = student(x_adv), student(x)
    with torch.no_grad():
        t_clean = teacher(x)
    weight = 1 / adv.shape[1] if kl_weight is None else kl_weight
    loss = ard_loss(clean, adv, t_clean, y, alpha=alpha, temp=temp, kl_weight=weight, **weights)
    return Step(loss, clean, adv, t_clean)


def ard_loss(clean, adv, t_clean, y, *, alpha, temp, kl_weight, **weights):
    """``alpha T^2 w mean KL(t || s'; T) + (1 - alpha) CE(s, y)``, w = ``kl_weight``; logits (B, C), labels (B,).

    ``weights`` are those of :func:`term_weights`; the self term, by default absent, is ``mean KL(s || s')`` with
    gradient into s and s' (IAD, table 12).
    """
    label, own, teacher = term_weights(alpha, 0, **weights)
    distillation = temp**2 * kl_weight * kl(t_clean, adv, temp).mean()
    loss = teacher * distillation + label * F.cross_entropy(clean, y)
    return loss + own * kl(clean, adv).mean() if own else loss
