"""Natural training: no attack."""

import torch.nn.functional as F

from methods.losses import Step


def natural(student, attack, x, y, epoch, *, label_smoothing=0.0):
    """Minimize the cross entropy of clean images (official name ``Plain_Clean``)."""
    clean = student(x)
    return Step(F.cross_entropy(clean, y, label_smoothing=label_smoothing), clean=clean)
