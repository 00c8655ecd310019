"""IAD: Zhu et al., "Reliable Adversarial Distillation with Unreliable Teachers", ICLR 2022.

``begin`` is the number of epochs without introspection: it starts when ``epoch``, counted from 0, equals ``begin``.
"""

import torch
import torch.nn.functional as F

from attacks.objectives import cross_entropy
from attacks.pgd import uniform
from methods.akd2 import akd2_loss
from methods.losses import Step, kl, update_batchnorm

TEMPERATURE = 1.0  # official
BEGIN_I, BEGIN_II = 60, 40  # epochs without introspection (official)


def iad1(student, teacher, attack, x, y, epoch, *, alpha, beta, temp, begin):
    """ARD; after ``begin`` epochs with introspection, weighted by how unreliable the teacher is on x'."""
    x_adv = attack(lambda s, t: lambda z: cross_entropy(s(z), y), x, noise=uniform, bn="train")
    introspect = epoch >= begin
    adv, clean = student(x_adv), student(x)
    if introspect:
        update_batchnorm(student, x)
    with torch.no_grad():
        t_clean = teacher(x)
        t_adv = teacher(x_adv) if introspect else None
    loss = iad1_loss(clean, adv, t_clean, t_adv, y, alpha=alpha, beta=beta, temp=temp, introspect=introspect)
    return Step(loss, clean, adv, t_clean, t_adv)


def iad1_loss(clean, adv, t_clean, t_adv, y, *, alpha, beta, temp, introspect):
    """``alpha [T^2 mean KL(t || s'; T) + mean (1 - A) KL(s || s')] + (1 - alpha) CE(s, y)``, A = :func:`reliability`.

    The middle term, with gradient into s and s', is present only with ``introspect``; otherwise ``t_adv`` may be None.
    Logits (B, C), labels (B,).
    """
    distillation = temp**2 * kl(t_clean, adv, temp).mean()
    if introspect:
        distillation = distillation + introspection(clean, adv, t_adv, y, beta)
    return alpha * distillation + (1 - alpha) * F.cross_entropy(clean, y)


def iad2(student, teacher, std_teacher, attack, x, y, epoch, *, robust_weight, std_weight, beta, temp, begin):
    """AKD2; after ``begin`` epochs introspection takes over where the robust teacher is unreliable."""
    x_adv = attack(lambda s, t, u: lambda z: cross_entropy(s(z), y), x, noise=uniform, bn="train")
    introspect = epoch >= begin
    adv = student(x_adv)
    clean = student(x) if introspect else None
    with torch.no_grad():
        t_adv, std_adv = teacher(x_adv), std_teacher(x_adv)
    weights = {"robust_weight": robust_weight, "std_weight": std_weight}
    loss = iad2_loss(clean, adv, t_adv, std_adv, y, **weights, beta=beta, temp=temp, introspect=introspect)
    return Step(loss, clean, adv, t_adv=t_adv)


def iad2_loss(clean, adv, t_adv, std_adv, y, *, robust_weight, std_weight, beta, temp, introspect):
    """AKD2's loss with the robust term ``a1 T^2 [mean A KL(t' || s'; T) + mean (1 - A) KL(s || s')]``.

    Without ``introspect`` it is AKD2's loss, and ``clean`` may be None. T^2 multiplies the introspection as well, whose
    temperature is 1 (official). Logits (B, C), labels (B,).
    """
    if not introspect:
        return akd2_loss(adv, t_adv, std_adv, y, robust_weight=robust_weight, std_weight=std_weight, temp=temp)
    hard = (1 - robust_weight - std_weight) * F.cross_entropy(adv, y)
    reliable = (reliability(t_adv, y, beta) * kl(t_adv, adv, temp)).mean()
    robust = reliable + introspection(clean, adv, t_adv, y, beta)
    return hard + temp**2 * (robust_weight * robust + std_weight * kl(std_adv, adv, temp).mean())


def reliability(t_adv, y, beta):
    """``A = softmax(t')[y] ** beta`` per adversarial image, (B,), without gradient."""
    return t_adv.detach().softmax(1).gather(1, y[:, None]).squeeze(1) ** beta


def introspection(clean, adv, t_adv, y, beta):
    """``mean (1 - A) KL(s || s')``, gradient into s and s'."""
    return ((1 - reliability(t_adv, y, beta)) * kl(clean, adv)).mean()
