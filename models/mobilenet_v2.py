"""MobileNetV2 for small images: fewer strides than for ImageNet, ReLU instead of ReLU6."""

import torch.nn.functional as F
from torch import Tensor, nn

from models.resnet import projection

# Expansion, output width, number of blocks, stride of the first; the last resolution is 1/8, on ImageNet 1/32.
STAGES = (
    (1, 16, 1, 1),
    (6, 24, 2, 1),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)


class InvertedResidual(nn.Module):
    """1x1 expansion, depthwise 3x3, linear 1x1: (B, in_width, H, W) to (B, width, H / stride, W / stride)."""

    def __init__(self, in_width: int, width: int, expansion: int, stride: int):
        super().__init__()
        inner = expansion * in_width
        self.conv1 = nn.Conv2d(in_width, inner, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(inner)
        self.conv2 = nn.Conv2d(inner, inner, 3, stride, padding=1, groups=inner, bias=False)
        self.bn2 = nn.BatchNorm2d(inner)
        self.conv3 = nn.Conv2d(inner, width, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(width)
        # The CIFAR codes have a (projected) shortcut if the stride is 1, the paper only where widths agree too.
        self.shortcut = projection(in_width, width, 1) if stride == 1 else None

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's output for features x."""
        out = F.relu(self.bn1(self.conv1(x)))
        out = F.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        return out if self.shortcut is None else out + self.shortcut(x)


class MobileNetV2(nn.Module):
    """MobileNetV2 (Sandler et al., CVPR 2018) in the CIFAR variant: images (B, 3, H, W) to logits (B, C)."""

    def __init__(self, num_classes: int):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 32, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(32)
        blocks, in_width = [], 32
        for expansion, width, depth, stride in STAGES:
            for index in range(depth):
                blocks.append(InvertedResidual(in_width, width, expansion, stride if index == 0 else 1))
                in_width = width
        self.layers = nn.Sequential(*blocks)
        self.conv2 = nn.Conv2d(in_width, 1280, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(1280)
        self.linear = nn.Linear(1280, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (B, C) for images x (B, 3, H, W) in [0, 1]."""
        out = self.layers(F.relu(self.bn1(self.conv1(x))))
        out = F.relu(self.bn2(self.conv2(out)))
        return self.linear(out.mean((2, 3)))
