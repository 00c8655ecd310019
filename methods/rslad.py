"""RSLAD: Zi et al., "Revisiting Adversarial Robustness Distillation: Robust Soft Labels Make Student Better".

ICCV 2021.
"""

import torch

from attacks.pgd import gaussian
from methods.losses import Step, kl

KL_WEIGHT = 0.1  # official: the mean over images and 10 classes on CIFAR-10, ten times the mean over 100 on CIFAR-100
ADV_WEIGHT = 5 / 6  # of the adversarial term; the clean term has the rest (official)


def rslad(student, teacher, attack, x, y, epoch, *, kl_weight):
    """The teacher's soft labels of clean images are the target of the attack and of both terms of the loss."""
    with torch.no_grad():
        t_clean = teacher(x)
    x_adv = attack(lambda s, t: lambda z: kl(t_clean, s(z)), x, noise=gaussian)
    adv, clean = student(x_adv), student(x)
    return Step(rslad_loss(clean, adv, t_clean, kl_weight=kl_weight), clean, adv, t_clean)


def rslad_loss(clean, adv, t_clean, *, kl_weight):
    """``w [5/6 mean KL(t || s') + 1/6 mean KL(t || s)]``, w = ``kl_weight``; logits (B, C)."""
    return kl_weight * (ADV_WEIGHT * kl(t_clean, adv).mean() + (1 - ADV_WEIGHT) * kl(t_clean, clean).mean())
