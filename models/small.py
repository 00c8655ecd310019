"""A small residual network, for adversarial training on a CPU."""

import torch.nn.functional as F
from torch import Tensor, nn

from models.resnet import BasicBlock


class SmallResNet(nn.Module):
    """Three BasicBlocks on a stem of stride 2: images (B, 3, H, W) to logits (B, C), for H and W from 16 up.

    A forward pass at 32x32 costs 8.8 MFLOP (a multiply-add counts as two) and there are 0.2 M parameters; the limits
    are 10 MFLOP and 0.3 M. A training step with PGD-10 makes a dozen passes, so each must be cheap, while robust
    features need width. Therefore no convolution runs at full resolution: the stem halves it (0.3 MFLOP), each
    transition halves it again and nearly doubles the channels (3.1 at 8x8, 2.4 at 4x4), and the last block (3.0)
    adds depth where it is cheapest.
    """

    def __init__(self, num_classes: int):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 24, 3, 2, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(24)
        self.layers = nn.Sequential(BasicBlock(24, 40, 2), BasicBlock(40, 72, 2), BasicBlock(72, 72, 1))
        self.linear = nn.Linear(72, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (B, C) for images x (B, 3, H, W) in [0, 1]."""
        out = self.layers(F.relu(self.bn1(self.conv1(x))))
        return self.linear(out.mean((2, 3)))
