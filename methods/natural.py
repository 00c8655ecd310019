"""Natural training: no adversary."""

import torch.nn.functional as F

from methods.losses import Step


def natural(student, attack, x, y, epoch):
    """Cross entropy on clean images (official name ``Plain_Clean``)."""
    clean = student(x)
    return Step(F.cross_entropy(clean, y), clean=clean)
