"""Wide ResNet in the layout of DeepMind's published checkpoints: swish, input normalization inside the network."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.normalized import CONSTANTS
from models.wide_resnet import stage


class DeepMindBlock(nn.Module):
    """Two pre-activation 3x3 convolutions and a shortcut: (B, in_width, H, W) to (B, width, H / stride, W / stride)."""

    def __init__(self, in_width: int, width: int, stride: int):
        super().__init__()
        self.stride = stride
        self.batchnorm_0 = nn.BatchNorm2d(in_width, momentum=0.01)
        self.conv_0 = nn.Conv2d(in_width, width, 3, stride, padding=2 - stride, bias=False)
        self.batchnorm_1 = nn.BatchNorm2d(width, momentum=0.01)
        self.conv_1 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.shortcut = nn.Conv2d(in_width, width, 1, stride, bias=False) if in_width != width else None

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's output for features x."""
        out = F.silu(self.batchnorm_0(x))
        shortcut = x if self.shortcut is None else self.shortcut(out)
        # "SAME" padding of the JAX original: with stride 2 it is only below and to the right.
        padded = F.pad(out, (0, 1, 0, 1)) if self.stride == 2 else out
        return self.conv_1(F.silu(self.batchnorm_1(self.conv_0(padded)))) + shortcut


class DeepMindWideResNet(nn.Module):
    """WRN of Gowal et al. (2020, arXiv:2010.03593): images (B, 3, H, W) to logits (B, C), H and W even.

    It normalizes with the statistics of CIFAR-100 for 100 classes, otherwise of CIFAR-10. They are constants of the
    layout and not part of its state dict. ``depth`` is 6n + 4; ``width`` multiplies 16, 32 and 64 channels.
    """

    def __init__(self, num_classes: int, *, depth: int, width: int):
        super().__init__()
        blocks = (depth - 4) // 6
        mean, std = CONSTANTS["cifar100" if num_classes == 100 else "cifar10"]
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1), persistent=False)
        self.init_conv = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.layer = nn.Sequential(
            stage("block", DeepMindBlock, 16, 16 * width, blocks, 1),
            stage("block", DeepMindBlock, 16 * width, 32 * width, blocks, 2),
            stage("block", DeepMindBlock, 32 * width, 64 * width, blocks, 2),
        )
        self.batchnorm = nn.BatchNorm2d(64 * width, momentum=0.01)
        self.logits = nn.Linear(64 * width, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (B, C) for images x (B, 3, H, W) in [0, 1]."""
        out = self.layer(self.init_conv((x - self.mean) / self.std))
        return self.logits(F.silu(self.batchnorm(out)).mean((2, 3)))
