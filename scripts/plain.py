"""The plain reference that the benchmark times against: what the official codes do, step by step, in our words.

fp32, NCHW, eager, BatchNorm as it is, parameters that require gradients during the attack.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def pgd_accuracy(
    model: nn.Module, batches, *, noise: Sequence[Tensor], epsilon: float, step_size: float, steps: int
) -> float:
    """Accuracy in % of ``model`` under PGD on cross entropy: every step on every image.

    An image counts as fooled that is misread clean or at any step, so that the figure is the one of an attack that
    stops for it. ``noise`` holds a draw from [-1, 1] for each batch, of its shape; ``epsilon`` and ``step_size`` lie in
    [0, 1].
    """
    model.eval()
    right = n = 0
    for (x, y), draw in zip(batches, noise, strict=True):
        x_adv = (x + epsilon * draw).clamp(0, 1)
        stands = _reads(model, x, y)
        for _ in range(steps):
            x_adv.requires_grad_()
            logits = model(x_adv)
            F.cross_entropy(logits, y, reduction="sum").backward()
            stands &= logits.argmax(1) == y
            delta = (x_adv.detach() + step_size * x_adv.grad.sign() - x).clamp(-epsilon, epsilon)
            x_adv = (x + delta).clamp(0, 1)
        stands &= _reads(model, x_adv, y)
        right, n = right + int(stands.sum()), n + len(y)
    model.zero_grad()
    return 100 * right / n


@torch.no_grad()
def _reads(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return model(x).argmax(1) == y
