"""IGDM: Lee et al., "Indirect Gradient Matching for Adversarial Robust Distillation", ICLR 2025."""

import torch

from attacks.pgd import gaussian
from methods.adaad import teacher_student_kl
from methods.losses import Recording, Step, kl

ALPHA = {"CIFAR10": 1.0}  # official; 10 on CIFAR-100 and Tiny-ImageNet


def igdm(student, teacher, attack, x, y, epoch, *, igdm, epochs):
    """AdaAD's attack and adversarial term, and the term of IGDM; its weight grows linearly to ``igdm``."""
    x_adv = attack(teacher_student_kl, x, noise=gaussian)
    x_minus = mirrored(x, x_adv)
    s_plus, s_minus = student(x_adv), student(x_minus)
    with torch.no_grad():
        t_plus, t_minus = teacher(x_adv), teacher(x_minus)
    loss = igdm_loss(s_plus, s_minus, t_plus, t_minus, alpha=ramped(igdm, epoch, epochs))
    return Step(loss, adv=s_plus, t_adv=t_plus)


def igdm_loss(s_plus, s_minus, t_plus, t_minus, *, alpha):
    """``mean KL(t+ || s+) + alpha igdm_term``, alpha already ramped; logits (B, C)."""
    return kl(t_plus, s_plus).mean() + alpha * igdm_term(s_plus, s_minus, t_plus, t_minus)


def igdm_term(s_plus, s_minus, t_plus, t_minus):
    """``mean KL(t+ - t- || s+ - s-)``: the change of the logits from ``x - d`` to ``x + d = x'`` approximates 2 d grad.

    Logits (B, C) of student and teacher; gradient into all of them.
    """
    return kl(t_plus - t_minus, s_plus - s_minus).mean()


def mirrored(x, x_adv):
    """Return ``x - (x' - x)``, not clamped to [0, 1] (official)."""
    return x - (x_adv - x)


def ramped(alpha, epoch, epochs):
    """Return ``alpha e / E`` with e counted from 1; the official code divides by 200 for any E."""
    return alpha * (epoch + 1) / epochs


def with_igdm(method, student, teacher, attack, x, y, epoch, *, igdm, epochs, **terms):
    """Another method whose ``Step`` has ``adv``, and the term of IGDM on its adversarial images (paper).

    The student's forward of ``x - d`` comes last. ``terms`` are the keyword arguments of ``method``.
    """
    recording = Recording(attack)
    result = method(student, teacher, recording.record, x, y, epoch, **terms)
    (x_adv,) = recording.results
    x_minus = mirrored(x, x_adv)
    s_minus = student(x_minus)
    with torch.no_grad():
        t_plus = teacher(x_adv) if result.t_adv is None else result.t_adv
        t_minus = teacher(x_minus)
    term = igdm_term(result.adv, s_minus, t_plus, t_minus)
    return result._replace(loss=result.loss + ramped(igdm, epoch, epochs) * term, t_adv=t_plus)
