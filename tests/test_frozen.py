"""The networks of an attack, with Winograd's algorithm too, compute what the network computes; it does not change."""

import logging
import sys
from functools import partial
from importlib.metadata import distributions

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from engine.fast import winograd
from engine.fast.folding import Affine
from engine.fast.frozen import ROUNDING as ALLOWED
from engine.fast.frozen import FoldedModel
from engine.fast.precision import PLAIN, Arithmetic
from engine.fast.winograd import WinogradConv2d
from engine.sync_batchnorm import CudaSyncedBatchNorm2d, SyncSwitch
from models import MODELS, build
from models.normalized import Normalized
from models.robustbench import build as build_zoo
from models.robustbench import zoo

CLASSES = 5
# BatchNorms after an addition or after a convolution with a second reader; all others are folded.
AFFINES = {"presnet18": 8, "wideresnet34_10": 6, "wideresnet70_16_deepmind": 6, "resnet18": 0, "Unusual": 3}
CHANNELS = winograd.MIN_CHANNELS
CHANNELS_LAST, WINOGRAD = Arithmetic(channels_last=True), Arithmetic(channels_last=True, winograd=True)
# float64 has 16 digits; folding reorders some products and sums of each layer, which changes the last ones.
ROUNDING = 1e-12


class Gated(nn.Module):
    """Its control flow depends on its images."""

    def __init__(self):
        super().__init__()
        self.body = build("small_resnet", CLASSES)

    def forward(self, x):
        return self.body(x) if x.mean() > 0.5 else self.body(2 * x)


class TwoStems(nn.Module):
    """Two convolutions of its images, or one, and their shape."""

    def __init__(self, readers=2):
        super().__init__()
        self.readers = readers
        self.wide, self.narrow, self.linear = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(3, 4, 1), nn.Linear(4, CLASSES)

    def forward(self, x):
        batch, features = x.shape[0], self.wide(x)
        features = features + self.narrow(x) if self.readers == 2 else features
        return self.linear(features.mean((2, 3)).view(batch, x.size(1) + 1))


class Unusual(nn.Module):
    """One convolution called twice, tied weights, BatchNorm after a ReLU, dropout, features of the last forward."""

    def __init__(self):
        super().__init__()
        self.register_buffer("offset", torch.rand(1, 3, 1, 1))
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.relu, self.bn = nn.ReLU(), nn.BatchNorm2d(4, affine=False)
        self.twice, self.tied = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1)
        self.tied.weight = self.twice.weight
        self.bn1, self.bn2, self.bn3 = nn.BatchNorm2d(4), nn.BatchNorm2d(4), nn.BatchNorm2d(4)
        self.batch = nn.BatchNorm2d(4, track_running_stats=False)
        self.linear = nn.Linear(4, CLASSES)

    def forward(self, x):
        self.features = self.bn(self.relu(self.conv(x - 2 * self.offset)))
        out = self.bn2(self.twice(self.bn1(self.twice(self.features)).relu()))
        out = self.batch(self.bn3(self.tied(out)))
        return self.linear(F.dropout(out.mean((2, 3)), training=self.training))


class WithMean(Normalized):
    """Normalizes its input by buffers."""

    def __init__(self):
        super().__init__(build("small_resnet", CLASSES), *torch.rand(2, 1, 3, 1, 1) + 0.1)


class Wide(nn.Module):
    """Wide convolutions with and without BatchNorm and bias, and some that Winograd's algorithm does not support."""

    def __init__(self):
        super().__init__()
        conv = partial(nn.Conv2d, CHANNELS, CHANNELS, 3, padding=1)
        self.stem = nn.Conv2d(3, CHANNELS, 3, padding=1)
        self.norm, self.folded_norm = nn.BatchNorm2d(CHANNELS), nn.BatchNorm2d(CHANNELS)
        self.folded, self.biased, self.unbiased = conv(bias=False), conv(), conv(bias=False)
        self.strided, self.grouped = conv(stride=2), conv(groups=2)
        self.narrow = nn.Conv2d(CHANNELS, 8, 3, padding=1)

    def forward(self, x):
        x = F.relu(self.norm(self.stem(x)))
        x = x + self.unbiased(F.relu(self.biased(F.relu(self.folded_norm(self.folded(x))))))
        return self.narrow(self.grouped(self.strided(x))).mean((2, 3))


OTHERS = {"Gated": Gated, "Unusual": Unusual, "WithMean": WithMean}


def randomized(network):
    """Give BatchNorm random statistics, and scales that are rare after training: negative and tiny ones."""
    with torch.no_grad():
        for norm in (module for module in network.modules() if isinstance(module, nn.BatchNorm2d)):
            if norm.affine:
                norm.weight.uniform_(-1.5, 1.5)
                norm.weight[::5] = 1e-6
                norm.weight[1::5] = -1e-6
                norm.bias.normal_()
            if norm.running_var is not None:
                norm.running_mean.normal_()
                norm.running_var.uniform_(0.1, 3)
    return network


def make(name, dtype=torch.float64):
    """Build a network by name; wide ones with depth 16 and width 2."""
    torch.manual_seed(0)
    if name not in MODELS:
        return randomized((OTHERS | {"Wide": Wide})[name]().to(dtype))
    smaller = {"depth": 16, "width": 2} if "depth" in getattr(MODELS[name], "keywords", {}) else {}
    return randomized(MODELS[name](CLASSES, **smaller).to(dtype))


def batch(dtype=torch.float64):
    generator = torch.Generator().manual_seed(1)
    return torch.rand(3, 3, 16, 16, dtype=dtype, generator=generator), torch.tensor([0, 3, 1])


def logits_and_gradient(network, x, y):
    x = x.clone().requires_grad_()
    logits = network(x)
    (gradient,) = torch.autograd.grad(F.cross_entropy(logits, y), x)
    return logits.detach(), gradient


def assert_same(got, expected, tolerance):
    for one, other in zip(got, expected, strict=True):
        assert other.abs().max() > 0
        torch.testing.assert_close(one, other, rtol=0, atol=tolerance * other.abs().max().item())


def count(module, kind):
    return sum(type(each) is kind for each in module.modules())


def addresses(model):
    return {key: value.data_ptr() for key, value in model.state_dict().items()}


def train_a_step(network):
    optimizer = torch.optim.SGD(network.train().parameters(), lr=0.01, momentum=0.9)
    x, y = batch(next(network.parameters()).dtype)
    F.cross_entropy(network(x), y).backward()
    optimizer.step()


LARGE = ("resnet34", "resnet50", "wideresnet34_20", "wideresnet70_16")


@pytest.mark.parametrize(
    ("name", "arithmetic"),
    [pytest.param(name, PLAIN, marks=[pytest.mark.slow] * (name in LARGE)) for name in (*MODELS, *OTHERS)]
    + [(name, CHANNELS_LAST) for name in ("small_resnet", "mobilenetV2", "presnet18", "Unusual")]
    + [("Wide", WINOGRAD)],
)
def test_a_folded_model_is_the_network_before_and_after_a_refresh(name, arithmetic):
    network, (x, y) = make(name), batch()
    network(x)  # leaves features with a grad_fn
    folded = FoldedModel(network.train(), arithmetic)
    before, storage = logits_and_gradient(folded, x, y), addresses(folded)
    assert_same(before, logits_and_gradient(network.eval(), x, y), ROUNDING)
    train_a_step(network)
    if name in ("Unusual", "WithMean"):
        (network.offset if name == "Unusual" else network.mean).add_(0.1)
    assert_same(logits_and_gradient(folded, x, y), before, 0)  # its tensors are copies
    folded.train().refresh()
    got = logits_and_gradient(folded, x, y)
    assert_same(got, logits_and_gradient(network.eval(), x, y), ROUNDING)
    assert not torch.equal(got[0], before[0])
    assert addresses(folded) == storage
    assert storage.keys() and set(storage.values()).isdisjoint(addresses(network).values())
    assert got[1].is_contiguous()  # the layout of the images
    layout = torch.channels_last if arithmetic.channels_last else torch.contiguous_format
    assert all(v.is_contiguous(memory_format=layout) for v in folded.state_dict().values() if v.ndim == 4)


@pytest.mark.parametrize(("name", "affines"), AFFINES.items())
def test_batchnorm_is_folded_if_a_convolution_feeds_only_it(name, affines):
    folded = FoldedModel(make(name))
    unfolded = name == "Unusual"  # has one without running statistics
    assert (count(folded, Affine), count(folded, nn.BatchNorm2d)) == (affines, unfolded)


@pytest.mark.parametrize("channels_last", [False, True])
def test_bfloat16(channels_last):
    network, (x, y) = make("small_resnet", torch.float32), batch(torch.float32)
    folded = FoldedModel(network, Arithmetic(torch.bfloat16, channels_last))
    float32 = {key for key, value in folded.body.state_dict().items() if value.dtype == torch.float32}
    assert float32 == {"conv1.weight", "conv1.bias"}  # images are not rounded
    logits, gradient = logits_and_gradient(folded, x, y)
    expected_logits, expected_gradient = logits_and_gradient(network.eval(), x, y)
    assert logits.dtype == gradient.dtype == torch.float32
    # Rounding errors are 2**-9 of a value. Each of 8 successive layers rounds weights, sums and the shortcut's sum;
    # these 24 errors add up to 0.047 if all have one sign. Backward has twice as many, and a ReLU near 0 may flip.
    assert_same([logits], [expected_logits], 24 * 2**-9)
    assert F.cosine_similarity(gradient.flatten(), expected_gradient.flatten(), dim=0) > 1 - 48 * 2**-9


@pytest.mark.parametrize("readers", [1, 2])
def test_only_images_with_two_readers_are_rounded_to_bfloat16(readers):
    network, x = TwoStems(readers), torch.rand(6, 3, 8, 8)
    folded = FoldedModel(network, Arithmetic(torch.bfloat16))
    assert folded.body.wide.weight.dtype == (torch.float32 if readers == 1 else torch.bfloat16)
    assert_same([folded(x)], [network(x)], 4 * 2**-9)  # of pixels, weights, their sum, logits


def test_a_network_with_control_flow_or_hooks_is_copied_and_the_log_says_so(caplog):
    network, (x, y) = make("small_resnet"), batch()
    network.conv1.register_forward_hook(lambda module, inputs, output: 3 * output)
    expected = logits_and_gradient(network.eval(), x, y)
    with caplog.at_level(logging.INFO, logger="run"):
        folded, _ = FoldedModel(network), FoldedModel(make("Gated"))
    assert_same(logits_and_gradient(folded, x, y), expected, ROUNDING)
    hooks, gated = caplog.messages
    assert hooks == "SmallResNet: attacks use a copy without folded BatchNorm (it has forward hooks)"
    assert gated.startswith("Gated: attacks use a copy without folded BatchNorm (") and "\n" not in gated


def test_batchnorm_of_several_gpus_is_folded_and_uses_replicated_batches_as_they_are():
    network, twin, (x, y) = make("small_resnet"), make("small_resnet"), batch()
    switch = SyncSwitch()
    for path, module in list(network.named_modules()):
        if isinstance(module, nn.BatchNorm2d):
            network.set_submodule(path, CudaSyncedBatchNorm2d(module, switch))
    assert network.state_dict().keys() == twin.state_dict().keys()
    assert_same(logits_and_gradient(FoldedModel(network), x, y), logits_and_gradient(twin.eval(), x, y), ROUNDING)
    assert count(FoldedModel(network), CudaSyncedBatchNorm2d) == 0
    switch.on = False
    assert_same(logits_and_gradient(network.train(), x, y), logits_and_gradient(twin.train(), x, y), 0)
    torch.testing.assert_close(network.state_dict(), twin.state_dict(), rtol=0, atol=0)


# Winograd's algorithm: outputs and gradients equal those of nn.Conv2d.


def outputs_and_gradients(shape, kernels, dtype, bias=True, low_precision=None):
    """Return output and input gradient of a convolution, and those of Winograd's algorithm in ``low_precision``."""
    conv = nn.Conv2d(shape[1], kernels, 3, padding=1, bias=bias).to(dtype).requires_grad_(False)
    x = torch.randn(shape, dtype=dtype)
    weight = conv.weight.clone()
    fast = WinogradConv2d(conv.to(low_precision or dtype))
    fast.set_weight(weight)
    reference = partial(F.conv2d, weight=weight, bias=conv.bias.to(dtype) if bias else None, padding=1)
    upstream = torch.randn(reference(x).shape, dtype=dtype)
    for forward, kind in ((reference, dtype), (fast, low_precision or dtype)):
        images = x.to(kind, memory_format=torch.channels_last).requires_grad_()
        output = forward(images)
        yield output.detach(), torch.autograd.grad(output, images, upstream.to(kind))[0]


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(3, 5, 8, 8), (1, 4, 5, 7), (2, 3, 1, 1), (5, 3, 4, 3)])
@pytest.mark.parametrize("chunk", [winograd.CHUNK, 1], ids=["one chunk", "chunks of one image"])
def test_in_float64_it_equals_the_convolution(monkeypatch, shape, bias, chunk):
    monkeypatch.setattr(winograd, "CHUNK", chunk)
    reference, fast = outputs_and_gradients(shape, 7, torch.float64, bias)
    torch.testing.assert_close(fast, reference, rtol=0, atol=1e-13)  # up to 70 terms of about 1, in another order
    assert fast[0].stride(1) == 1  # channels-last; outputs of odd sides are slices


@pytest.mark.parametrize("size", [4, 7])
def test_in_bfloat16_rounding_errors_are_bounded(size):
    shape = (4, CHANNELS, size, size)
    exact, fast = outputs_and_gradients(shape, CHANNELS, torch.float32, low_precision=torch.bfloat16)
    # Images, both steps of their transform, weight, products and result are rounded, by 2**-9 at most, in terms whose
    # norm is up to twice the result's. Six errors of random signs: 2 * sqrt(6) = 4.9.
    for expected, rounded in zip(exact, fast, strict=True):
        assert rounded.dtype == torch.bfloat16
        assert (rounded.float() - expected).norm() < 5 * 2**-9 * expected.norm()


def test_a_folded_model_uses_it_for_wide_convolutions():
    network = Wide()
    for arithmetic, expected in ((WINOGRAD, {"folded", "biased", "unbiased"}), (CHANNELS_LAST, set())):
        modules = FoldedModel(network, arithmetic).body.named_modules()
        assert {path for path, module in modules if isinstance(module, WinogradConv2d)} == expected


# RobustBench's CIFAR L-infinity networks: the folded copy of each architecture computes the same logits.

INSTALLED = any(each.name == "robustbench" for each in distributions())  # torchattacks has an old copy of its modules
LARGEST = 60e6  # parameters; larger networks have the architectures of smaller ones


@pytest.mark.slow
@pytest.mark.skipif(not INSTALLED, reason="pip install -r requirements-zoo.txt")
@pytest.mark.parametrize("dataset", ["CIFAR10", "CIFAR100"])
def test_folded_copies_of_the_zoo_compute_its_logits(dataset, monkeypatch):
    for name in [name for name in sys.modules if name.partition(".")[0] == "robustbench"]:  # stand-ins of other tests
        monkeypatch.delitem(sys.modules, name)
    seen, checked = set(), []
    for name in sorted(zoo(dataset)):
        torch.manual_seed(0)
        try:
            network = build_zoo(name, dataset).eval()
        except RuntimeError as error:
            if "NVIDIA" in str(error):  # some networks move to a GPU when they are built
                continue
            raise
        key = tuple((key, tuple(value.shape)) for key, value in network.state_dict().items())
        if key in seen or sum(value.numel() for value in network.parameters()) > LARGEST:
            continue
        seen.add(key)
        for module in network.modules():
            if isinstance(module, torch.nn.BatchNorm2d):  # otherwise folding would multiply by one
                module.running_mean.normal_(0, 0.1)
                module.running_var.uniform_(0.5, 2)
        x = torch.rand(2, 3, 32, 32)
        with torch.no_grad():
            expected, logits = network(x), FoldedModel(network)(x)
        assert (logits - expected).abs().max() <= ALLOWED * expected.abs().max(), name
        checked.append(name)
    assert len(checked) >= 5
