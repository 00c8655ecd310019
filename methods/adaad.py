"""AdaAD: Huang et al., "Boosting Accuracy and Robustness of Student Models via Adaptive Adversarial Distillation".

CVPR 2023.
"""

import torch

from attacks.pgd import gaussian
from methods.iad import iad1_loss
from methods.losses import Step, kl, update_batchnorm

ADAIAD_TEMPERATURE = 30.0  # official
KL_WEIGHT = {"CIFAR10": 0.1}  # the official mean is over images and the 10 classes on CIFAR-10, over images elsewhere


def adaad(student, teacher, attack, x, y, epoch, *, alpha, kl_weight):
    """Distill on the images that maximize the KL divergence from teacher to student."""
    x_adv = attack(teacher_student_kl, x, noise=gaussian)
    clean, adv = student(x), student(x_adv)
    with torch.no_grad():
        t_clean, t_adv = teacher(x), teacher(x_adv)
    loss = adaad_loss(clean, adv, t_clean, t_adv, alpha=alpha, kl_weight=kl_weight)
    return Step(loss, clean, adv, t_clean, t_adv)


def adaad_loss(clean, adv, t_clean, t_adv, *, alpha, kl_weight):
    """``w [alpha mean KL(t' || s') + (1 - alpha) mean KL(t || s)]``, w = ``kl_weight``; logits (B, C)."""
    return kl_weight * (alpha * kl(t_adv, adv).mean() + (1 - alpha) * kl(t_clean, clean).mean())


def teacher_student_kl(s, t):
    """Attack objective ``KL(t(z) || s(z))``, whose gradient also flows through the teacher."""
    return lambda z: kl(t(z), s(z))


def adaiad(student, teacher, attack, x, y, epoch, *, alpha, beta, temp, begin):
    """AdaAD's attack; after ``begin`` epochs with IAD's introspection (official name ``AdaAD_with_IAD1``)."""
    x_adv = attack(teacher_student_kl, x, noise=gaussian)
    introspect = epoch >= begin
    adv, clean = student(x_adv), student(x)
    if introspect:
        update_batchnorm(student, x)
    with torch.no_grad():
        t_adv = teacher(x_adv)
    loss = adaiad_loss(clean, adv, t_adv, y, alpha=alpha, beta=beta, temp=temp, introspect=introspect)
    return Step(loss, clean, adv, t_adv=t_adv)


def adaiad_loss(clean, adv, t_adv, y, *, alpha, beta, temp, introspect):
    """The loss of IAD-I with t' in place of t; logits (B, C), labels (B,)."""
    return iad1_loss(clean, adv, t_adv, t_adv, y, alpha=alpha, beta=beta, temp=temp, introspect=introspect)
