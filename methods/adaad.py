"""AdaAD: Huang et al., "Boosting Accuracy and Robustness of Student Models via Adaptive Adversarial Distillation".

CVPR 2023.
"""

import torch

from attacks.pgd import gaussian
from methods.iad import iad1_loss
from methods.losses import Step, kl, repeat_forward

ADAIAD_TEMPERATURE = 30.0  # official
KL_WEIGHT = {"CIFAR10": 0.1}  # the official code averages over the 10 classes too on CIFAR-10, and only there


def adaad(student, teacher, attack, x, y, epoch, *, alpha, kl_weight):
    """The attack drives student and teacher apart, through both; the student follows the teacher there."""
    x_adv = attack(disagreement, x, noise=gaussian)
    clean, adv = student(x), student(x_adv)
    with torch.no_grad():
        t_clean, t_adv = teacher(x), teacher(x_adv)
    loss = adaad_loss(clean, adv, t_clean, t_adv, alpha=alpha, kl_weight=kl_weight)
    return Step(loss, clean, adv, t_clean, t_adv)


def disagreement(s, t):
    """The inner objective of AdaAD and DGAD: ``KL(t(z) || s(z))``, whose gradient flows through the teacher as well."""
    return lambda z: kl(t(z), s(z))


def adaiad(student, teacher, attack, x, y, epoch, *, alpha, beta, temp, begin):
    """AdaAD's attack with IAD's introspection from epoch ``begin`` on (official name ``AdaAD_with_IAD1``)."""
    x_adv = attack(disagreement, x, noise=gaussian)
    introspect = epoch >= begin
    adv, clean = student(x_adv), student(x)
    if introspect:
        repeat_forward(student, x)
    with torch.no_grad():
        t_adv = teacher(x_adv)
    loss = adaiad_loss(clean, adv, t_adv, y, alpha=alpha, beta=beta, temp=temp, introspect=introspect)
    return Step(loss, clean, adv, t_adv=t_adv)


def adaad_loss(clean, adv, t_clean, t_adv, *, alpha, kl_weight):
    """``w * (alpha * mean KL(t' || s') + (1 - alpha) * mean KL(t || s))``; logits (B, C)."""
    return kl_weight * (alpha * kl(t_adv, adv).mean() + (1 - alpha) * kl(t_clean, clean).mean())


def adaiad_loss(clean, adv, t_adv, y, *, alpha, beta, temp, introspect):
    """The loss of IAD-I with a teacher that sees adversarial images: t' in place of t; logits (B, C), labels (B,)."""
    return iad1_loss(clean, adv, t_adv, t_adv, y, alpha=alpha, beta=beta, temp=temp, introspect=introspect)
