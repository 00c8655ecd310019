"""AKD2: Chen et al., "Robust Overfitting May Be Mitigated by Properly Learned Smoothening", ICLR 2021.

The attack, the weights and the KL divergence are those of the IAD code.
"""

import torch
import torch.nn.functional as F

from attacks.objectives import cross_entropy
from attacks.pgd import uniform
from methods.losses import Step, kl, reliability


def akd2(student, teacher, std_teacher, attack, x, y, epoch, **terms):
    """Distill a robust and a standard teacher on adversarial images."""
    x_adv = attack(lambda s, t, u: lambda z: cross_entropy(s(z), y), x, noise=uniform, bn="train")
    adv = student(x_adv)
    with torch.no_grad():
        t_adv, std_adv = teacher(x_adv), std_teacher(x_adv)
    return Step(akd2_loss(adv, t_adv, std_adv, y, **terms), adv=adv, t_adv=t_adv)


def akd2_loss(adv, t_adv, std_adv, y, *, robust_weight, std_weight, temp, beta=None):
    """``(1 - a1 - a2) CE(s', y) + a1 T^2 mean KL(t' || s'; T) + a2 T^2 mean KL(u' || s'; T)``.

    a1 = ``robust_weight`` and t' belong to the robust teacher, a2 = ``std_weight`` and u' to the standard one. Logits
    (B, C), labels (B,). With ``beta`` the robust term is ``mean A KL(t' || s'; T)``, A = :func:`reliability`
    (IAD, table 7).
    """
    hard = (1 - robust_weight - std_weight) * F.cross_entropy(adv, y)
    robust = kl(t_adv, adv, temp) if beta is None else reliability(t_adv, y, beta) * kl(t_adv, adv, temp)
    soft = robust_weight * robust.mean() + std_weight * kl(std_adv, adv, temp).mean()
    return hard + temp**2 * soft
