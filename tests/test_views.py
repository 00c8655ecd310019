"""What an attack climbs is the network itself: same logits, same gradients, while nothing of the live network moves."""

import logging

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from engine.fast.folding import Affine
from engine.fast.frozen import FoldedModel, FrozenModel
from engine.fast.precision import PLAIN, Arithmetic
from models import MODELS, build
from models.normalized import Normalized
from models.wide_resnet import WideResNet

CLASSES = 5
# BatchNorms that follow an addition or a convolution with a second reader; every other one disappears.
LEFT_OVER = {"presnet18": 8, "wideresnet34_10": 6, "wideresnet70_16_deepmind": 6, "resnet18": 0, "mobilenetV2": 0}


class Gated(nn.Module):
    """Its path depends on its images, as in some networks of other people."""

    def __init__(self):
        super().__init__()
        self.body = build("small_resnet", CLASSES)

    def forward(self, x):
        return self.body(x) if x.mean() > 0.5 else self.body(2 * x)


class Awkward(nn.Module):
    """Calls one convolution twice, normalises after a ReLU, drops out, and keeps features of its last forward."""

    def __init__(self):
        super().__init__()
        self.register_buffer("offset", torch.rand(1, 3, 1, 1))
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.relu, self.bn = nn.ReLU(), nn.BatchNorm2d(4, affine=False)
        self.twice = nn.Conv2d(4, 4, 1)
        self.bn1, self.bn2 = nn.BatchNorm2d(4), nn.BatchNorm2d(4)
        self.batch = nn.BatchNorm2d(4, track_running_stats=False)
        self.linear = nn.Linear(4, CLASSES)

    def forward(self, x):
        self.features = self.bn(self.relu(self.conv(x - 2 * self.offset)))
        out = self.bn2(self.twice(self.bn1(self.twice(self.features)).relu()))
        return self.linear(F.dropout(self.batch(out).mean((2, 3)), training=self.training))


def scrambled(network):
    """Any statistics that training could leave, and scales that it hardly would: negative and vanishing ones."""
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


def made(name, dtype=torch.float64):
    """The network of that name, the wide ones at depth 16 and width 2."""
    torch.manual_seed(0)
    smaller = {"depth": 16, "width": 2} if "depth" in getattr(MODELS[name], "keywords", {}) else {}
    return scrambled(MODELS[name](CLASSES, **smaller).to(dtype))


def batch(size=16, dtype=torch.float64):
    generator = torch.Generator().manual_seed(1)
    return torch.rand(3, 3, size, size, dtype=dtype, generator=generator), torch.tensor([0, 3, 1])


def attack_model(network, x, y):
    """Logits and the gradient that an attack reads."""
    x = x.clone().requires_grad_()
    logits = network(x)
    (gradient,) = torch.autograd.grad(F.cross_entropy(logits, y), x)
    return logits.detach(), gradient


def assert_same(got, expected, tolerance):
    for one, other in zip(got, expected, strict=True):
        assert other.abs().max() > 0
        torch.testing.assert_close(one, other, rtol=0, atol=tolerance * other.abs().max().item())


def kinds(module, kind):
    return sum(type(part) is kind for part in module.modules())


def trained_a_step(network):
    optimizer = torch.optim.SGD(network.train().parameters(), lr=0.01, momentum=0.9)
    x, y = batch(dtype=next(network.parameters()).dtype)
    F.cross_entropy(network(x), y).backward()
    optimizer.step()
    return network


# float64 keeps 16 digits; folding rearranges some products and sums of each layer, which costs a few units in the last.
FLOAT64 = 1e-12


@pytest.mark.parametrize("name", MODELS)
def test_same_logits_and_gradients_as_the_network(name):
    network, (x, y) = made(name), batch()
    view = FoldedModel(network.train())
    assert_same(attack_model(view, x, y), attack_model(network.eval(), x, y), FLOAT64)
    assert kinds(view, nn.BatchNorm2d) == 0


@pytest.mark.parametrize(("name", "count"), LEFT_OVER.items())
def test_only_a_batchnorm_without_its_own_convolution_is_left_as_a_multiply_add(name, count):
    assert kinds(FoldedModel(made(name)), Affine) == count


@pytest.mark.parametrize("network", [made("small_resnet"), made("wideresnet70_16_deepmind")], ids=["small", "deepmind"])
def test_normalisation_inside_the_network_stays(network):
    mean, std = torch.rand(2, 1, 3, 1, 1, dtype=torch.float64) + 0.1
    network, (x, y) = Normalized(network, mean, std), batch()
    view = FoldedModel(network)
    network.mean += 0.1
    view.refresh()
    assert_same(attack_model(view, x, y), attack_model(network.eval(), x, y), FLOAT64)


def test_what_cannot_be_folded_is_left_alone():
    torch.manual_seed(0)
    network, (x, y) = scrambled(Awkward().double()), batch()
    network(x)  # leaves features with a history behind
    view = FoldedModel(network)
    network.offset += 0.1
    view.refresh()
    assert_same(attack_model(view, x, y), attack_model(network.eval(), x, y), FLOAT64)
    assert (kinds(view, Affine), kinds(view, nn.BatchNorm2d)) == (3, 1)  # that one reads its batch in eval mode too


@pytest.mark.parametrize("name", ["small_resnet", "vgg16", "presnet18", "wideresnet34_10"])
def test_a_refreshed_view_equals_a_fresh_one_in_the_same_storages(name):
    network, (x, y) = made(name), batch()
    view = FoldedModel(network)
    before = attack_model(view, x, y)[0]
    places = {key: value.data_ptr() for key, value in view.state_dict().items()}
    trained_a_step(network)
    assert torch.equal(attack_model(view, x, y)[0], before)  # what it holds is its own until then
    view.refresh()
    fresh = FoldedModel(network)
    assert not torch.equal(attack_model(view, x, y)[0], before)
    assert_same(attack_model(view, x, y), attack_model(fresh, x, y), 0)
    assert {key: value.data_ptr() for key, value in view.state_dict().items()} == places


@pytest.mark.parametrize("network", [build("small_resnet", CLASSES), Gated()], ids=["folded", "fallback"])
def test_the_live_network_notices_nothing(network):
    trained_a_step(network)
    state = {key: value.clone() for key, value in network.state_dict().items()}
    gradients = [parameter.grad.clone() for parameter in network.parameters()]
    chance, (x, y) = torch.get_rng_state(), batch(dtype=torch.float32)
    view = FoldedModel(network)
    F.cross_entropy(view.train()(x.requires_grad_()), y).backward()
    view.refresh()
    assert torch.equal(torch.get_rng_state(), chance)
    assert all(module.training for module in network.modules())
    assert all(parameter.requires_grad for parameter in network.parameters())
    assert all(torch.equal(value, state[key]) for key, value in network.state_dict().items())
    pairs = zip(network.parameters(), gradients, strict=True)
    assert all(torch.equal(parameter.grad, gradient) for parameter, gradient in pairs)
    assert not any(value.requires_grad or value.grad is not None for value in view.parameters())
    theirs = {value.data_ptr() for value in network.state_dict().values()}
    assert theirs.isdisjoint(value.data_ptr() for value in view.state_dict().values())


def test_what_no_forward_uses_is_not_copied():
    network = WideResNet(CLASSES, depth=10, width=1, sub_block1=True)
    assert not any("sub_block1" in key for key in FoldedModel(network).state_dict())


def test_channels_last_is_the_same_function_and_gives_gradients_in_the_layout_of_the_images():
    for name in ("small_resnet", "mobilenetV2", "presnet18"):
        network, (x, y) = made(name), batch()
        view = FoldedModel(network, Arithmetic(channels_last=True))
        places = [value.data_ptr() for value in view.state_dict().values()]
        trained_a_step(network)
        view.refresh()
        assert places == [value.data_ptr() for value in view.state_dict().values()]
        got = attack_model(view, x, y)
        assert_same(got, attack_model(network.eval(), x, y), FLOAT64)
        assert got[1].is_contiguous()
        assert all(
            weight.is_contiguous(memory_format=torch.channels_last) for weight in view.parameters() if weight.ndim == 4
        )


@pytest.mark.parametrize("channels_last", [False, True])
def test_bfloat16(channels_last):
    network, (x, y) = made("small_resnet", torch.float32), batch(dtype=torch.float32)
    view = FoldedModel(network, Arithmetic(torch.bfloat16, channels_last))
    early = [view.body.conv1.weight, view.body.conv1.bias]  # images are not rounded
    assert {value.dtype for value in early} == {torch.float32}
    late = [value for value in view.parameters() if not any(value is one for one in early)]
    assert {value.dtype for value in late} == {torch.bfloat16}
    logits, gradient = attack_model(view, x, y)
    expected_logits, expected_gradient = attack_model(network.eval(), x, y)
    assert logits.dtype == gradient.dtype == torch.float32
    # Rounding is 2**-9 of a value. Each of 8 layers in a row rounds weights, sums and the shortcut's sum; had all of
    # these 24 errors one sign, they would add up to 0.047. Backward doubles the way, and a ReLU near 0 may flip.
    assert_same([logits], [expected_logits], 24 * 2**-9)
    assert F.cosine_similarity(gradient.flatten(), expected_gradient.flatten(), dim=0) > 1 - 48 * 2**-9


def test_folding_is_computed_in_float32_at_least():
    network = made("small_resnet", torch.float32).bfloat16()
    folded = FoldedModel(network, Arithmetic(torch.float32))
    exact = FoldedModel(network.double())
    for key, value in folded.state_dict().items():
        # float32 keeps 7 digits, bfloat16 would keep 2; a bias is a difference of terms of about 1.
        torch.testing.assert_close(value.double(), exact.state_dict()[key], rtol=1e-5, atol=1e-5)


def test_a_network_without_a_fixed_graph_is_copied_whole_and_the_log_says_so(caplog):
    torch.manual_seed(0)
    network, (x, y) = scrambled(Gated().double()), batch()
    with caplog.at_level(logging.INFO, logger="run"):
        view = FoldedModel(network)
    (line,) = caplog.messages
    assert line.startswith("Gated: attacks use it without folded BatchNorm (")
    assert "\n" not in line
    places = [value.data_ptr() for value in view.state_dict().values()]
    with torch.no_grad():
        network.body.linear.weight += 1
    network.train()
    view.train().refresh()
    assert places == [value.data_ptr() for value in view.state_dict().values()]
    for images in (x, x / 4):
        assert_same(attack_model(view, images, y), attack_model(network.eval(), images, y), 0)


def test_hooks_on_a_network_still_run():
    network, (x, y) = made("small_resnet"), batch()
    network.conv1.register_forward_hook(lambda module, inputs, output: 3 * output)
    assert_same(attack_model(FoldedModel(network), x, y), attack_model(network.eval(), x, y), FLOAT64)


@pytest.mark.parametrize("name", ["small_resnet", "mobilenetV2", "wideresnet34_10"])
@pytest.mark.parametrize("training", [True, False])
def test_frozen_is_a_plain_forward_with_constant_parameters(name, training):
    network, twin = made(name, torch.float32).train(training), made(name, torch.float32).train(training)
    x, y = batch(dtype=torch.float32)
    for _ in range(2):  # the second forward meets the statistics that the first one moved
        assert_same(attack_model(FrozenModel(network), x, y), attack_model(twin, x, y), 0)
    state = network.state_dict()
    assert all(torch.equal(value, state[key]) for key, value in twin.state_dict().items())
    untouched = made(name, torch.float32).state_dict()
    assert any(not torch.equal(value, state[key]) for key, value in untouched.items()) == training


def test_frozen_has_no_graph_to_the_parameters():
    network, (x, y) = made("small_resnet"), batch()
    parameters = list(network.parameters())
    F.cross_entropy(FrozenModel(network)(x.requires_grad_()), y).backward()
    assert x.grad is not None
    assert all(parameter.grad is None and parameter.requires_grad for parameter in parameters)
    assert all(ours is theirs for ours, theirs in zip(parameters, network.parameters(), strict=True))


def test_a_view_lies_in_memory_as_its_arithmetic_says_whatever_the_network_does():
    net = build("small_resnet", 10).eval().to(memory_format=torch.channels_last)
    for arithmetic, wanted in ((PLAIN, torch.contiguous_format), (Arithmetic(channels_last=True), torch.channels_last)):
        wide = [value for value in FoldedModel(net, arithmetic).state_dict().values() if value.ndim == 4]
        assert wide and all(value.is_contiguous(memory_format=wanted) for value in wide)
