"""The networks: official keys, shapes and logits; any image size and class count."""

import json
import math
import zlib

import pytest
import torch
import torch.nn.functional as F
from conftest import GOLDEN, user_error

from models import ALIASES, MODELS, build
from models.deepmind_wide_resnet import DeepMindWideResNet
from models.normalized import CONSTANTS
from models.wide_resnet import WideResNet

# Entry of models.json -> arguments of build.
OFFICIAL = {
    **{name: (name, 10) for name in ("resnet18", "resnet34", "resnet50", "mobilenetV2", "vgg16")},
    **{name: (name, 10) for name in ("wideresnet34_10", "wideresnet28_10", "Chen2021LTD_WRN34_20")},
    "resnet18_tiny": ("resnet18", 200, 64),
    "Chen2021LTD_WRN34_10_cifar100": ("Chen2021LTD_WRN34_10", 100),
    "presnet18_tiny": ("presnet18", 200, 64),
}
DEEPMIND = "deepmind_wrn70_16_layout_at_depth16_width2"
RECORDED = json.loads((GOLDEN / "models.json").read_text(encoding="utf-8"))["models"]


def shapes(network) -> list[tuple[str, list[int]]]:
    return [(key, list(value.shape)) for key, value in network.state_dict().items()]


def on_meta(*arguments):
    with torch.device("meta"):
        return build(*arguments)


def assert_logits(network, expected):
    """Fill the network as for the recording, by a function of each key and shape, and compare the logits."""

    def fill(key, like):
        if not like.is_floating_point():
            return torch.zeros(like.shape, dtype=like.dtype)
        noise = torch.randn(like.shape, generator=torch.Generator().manual_seed(zlib.crc32(key.encode())))
        if key.endswith("running_var"):
            return noise.abs() + 0.5
        if noise.ndim == 1 and key.endswith("weight"):
            return 1 + 0.1 * noise
        return 0.1 * noise if noise.ndim == 1 else noise / math.sqrt(noise[0].numel())

    # assign: a network on the meta device gets real weights without the cost of an initialization.
    network.load_state_dict({key: fill(key, like) for key, like in network.state_dict().items()}, assign=True)
    images = torch.rand(expected["input"], generator=torch.Generator().manual_seed(7))
    with torch.no_grad():
        logits = network.eval()(images)
    torch.testing.assert_close(logits, torch.tensor(expected["logits"]), rtol=0, atol=1e-4)


@pytest.mark.recorded
@pytest.mark.parametrize("entry", OFFICIAL)
def test_keys_shapes_and_logits_equal_the_official_ones(entry):
    network, expected = on_meta(*OFFICIAL[entry]), RECORDED[entry]
    assert shapes(network) == list(expected["state_dict"].items())
    assert sum(parameter.numel() for parameter in network.parameters()) == expected["parameters"]
    if "logits" in expected:
        assert_logits(network, expected)


@pytest.mark.recorded
def test_deepmind_layout_equals_the_official_one():
    network, expected = DeepMindWideResNet(100, depth=16, width=2), RECORDED[DEEPMIND]
    assert shapes(network) == list(expected["state_dict"].items())
    # The recorded code normalizes CIFAR-100 with the statistics of CIFAR-10 (a mistake of RSLAD's copy).
    network.mean, network.std = (torch.tensor(value).view(1, 3, 1, 1) for value in CONSTANTS["cifar10"])
    assert_logits(network, expected)


def test_deepmind_network_normalizes_with_the_statistics_of_its_dataset():
    for classes, expected in ((10, (0.4914, 0.2471)), (100, (0.5071, 0.2673))):
        network = DeepMindWideResNet(classes, depth=10, width=1)
        assert (network.mean[0, 0].item(), network.std[0, 0].item()) == pytest.approx(expected)


@pytest.mark.parametrize("size", [16, 32, 64])
@pytest.mark.parametrize("name", MODELS)
def test_any_size_and_class_count(name, size):
    if name == "vgg16" and size < 32:
        with user_error("--image_size 16: vgg16 needs 32 or more"):
            build(name, 7, size)
        return
    # The wide networks have up to 267 million parameters; the meta device computes only shapes.
    with torch.device("meta" if name.startswith("wide") else "cpu"):
        network = build(name, 7, size)
        out = network(torch.rand(2, 3, size, size))
        F.cross_entropy(out, torch.zeros(2, dtype=torch.long)).backward()
    assert out.shape == (2, 7)
    # A trainable parameter without a gradient stalls distributed training.
    assert all(parameter.grad is not None for parameter in network.parameters() if parameter.requires_grad)


def test_wide_resnet_is_initialized_as_in_the_official_code():
    torch.manual_seed(0)
    network = WideResNet(10, depth=10, width=4, sub_block1=True)
    weight = network.block3.layer[0].conv2.weight
    assert weight.std().item() == pytest.approx(math.sqrt(2 / (9 * 256)), rel=0.01)
    assert not network.fc.bias.any()


def test_names_and_aliases_in_any_case():
    assert shapes(on_meta("MobileNetv2", 10)) == shapes(on_meta("mobilenetV2", 10))
    assert shapes(on_meta("chen2021wrn34_10", 100)) == shapes(on_meta("wideresnet34_10", 100))
    assert set(ALIASES.values()) <= set(MODELS)
    with user_error("--model resnet81: .*nearest: resnet18"):
        build("resnet81", 10)
