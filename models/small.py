"""A small residual network, for adversarial training on a CPU."""

import torch.nn.functional as F
from torch import Tensor, nn

from models.resnet import BasicBlock


class SmallResNet(nn.Module):
    """Three BasicBlocks on a stem of stride 2: images (B, 3, H, W) to logits (B, C), for H and W from 16 up.

    The budget is 10 MFLOP forward at 32x32, a multiplication and an addition counting as two, and 0.3 M parameters.
    It buys 8.8 MFLOP and 0.2 M: a PGD-10 step makes a dozen passes, so each must cost little, while robust features
    ask for width. Hence no convolution at full resolution, where a channel is dearest: the stem halves it at
    once (0.3 MFLOP), each transition halves it again while the channels nearly double (3.1 at 8x8, 2.4 at 4x4),
    and the last block (3.0) adds depth where it is cheapest.
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
