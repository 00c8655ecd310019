"""Input normalization as part of a network."""

from torch import Tensor, nn


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
