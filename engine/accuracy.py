"""Accuracy of a network: predictions for clean images, verified predictions under attack."""

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from attacks.suite import Perturb
from engine.device import allow_tf32
from utils.errors import UserError
from utils.log import logger

MAX_SCALE = 1.75  # a normalization by mean and std 0.5 gives 2
CAUSES_OF_CHANCE_LEVEL = (
    "the network is untrained, or was trained on other classes, another order of classes, or images normalized outside "
    "the network (--normalize adds the normalization)"
)


class Score(NamedTuple):
    """Mean cross entropy and accuracy (percent) over ``n`` images, clean or adversarial."""

    loss: float
    accuracy: float
    n: int


def minimum_accuracy(classes: int) -> float:
    """Return the clean accuracy in % below which a network with this many classes probably does not fit the data."""
    return min(200 / classes, 25 + 100 / classes)  # with two classes, twice the chance level is 100 %


def predict(model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], name: str = "--model_path") -> Tensor:
    """Return the classes (N,) int64 that ``model`` predicts for clean images, on the CPU; leaves it in eval mode.

    Raises UserError, naming the network's flag, if a logit is nan or inf.
    """
    model.eval()
    classes = []
    for x, _ in batches:
        with torch.no_grad():
            logits = model(x)
        if not logits.isfinite().all():
            raise UserError(f"{name}: the network's logits are nan or inf on clean images: the file is damaged")
        classes.append(logits.argmax(1).cpu())
    return torch.cat(classes)


@torch.no_grad()
def warn_of_input_scale(model: nn.Module, x: Tensor, name: str) -> None:
    """Warn if the first BatchNorm's running variance does not fit its inputs for images x (B, 3, H, W).

    Normalization in the data loader, with a std near 0.25, multiplies the scale by 4. After only a few batches the
    running variance is close to its initial value and is not checked.
    """
    norm = next((module for module in model.modules() if isinstance(module, nn.BatchNorm2d)), None)
    if norm is None or norm.running_var is None or 0 < norm.num_batches_tracked < 50:
        return
    seen = []
    hook = norm.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
    model.eval()(x)
    hook.remove()
    ratio = float((norm.running_var / seen[0].var((0, 2, 3)).clamp(min=1e-12)).median().sqrt()) if seen else 1.0
    if not 1 / MAX_SCALE < ratio < MAX_SCALE:
        cause = "they were normalized outside the network; --normalize cifar10 (or mean and std) adds the normalization"
        if ratio < 1:
            cause = "they had not been normalized; check --normalize, or the mean and std in the file"
        message = "WARNING: %s: its training images had %.2g times the standard deviation of these, as if %s"
        logger.warning(message, name, ratio, cause)


def attack_and_verify(
    attack_model, model, perturb: Perturb, x: Tensor, y: Tensor, noise: Tensor, *, tf32: bool = False
) -> tuple[Tensor, Tensor]:
    """Perturb images with the fast ``attack_model`` and verify the result with ``model`` in strict float32.

    Returns adversarial images (B, C, H, W) and the logits (B, classes) of ``model`` for them. ``attack_model`` equals
    ``model`` up to rounding; ``tf32`` allows it TF32. PGD stops for an image as soon as ``attack_model`` misclassifies
    it; if ``model`` still classifies that image correctly, the attack is repeated on ``model`` in strict float32.
    """
    with allow_tf32(tf32):
        x_adv = perturb(attack_model, x, y, noise)
    with allow_tf32(False), torch.no_grad():
        logits = model(x_adv)
    correct = (logits.argmax(1) == y).nonzero()[:, 0]
    if (attack_model is model and not tf32) or not len(correct):
        return x_adv, logits
    with allow_tf32(tf32), torch.no_grad():
        again = correct[attack_model(x_adv[correct]).argmax(1) != y[correct]]
    if len(again):
        x_adv[again], logits[again] = attack_and_verify(model, model, perturb, x[again], y[again], noise[again])
    return x_adv, logits
