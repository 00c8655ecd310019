"""IAD: Zhu et al., "Reliable Adversarial Distillation with Unreliable Teachers", ICLR 2022.

``begin`` is the number of epochs without introspection: it starts when ``epoch``, counted from 0, equals ``begin``.
A constant ``coefficient`` replaces 1 - A (table 9).
"""

import torch
import torch.nn.functional as F

from attacks.objectives import cross_entropy
from attacks.pgd import uniform
from methods.akd2 import akd2_loss
from methods.losses import Step, kl, reliability, term_weights, update_batchnorm

TEMPERATURE = 1.0  # official
BEGIN_I, BEGIN_II = 60, 40  # epochs without introspection (official)


def iad1(student, teacher, attack, x, y, epoch, *, begin, **terms):
    """ARD; after ``begin`` epochs with introspection, weighted by how unreliable the teacher is on x'."""
    x_adv = attack(lambda s, t: lambda z: cross_entropy(s(z), y), x, noise=uniform, bn="train")
    introspect = epoch >= begin
    adv, clean = student(x_adv), student(x)
    if introspect:
        update_batchnorm(student, x)
    with torch.no_grad():
        t_clean = teacher(x)
        t_adv = teacher(x_adv) if introspect else None
    loss = iad1_loss(clean, adv, t_clean, t_adv, y, **terms, introspect=introspect)
    return Step(loss, clean, adv, t_clean, t_adv)


def iad1_loss(clean, adv, t_clean, t_adv, y, *, alpha, beta, temp, introspect, coefficient=None, down=False, **weights):
    """``alpha [T^2 mean KL(t || s'; T) + mean (1 - A) KL(s || s')] + (1 - alpha) CE(s, y)``, A = :func:`reliability`.

    The middle term, with gradient into s and s', is present only with ``introspect``; otherwise ``t_adv`` may be None.
    Then ``down`` also multiplies the first term by A (IAD-I-Down, table 8). ``weights`` are those of
    :func:`term_weights`; the self term is the middle one (table 12). Logits (B, C), labels (B,).
    """
    label, own, teacher = term_weights(alpha, alpha, **weights)
    distillation = kl(t_clean, adv, temp)
    if introspect and down:
        distillation = reliability(t_adv, y, beta) * distillation
    loss = teacher * (temp**2 * distillation.mean())
    if introspect:
        loss = loss + own * introspection(clean, adv, t_adv, y, beta, coefficient)
    return loss + label * F.cross_entropy(clean, y)


def iad2(student, teacher, std_teacher, attack, x, y, epoch, *, begin, **terms):
    """AKD2; after ``begin`` epochs introspection takes over where the robust teacher is unreliable."""
    x_adv = attack(lambda s, t, u: lambda z: cross_entropy(s(z), y), x, noise=uniform, bn="train")
    introspect = epoch >= begin
    adv = student(x_adv)
    clean = student(x) if introspect else None
    with torch.no_grad():
        t_adv, std_adv = teacher(x_adv), std_teacher(x_adv)
    loss = iad2_loss(clean, adv, t_adv, std_adv, y, **terms, introspect=introspect)
    return Step(loss, clean, adv, t_adv=t_adv)


def iad2_loss(clean, adv, t_adv, std_adv, y, *, robust_weight, std_weight, beta, temp, introspect, coefficient=None):
    """AKD2's loss with the robust term ``a1 T^2 [mean A KL(t' || s'; T) + mean (1 - A) KL(s || s')]``.

    Without ``introspect`` it is AKD2's loss, and ``clean`` may be None. T^2 multiplies the introspection as well, whose
    temperature is 1 (official). Logits (B, C), labels (B,).
    """
    if not introspect:
        return akd2_loss(adv, t_adv, std_adv, y, robust_weight=robust_weight, std_weight=std_weight, temp=temp)
    hard = (1 - robust_weight - std_weight) * F.cross_entropy(adv, y)
    reliable = (reliability(t_adv, y, beta) * kl(t_adv, adv, temp)).mean()
    robust = reliable + introspection(clean, adv, t_adv, y, beta, coefficient)
    return hard + temp**2 * (robust_weight * robust + std_weight * kl(std_adv, adv, temp).mean())


def introspection(clean, adv, t_adv, y, beta, coefficient=None):
    """``mean (1 - A) KL(s || s')``, gradient into s and s'; ``coefficient`` replaces 1 - A."""
    weight = 1 - reliability(t_adv, y, beta) if coefficient is None else coefficient
    return (weight * kl(clean, adv)).mean()
