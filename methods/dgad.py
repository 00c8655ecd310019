"""DGAD: Park & Min, "Dynamic Guidance Adversarial Distillation with Enhanced Teacher Knowledge", ECCV 2024."""

import torch
import torch.nn.functional as F

from attacks.pgd import gaussian
from methods.adaad import teacher_student_kl
from methods.losses import Step, kl, reliability, swap


def dgad(student, teacher, attack, x, y, epoch, **terms):
    """Distill on clean images that the teacher misclassifies and on adversarial images otherwise, labels swapped.

    ``terms`` are the keyword arguments of :func:`dgad_loss`.
    """
    x_adv = attack(teacher_student_kl, x, noise=gaussian)
    clean, adv = student(x), student(x_adv)
    with torch.no_grad():
        t_clean, t_adv = teacher(x), teacher(x_adv)
    return Step(dgad_loss(clean, adv, t_clean, t_adv, y, **terms), clean, adv, t_clean, t_adv)


def dgad_iad(student, teacher, attack, x, y, epoch, *, beta, begin, **terms):
    """DGAD; after ``begin`` epochs with IAD's introspection (official name ``DGAD_IAD1``, there without effect)."""
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
    """``w mean [wrong ? KL(t~ || s) : KL(t~' || s')] + alp_beta mean (softmax(s') - softmax(s))^2``.

    ``wrong = argmax t != y``, t~ and t~' are the teacher's logits after :func:`~methods.losses.swap`, w is
    ``distill_weight``; the second mean is over images and classes. The form has no division by the size of a group: it
    is defined if the teacher is wrong on all images or on none, and for a batch of one.

    Args:
        clean, adv, t_clean, t_adv: Logits (B, C) of the student and of the teacher.
        y: Labels (B,).
        alp_beta: Weight of the predictive consistency regularization (PCR).
        use_map: Misclassification-aware partitioning; if False, no image counts as wrong.
        use_els: Error-corrective label swapping; if False, t~ = t and t~' = t'.
        use_pcr: If False, the second term is omitted.
        distill_weight: Weight of the first term.
        introspect_beta: Adds ``(1 - A') KL(s || s')`` to ``KL(t~' || s')``, with A' the
            :func:`~methods.losses.reliability` of t~' for this exponent; None adds nothing.
    """
    target_clean, target_adv = (swap(t_clean, y), swap(t_adv, y)) if use_els else (t_clean, t_adv)
    distillation = kl(target_adv, adv)
    if introspect_beta is not None:
        distillation = distillation + (1 - reliability(target_adv, y, introspect_beta)) * kl(clean, adv)
    if use_map:
        wrong = t_clean.argmax(1) != y
        distillation = torch.where(wrong, kl(target_clean, clean), distillation)
    loss = distill_weight * distillation.mean()
    if use_pcr:
        loss = loss + alp_beta * F.mse_loss(adv.softmax(1), clean.softmax(1))
    return loss
