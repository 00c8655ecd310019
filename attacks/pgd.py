"""Projected gradient descent in the L-infinity ball: the only ascent loop of the project, and its start noises."""

from collections.abc import Callable

import torch
from torch import Tensor

Objective = Callable[[Tensor], Tensor]  # images (B, C, H, W) -> losses (B,), to be attack_model
Noise = Callable[[Tensor, float, torch.Generator | None], Tensor]  # images, epsilon, generator -> what is added to them

GAUSSIAN_SCALE = 0.001  # of every method that starts beside the image; pixels live in [0, 1]


def pgd(objective: Objective, x: Tensor, start: Tensor, *, epsilon: float, step_size: float, steps: int) -> Tensor:
    """Climb ``objective`` by signed gradient steps inside the epsilon ball around ``x`` and the unit box.

    The loop draws nothing and touches no parameter gradient; whoever calls it decides the networks' modes.

    Args:
        objective: Maps images (B, C, H, W) to losses (B,).
        x: Clean images (B, C, H, W) in [0, 1], the centre of the ball.
        start: First images (B, C, H, W); may lie outside the box, which the first step mends.
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
            loss = objective(x_adv).sum()  # the sign of a gradient does not know a sum from a mean
        (gradient,) = torch.autograd.grad(loss, x_adv)
        x_adv = x_adv.detach() + step_size * gradient.sign()
        x_adv = torch.minimum(torch.maximum(x_adv, lower), upper).clamp(0, 1)
    return x_adv


def pgd_until_fooled(
    model, objective, x: Tensor, y: Tensor, start: Tensor, *, epsilon: float, step_size: float, steps: int
) -> Tensor:
    """PGD that leaves an image alone as soon as ``model`` misclassifies it, so that later steps climb fewer images.

    An attack has succeeded once it has found one adversarial example: counted so, an image costs no step after its
    first success, and the count is that of an attack that takes every step and remembers every success.

    Args:
        model: Maps images (B, C, H, W) to logits (B, classes); in eval mode, or images would depend on each other.
        objective: Maps logits (B, classes) and labels (B,) to losses (B,).
        x: Clean images (B, C, H, W) in [0, 1].
        y: Labels (B,).
        start: First images (B, C, H, W), in the ball and in [0, 1].
        epsilon: Radius of the ball, in [0, 1].
        step_size: Length of one step, in [0, 1].
        steps: Largest number of gradient steps.

    Returns:
        Images (B, C, H, W): the first misclassified one on the way, or the last.
    """
    x_adv = start.clone()
    standing = torch.arange(len(x), device=x.device)
    logits = None

    def losses(z: Tensor) -> Tensor:
        nonlocal logits
        logits = model(z)
        return objective(logits, y[standing])

    for _ in range(steps):
        if not len(standing):
            break
        stepped = pgd(losses, x[standing], x_adv[standing], epsilon=epsilon, step_size=step_size, steps=1)
        right = logits.argmax(1) == y[standing]  # of the images before the step: the forward was needed anyway
        standing = standing[right]
        x_adv[standing] = stepped[right]
    return x_adv


def zero(x: Tensor, epsilon: float, generator: torch.Generator | None = None) -> Tensor:
    """No noise: the attack starts at the image."""
    return torch.zeros_like(x)


def gaussian(x: Tensor, epsilon: float, generator: torch.Generator | None = None) -> Tensor:
    """Normal noise of scale 0.001, whatever epsilon (TRADES, RSLAD, AdaAD, DGAD)."""
    return GAUSSIAN_SCALE * torch.randn(x.shape, generator=generator, dtype=x.dtype, device=x.device)


def uniform(x: Tensor, epsilon: float, generator: torch.Generator | None = None) -> Tensor:
    """Uniform noise in [-epsilon, epsilon] (Madry et al.; ARD, AKD2, IAD, and the PGD of evaluations)."""
    return epsilon * (2 * torch.rand(x.shape, generator=generator, dtype=x.dtype, device=x.device) - 1)
