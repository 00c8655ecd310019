"""Natural training: no attack."""

import torch.nn.functional as F

from methods.losses import Step


def natural(student, attack, x, y, epoch):
    """Minimize the cross entropy of clean images (official name ``Plain_Clean``)."""
    clean = student(x)
    return Step(F.cross_entropy(clean, y), clean=clean)
