"""AKD2: Chen et al., "Robust Overfitting May Be Mitigated by Properly Learned Smoothening", ICLR 2021.

The attack, the weights and the KL divergence are those of the IAD code.
"""

import torch
import torch.nn.functional as F

from attacks.objectives import cross_entropy
from attacks.pgd import uniform
from methods.losses import Step, kl


def akd2(student, teacher, std_teacher, attack, x, y, epoch, *, robust_weight, std_weight, temp):
    """Distill a robust and a standard teacher on adversarial images."""
    x_adv = attack(lambda s, t, u: lambda z: cross_entropy(s(z), y), x, noise=uniform, bn="train")
    adv = student(x_adv)
    with torch.no_grad():
        t_adv, std_adv = teacher(x_adv), std_teacher(x_adv)
    loss = akd2_loss(adv, t_adv, std_adv, y, robust_weight=robust_weight, std_weight=std_weight, temp=temp)
    return Step(loss, adv=adv, t_adv=t_adv)


def akd2_loss(adv, t_adv, std_adv, y, *, robust_weight, std_weight, temp):
    """``(1 - a1 - a2) CE(s', y) + a1 T^2 mean KL(t' || s'; T) + a2 T^2 mean KL(u' || s'; T)``.

    a1 = ``robust_weight`` and t' belong to the robust teacher, a2 = ``std_weight`` and u' to the standard one. Logits
    (B, C), labels (B,).
    """
    hard = (1 - robust_weight - std_weight) * F.cross_entropy(adv, y)
    soft = robust_weight * kl(t_adv, adv, temp).mean() + std_weight * kl(std_adv, adv, temp).mean()
    return hard + temp**2 * soft
