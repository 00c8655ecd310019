"""Pre-activation ResNet-18, the Tiny-ImageNet teacher of DGAD."""

import torch.nn.functional as F
from torch import Tensor, nn


class PreActBlock(nn.Module):
    """BatchNorm and ReLU before each 3x3 convolution: (B, in_width, H, W) to (B, width, H / stride, W / stride)."""

    def __init__(self, in_width: int, width: int, stride: int):
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_width)
        self.conv1 = nn.Conv2d(in_width, width, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        reshapes = stride != 1 or in_width != width
        self.shortcut = nn.Sequential(nn.Conv2d(in_width, width, 1, stride, bias=False)) if reshapes else None

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's output for features x."""
        out = F.relu(self.bn1(x))
        shortcut = x if self.shortcut is None else self.shortcut(out)
        return self.conv2(F.relu(self.bn2(self.conv1(out)))) + shortcut


class PreActResNet18(nn.Module):
    """Identity Mappings (He et al., ECCV 2016) as in DGAD: images (B, 3, H, W) to logits (B, C).

    The official network ends without BatchNorm and ReLU. Its classifier receives one average per 4x4 features: 2x2
    averages at 64x64 (2048 inputs), one at 32x32 (512). So the state dict depends on ``image_size``, but the network
    accepts images of any size.
    """

    def __init__(self, num_classes: int, image_size: int = 32):
        super().__init__()
        self.pool_size = max(1, image_size // 32)
        self.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
        self.layer1 = nn.Sequential(PreActBlock(64, 64, 1), PreActBlock(64, 64, 1))
        self.layer2 = nn.Sequential(PreActBlock(64, 128, 2), PreActBlock(128, 128, 1))
        self.layer3 = nn.Sequential(PreActBlock(128, 256, 2), PreActBlock(256, 256, 1))
        self.layer4 = nn.Sequential(PreActBlock(256, 512, 2), PreActBlock(512, 512, 1))
        self.linear = nn.Linear(512 * self.pool_size**2, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (B, C) for images x (B, 3, H, W) in [0, 1]."""
        out = self.layer4(self.layer3(self.layer2(self.layer1(self.conv1(x)))))
        return self.linear(F.adaptive_avg_pool2d(out, self.pool_size).flatten(1))
