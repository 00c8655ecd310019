"""Input normalization as part of a network."""

import re

import torch
from torch import Tensor, nn

from utils.errors import UserError

# Name -> mean and standard deviation of each channel.
CONSTANTS = {
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2471, 0.2435, 0.2616)),
    "cifar100": ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
}
# Keys of a mean and a std of images, such as normalize.mean, mu, pixel_std.
STATISTIC = re.compile(
    r"(?:.*\.)?(?:(?:new|image|img|pixel|data|input)?_)?(?:(?P<mean>means?|mu)|(?P<std>stds?|sds|sigma))"
)


def statistic(key: str) -> str | None:
    """Return "mean" or "std" for a key of that name, None for another key."""
    match = STATISTIC.fullmatch(key)
    return match and match.lastgroup


def constants(text: str) -> tuple[Tensor, Tensor]:
    """Return mean and std, (3,) each, of a key of CONSTANTS or of six numbers separated by commas.

    Raises UserError that names ``--normalize`` for another text.
    """
    if text.lower() in CONSTANTS:
        mean, std = torch.tensor(CONSTANTS[text.lower()])
        return mean, std
    try:
        mean, std = torch.tensor([float(part) for part in text.split(",")]).view(2, 3)
        if not ((mean >= 0) & (mean <= 1) & (std > 0) & (std <= 1)).all():
            raise ValueError
    except (ValueError, RuntimeError) as error:
        known = ", ".join(CONSTANTS)
        raise UserError(
            f"--normalize {text}: must be one of {known}, or three means and three stds in [0, 1], as a,b,c,d,e,f"
        ) from error
    return mean, std


class Normalized(nn.Module):
    """``model`` on normalized images: (B, 3, H, W) in [0, 1] to logits (B, C).

    ``mean`` and ``std`` broadcast to the images, (1, 3, 1, 1) or (1, 1, 1, 1), and are saved with the weights.
    """

    def __init__(self, model: nn.Module, mean: Tensor, std: Tensor):
        super().__init__()
        self.register_buffer("mean", mean)
        self.register_buffer("std", std)
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (B, C) for images x (B, 3, H, W) in [0, 1]."""
        return self.model((x - self.mean) / self.std)


def normalize_input(network: nn.Module, mean: Tensor, std: Tensor) -> nn.Module:
    """Make ``network`` normalize its images with ``mean`` and ``std`` (3 values or 1), saved with its weights."""
    device = next(network.parameters()).device
    mean, std = (value.to(device).view(1, -1, 1, 1) for value in (mean, std))
    if not hasattr(network, "mean"):
        return Normalized(network, mean, std)
    # DeepMind's networks keep constants outside their state dict; registered again, they are part of it.
    network.register_buffer("mean", mean)
    network.register_buffer("std", std)
    return network
