"""All networks by name. Each maps images (B, 3, H, W) in [0, 1] to logits (B, C)."""

from functools import partial

from torch import nn

from models.deepmind_wide_resnet import DeepMindWideResNet
from models.mobilenet_v2 import MobileNetV2
from models.preact_resnet import PreActResNet18
from models.resnet import BasicBlock, Bottleneck, ResNet
from models.small import SmallResNet
from models.vgg import VGG16
from models.wide_resnet import WideResNet
from utils.errors import UserError
from utils.names import canonical

# Name -> constructor(num_classes); presnet18 also takes image_size.
MODELS = {
    "resnet18": partial(ResNet, BasicBlock, (2, 2, 2, 2)),
    "resnet34": partial(ResNet, BasicBlock, (3, 4, 6, 3)),
    "resnet50": partial(ResNet, Bottleneck, (3, 4, 6, 3)),
    "mobilenetV2": MobileNetV2,
    "vgg16": VGG16,
    "wideresnet34_10": partial(WideResNet, depth=34, width=10, sub_block1=True),
    "wideresnet28_10": partial(WideResNet, depth=28, width=10, sub_block1=True),
    "wideresnet34_20": partial(WideResNet, depth=34, width=20, sub_block1=False),
    "wideresnet70_16": partial(WideResNet, depth=70, width=16, sub_block1=True),
    "wideresnet70_16_deepmind": partial(DeepMindWideResNet, depth=70, width=16),
    "presnet18": PreActResNet18,
    "small_resnet": SmallResNet,
}

# Names of published checkpoints -> their architectures.
ALIASES = {
    "Chen2021LTD_WRN34_10": "wideresnet34_10",
    "Chen2021LTD_WRN34_20": "wideresnet34_20",
    "Chen2021LTD_WRD34_20": "wideresnet34_20",
    "Chen2021WRN34_10": "wideresnet34_10",
    "Gowal2020Uncovering": "wideresnet70_16_deepmind",
    "Zhang2019Theoretically": "wideresnet34_10",
}


def build(name: str, num_classes: int, image_size: int = 32) -> nn.Module:
    """Return a newly initialized network for ``name``, a key of MODELS or ALIASES in any case.

    Raises UserError with the nearest names for an unknown name, and for images that are too small for the network.
    """
    name = canonical(name, MODELS, ALIASES, "--model")
    if name == "vgg16" and image_size < 32:
        raise UserError(f"--image_size {image_size}: vgg16 needs 32 or more; choose a larger size or another --model")
    if name == "presnet18":
        return PreActResNet18(num_classes, image_size)
    return MODELS[name](num_classes)
