"""DGAD: Park & Min, "Dynamic Guidance Adversarial Distillation with Enhanced Teacher Knowledge", ECCV 2024."""

import torch
import torch.nn.functional as F

from attacks.pgd import gaussian
from methods.adaad import disagreement
from methods.iad import reliability
from methods.losses import Step, kl, swap


def dgad(student, teacher, attack, x, y, epoch, **terms):
    """Clean guidance where the teacher errs on the clean image, adversarial guidance elsewhere, labels corrected.

    ``terms`` are the keyword arguments of :func:`dgad_loss`.
    """
    x_adv = attack(disagreement, x, noise=gaussian)
    clean, adv = student(x), student(x_adv)
    with torch.no_grad():
        t_clean, t_adv = teacher(x), teacher(x_adv)
    return Step(dgad_loss(clean, adv, t_clean, t_adv, y, **terms), clean, adv, t_clean, t_adv)


def dgad_iad(student, teacher, attack, x, y, epoch, *, beta, begin, **terms):
    """DGAD with IAD's introspection from epoch ``begin`` on (official name ``DGAD_IAD1``, there without effect)."""
    return dgad(student, teacher, attack, x, y, epoch, **terms, introspect_beta=beta if epoch >= begin else None)


def dgad_loss(
    clean,
    adv,
    t_clean,
    t_adv,
    y,
    *,
    alp_beta,
    use_map=True,
    use_els=True,
    use_pcr=True,
    distill_weight=1.0,
    introspect_beta=None,
):
    """The whole loss of DGAD on logits (B, C) and labels (B,).

    ``distill_weight * mean(wrong ? KL(t~ || s) : KL(t~' || s')) + alp_beta * mean (softmax(s') - softmax(s))^2``.
    Each switch drops one part of the paper: ``use_map`` the misclassification-aware partition (then every image is
    guided on its adversarial example), ``use_els`` the error-corrective label swapping (t~ = t), ``use_pcr`` the
    predictive consistency regularisation. The form has no division, so it holds for a teacher that is wrong on all
    or none of a batch, and for a batch of one. With ``introspect_beta`` the guidance of an image that the teacher
    classifies correctly gains ``(1 - A') KL(s || s')``, A' the :func:`~methods.iad.reliability` of t~'.
    """
    guide_clean, guide_adv = (swap(t_clean, y), swap(t_adv, y)) if use_els else (t_clean, t_adv)
    guidance = kl(guide_adv, adv)
    if introspect_beta is not None:
        guidance = guidance + (1 - reliability(guide_adv, y, introspect_beta)) * kl(clean, adv)
    if use_map:
        wrong = t_clean.argmax(1) != y
        guidance = torch.where(wrong, kl(guide_clean, clean), guidance)
    loss = distill_weight * guidance.mean()
    if use_pcr:
        loss = loss + alp_beta * F.mse_loss(adv.softmax(1), clean.softmax(1))
    return loss
