"""Wide ResNet in the layout of TRADES, used by AdaAD, DGAD, RSLAD (CIFAR-10) and RobustBench."""

import math
from collections import OrderedDict

import torch.nn.functional as F
from torch import Tensor, nn


class WideBlock(nn.Module):
    """Two pre-activation 3x3 convolutions and a shortcut: (B, in_width, H, W) to (B, width, H / stride, W / stride)."""

    def __init__(self, in_width: int, width: int, stride: int):
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_width)
        self.conv1 = nn.Conv2d(in_width, width, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.convShortcut = nn.Conv2d(in_width, width, 1, stride, bias=False) if in_width != width else None

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's output for features x."""
        out = F.relu(self.bn1(x))
        shortcut = x if self.convShortcut is None else self.convShortcut(out)
        return self.conv2(F.relu(self.bn2(self.conv1(out)))) + shortcut


def stage(key: str, block: type[nn.Module], in_width: int, width: int, depth: int, stride: int) -> nn.Sequential:
    """Return ``depth`` blocks, the first with ``stride``, as the submodule ``key`` that the official layouts have."""
    blocks = nn.Sequential(block(in_width, width, stride), *(block(width, width, 1) for _ in range(depth - 1)))
    return nn.Sequential(OrderedDict([(key, blocks)]))


class WideResNet(nn.Module):
    """Wide Residual Networks (Zagoruyko & Komodakis, BMVC 2016): images (B, 3, H, W) to logits (B, C).

    ``depth`` is 6n + 4 for n blocks per stage; ``width`` multiplies 16, 32 and 64 channels. The official code has a
    fourth stage, ``sub_block1``, that its forward pass never uses. ``sub_block1`` adds it, as its checkpoints contain
    it, without gradients: an all-reduce would wait for them forever.
    """

    def __init__(self, num_classes: int, *, depth: int, width: int, sub_block1: bool):
        super().__init__()
        blocks = (depth - 4) // 6
        widths = 16, 16 * width, 32 * width, 64 * width
        self.conv1 = nn.Conv2d(3, widths[0], 3, padding=1, bias=False)
        self.block1 = stage("layer", WideBlock, widths[0], widths[1], blocks, 1)
        if sub_block1:
            self.sub_block1 = stage("layer", WideBlock, widths[0], widths[1], blocks, 1)
        self.block2 = stage("layer", WideBlock, widths[1], widths[2], blocks, 2)
        self.block3 = stage("layer", WideBlock, widths[2], widths[3], blocks, 2)
        self.bn1 = nn.BatchNorm2d(widths[3])
        self.fc = nn.Linear(widths[3], num_classes)
        self._initialize()
        if sub_block1:
            self.sub_block1.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (B, C) for images x (B, 3, H, W) in [0, 1]."""
        out = self.block3(self.block2(self.block1(self.conv1(x))))
        return self.fc(F.relu(self.bn1(out)).mean((2, 3)))

    def _initialize(self) -> None:
        # The official initialization; PyTorch's default has a third of its variance and a nonzero bias.
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                fan_out = module.out_channels * module.kernel_size[0] * module.kernel_size[1]
                nn.init.normal_(module.weight, std=math.sqrt(2 / fan_out))
        nn.init.zeros_(self.fc.bias)
