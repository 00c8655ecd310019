"""Adversarial training (AT): Madry et al., ICLR 2018."""

import torch.nn.functional as F

from attacks.objectives import cross_entropy
from attacks.pgd import gaussian
from methods.losses import Step


def at(student, attack, x, y, epoch):
    """Train on the images that maximise the student's cross entropy (official name ``Plain_Madry``)."""
    x_adv = attack(lambda s: lambda z: cross_entropy(s(z), y), x, noise=gaussian, clamp=True)
    adv = student(x_adv)
    return Step(at_loss(adv, y), adv=adv)


def at_loss(adv, y):
    """Mean cross entropy of adversarial logits (B, C) against labels (B,): the paper's outer problem."""
    return F.cross_entropy(adv, y)
