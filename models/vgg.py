"""VGG-16 with BatchNorm for small images: one linear layer instead of three."""

from torch import Tensor, nn

WIDTHS = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))


class VGG16(nn.Module):
    """VGG-16 (Simonyan & Zisserman, ICLR 2015) in the CIFAR variant: images (B, 3, H, W) to logits (B, C)."""

    def __init__(self, num_classes: int):
        super().__init__()
        layers, in_width = [], 3
        for stage in WIDTHS:
            for width in stage:
                layers += [nn.Conv2d(in_width, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()]
                in_width = width
            # Rounding up keeps the border of an odd size; an even size is halved exactly.
            layers.append(nn.MaxPool2d(2, ceil_mode=True))
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(512, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (B, C) for images x (B, 3, H, W) in [0, 1]."""
        # The official code reads the single pixel that is left at 32x32.
        return self.classifier(self.features(x).mean((2, 3)))
