"""The plain reference that the benchmark times against: what the official codes do, step by step, in our words.

fp32, NCHW, eager, BatchNorm as it is, parameters that require gradients during the attack.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def pgd_accuracy(model: nn.Module, batches, *, epsilon: float, step_size: float, steps: int, generator) -> float:
    """Accuracy in % of ``model`` under PGD on cross entropy: every step on every image.

    An image counts as fooled that is misread clean or at any step, so that the figure is the one of an attack that
    stops for it. ``epsilon`` and ``step_size`` are in [0, 1].
    """
    model.eval()
    right = n = 0
    for x, y in batches:
        x_adv = (x + epsilon * (2 * torch.rand(x.shape, generator=generator, device=x.device) - 1)).clamp(0, 1)
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
