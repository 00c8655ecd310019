"""Input normalisation as part of a network."""

from torch import Tensor, nn


class Normalized(nn.Module):
    """``model`` on standardised images: (B, 3, H, W) in [0, 1] to logits (B, C).

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
