"""Projected gradient descent (PGD) in the L-infinity ball: the only ascent loop of the project, and its start noise."""

from collections.abc import Callable

import torch
from torch import Tensor

Objective = Callable[[Tensor], Tensor]  # images (B, C, H, W) -> losses (B,) to maximize
Noise = Callable[[Tensor, float, torch.Generator | None], Tensor]  # images, epsilon, generator -> noise to add

GAUSSIAN_SCALE = 0.001  # of all methods with a Gaussian start; pixels are in [0, 1]


def pgd(objective: Objective, x: Tensor, start: Tensor, *, epsilon: float, step_size: float, steps: int) -> Tensor:
    """Maximize ``objective`` by signed gradient steps inside the epsilon ball around ``x`` and the box [0, 1].

    The loop is deterministic and computes no parameter gradient; the caller sets the mode of the networks.

    Args:
        objective: Maps images (B, C, H, W) to losses (B,).
        x: Clean images (B, C, H, W) in [0, 1], the center of the ball.
        start: Initial images (B, C, H, W); they may be outside the box, because the first step projects them.
        epsilon: Radius of the ball, in [0, 1].
        step_size: Length of one step, in [0, 1].
        steps: Number of gradient steps; 0 returns ``start``.

    Returns:
        Adversarial images (B, C, H, W), detached.

    Source: Madry et al., "Towards Deep Learning Models Resistant to Adversarial Attacks" (ICLR 2018), section 2.1.
    """
    lower, upper = x - epsilon, x + epsilon
    x_adv = start.detach()
    for _ in range(steps):
        x_adv.requires_grad_()
        with torch.enable_grad():
            loss = objective(x_adv).sum()  # the mean has the same gradient signs
        (gradient,) = torch.autograd.grad(loss, x_adv)
        x_adv = x_adv.detach() + step_size * gradient.sign()
        x_adv = torch.minimum(torch.maximum(x_adv, lower), upper).clamp(0, 1)
    return x_adv


def pgd_until_fooled(
    model, objective, x: Tensor, y: Tensor, start: Tensor, *, epsilon: float, step_size: float, steps: int
) -> Tensor:
    """PGD that stops for an image as soon as ``model`` misclassifies it, so later steps compute fewer images.

    The robust accuracy equals that of an attack that takes all steps and counts an image as fooled if any step fooled
    the model.

    Arguments are those of :func:`pgd`, except that ``model`` maps images to logits (B, classes), in eval mode, so that
    images are independent; ``objective`` maps logits and labels ``y`` (B,) to losses (B,); and ``start`` is in the ball
    and in [0, 1]. Returns images (B, C, H, W): of each the first misclassified iterate, or the last one.
    """
    x_adv = start.clone()
    active = torch.arange(len(x), device=x.device)
    logits = None

    def losses(z: Tensor) -> Tensor:
        nonlocal logits
        logits = model(z)
        return objective(logits, y[active])

    for _ in range(steps):
        if not len(active):
            break
        stepped = pgd(losses, x[active], x_adv[active], epsilon=epsilon, step_size=step_size, steps=1)
        correct = logits.argmax(1) == y[active]  # before the step, from the forward pass for the gradient
        active = active[correct]
        x_adv[active] = stepped[correct]
    return x_adv


def gaussian(x: Tensor, epsilon: float, generator: torch.Generator | None = None) -> Tensor:
    """Normal noise of standard deviation 0.001 for any epsilon (TRADES, RSLAD, AdaAD, DGAD)."""
    return GAUSSIAN_SCALE * torch.randn(x.shape, generator=generator, dtype=x.dtype, device=x.device)


def uniform(x: Tensor, epsilon: float, generator: torch.Generator | None = None) -> Tensor:
    """Uniform noise in [-epsilon, epsilon] (Madry et al.; ARD, AKD2, IAD, and PGD at evaluation)."""
    return epsilon * (2 * torch.rand(x.shape, generator=generator, dtype=x.dtype, device=x.device) - 1)
