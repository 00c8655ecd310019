"""AT: Madry et al., "Towards Deep Learning Models Resistant to Adversarial Attacks", ICLR 2018."""

import torch.nn.functional as F

from attacks.objectives import cross_entropy
from attacks.pgd import gaussian
from methods.losses import Step


def at(student, attack, x, y, epoch, *, label_smoothing=0.0):
    """Minimize the cross entropy of images that maximize it (official name ``Plain_Madry``)."""
    x_adv = attack(lambda s: lambda z: cross_entropy(s(z), y), x, noise=gaussian, clamp=True)
    adv = student(x_adv)
    return Step(at_loss(adv, y, label_smoothing=label_smoothing), adv=adv)


def at_loss(adv, y, *, label_smoothing=0.0):
    """``CE(s', y)``, the outer problem of the paper; logits (B, C), labels (B,) or (B, C)."""
    return F.cross_entropy(adv, y, label_smoothing=label_smoothing)
