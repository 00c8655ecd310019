"""Winograd's convolution is the usual one: outputs, gradients, inside a view that follows its network."""

import gc
import weakref
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from tiny import tiny_problem
from torch import nn

from engine.fast import winograd
from engine.fast.frozen import FoldedModel
from engine.fast.precision import Arithmetic, choose_arithmetic
from engine.fast.winograd import WinogradConv2d
from engine.training.trainer import Trainer
from methods import METHODS
from utils.config import TrainConfig

CHANNELS = winograd.MIN_CHANNELS
EXACT = Arithmetic(channels_last=True, winograd=True)


class Wide(nn.Module):
    """Convolutions that a BatchNorm follows or precedes, with a bias and without, and some that do not suit."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, CHANNELS, 3, padding=1)
        self.norm, self.folded_norm = nn.BatchNorm2d(CHANNELS), nn.BatchNorm2d(CHANNELS)
        self.folded = nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1, bias=False)
        self.alone = nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1)
        self.biasless = nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1, bias=False)
        self.strided = nn.Conv2d(CHANNELS, CHANNELS, 3, stride=2, padding=1)
        self.grouped = nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1, groups=2)
        self.narrow = nn.Conv2d(CHANNELS, 8, 3, padding=1)

    def forward(self, x):
        x = F.relu(self.norm(self.stem(x)))
        x = x + self.biasless(F.relu(self.alone(F.relu(self.folded_norm(self.folded(x))))))
        return self.narrow(self.grouped(self.strided(x))).mean((2, 3))


def wide(dtype=torch.float64):
    torch.manual_seed(0)
    return Wide().to(dtype), torch.rand(2, 3, 7, 7, dtype=dtype), torch.tensor([3, 1])


def trained_a_step(network, x, y):
    optimizer = torch.optim.SGD(network.train().parameters(), lr=0.1)
    F.cross_entropy(network(x), y).backward()
    optimizer.step()
    return network.eval()


def both(shape, kernels, dtype, bias=True, computed=None):
    """Outputs and input gradients of a convolution in ``dtype`` and of Winograd's, which is ``computed`` in another."""
    torch.manual_seed(0)
    conv = nn.Conv2d(shape[1], kernels, 3, padding=1, bias=bias).to(dtype).requires_grad_(False)
    x = torch.randn(shape, dtype=dtype)
    weight = conv.weight.clone()
    fast = WinogradConv2d(conv.to(computed or dtype))
    fast.set_weight(weight)
    usual = partial(F.conv2d, weight=weight, bias=conv.bias.to(dtype) if bias else None, padding=1)
    upstream = torch.randn(usual(x).shape, dtype=dtype)
    results = []
    for forward, kind in ((usual, dtype), (fast, computed or dtype)):
        images = x.to(kind, memory_format=torch.channels_last).requires_grad_()
        output = forward(images)
        (gradient,) = torch.autograd.grad(output, images, upstream.to(kind))
        results.append((output.detach(), gradient))
    return results


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    "shape", [(3, 5, 8, 8), (1, 4, 5, 7), (2, 3, 1, 1), (5, 3, 4, 3)], ids=lambda shape: "x".join(map(str, shape))
)
@pytest.mark.parametrize("at_once", [winograd.CHUNK, 1], ids=["whole", "image by image"])
def test_in_float64_it_is_the_convolution_to_rounding(monkeypatch, shape, bias, at_once):
    monkeypatch.setattr(winograd, "CHUNK", at_once)
    usual, fast = both(shape, 7, torch.float64, bias)
    torch.testing.assert_close(fast, usual, rtol=0, atol=1e-13)  # sums of at most 70 terms of about 1, in another order


@pytest.mark.parametrize("size", [4, 7])
def test_in_bfloat16_it_errs_little_more_than_the_usual_convolution(size):
    exact, found = both((4, CHANNELS, size, size), CHANNELS, torch.float32, computed=torch.bfloat16)
    # Images, both steps of their transform, weight, products and result are rounded, by 2**-9 at most, in terms whose
    # norm is up to twice the result's. Six errors of random signs: 2 * sqrt(6) = 4.9.
    for right, rounded in zip(exact, found, strict=True):
        assert rounded.dtype == torch.bfloat16
        assert (rounded.float() - right).norm() < 5 * 2**-9 * right.norm()


def test_its_gradient_can_be_differentiated_again():
    torch.manual_seed(0)
    conv = nn.Conv2d(2, 3, 3, padding=1).double().requires_grad_(False)
    fast = WinogradConv2d(conv)
    fast.set_weight(conv.weight)
    x = torch.randn(1, 2, 3, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(fast, x) and torch.autograd.gradgradcheck(fast, x)


def test_the_output_lies_channels_last():
    conv = nn.Conv2d(4, 6, 3, padding=1).requires_grad_(False)
    output = WinogradConv2d(conv)(torch.rand(2, 4, 8, 8).to(memory_format=torch.channels_last))
    assert output.is_contiguous(memory_format=torch.channels_last)


def test_a_view_takes_it_for_wide_convolutions_alone_and_follows_its_network():
    network, x, y = wide()
    view = FoldedModel(network, EXACT)
    fast = {name for name, part in view.body.named_modules() if isinstance(part, WinogradConv2d)}
    assert fast == {"folded", "alone", "biasless"}
    places = {key: value.data_ptr() for key, value in view.state_dict().items()}
    trained_a_step(network, x, y)
    view.refresh()
    assert places == {key: value.data_ptr() for key, value in view.state_dict().items()}
    x.requires_grad_()
    logits, found = network(x), view(x)
    torch.testing.assert_close(found, logits, rtol=1e-12, atol=1e-12)
    gradients = [torch.autograd.grad(F.cross_entropy(z, y), x)[0] for z in (found, logits)]
    torch.testing.assert_close(*gradients, rtol=1e-10, atol=1e-13)


def test_in_bfloat16_planes_are_rounded_once_from_the_folded_weight_and_the_stem_stays_float32():
    network, x, _ = wide(torch.float32)
    network.eval()
    view = FoldedModel(network, Arithmetic(torch.bfloat16, True, False, True))
    exact = FoldedModel(network, EXACT)
    assert view.body.stem.weight.dtype == torch.float32
    for name in ("folded", "alone"):
        assert torch.equal(view.body.get_submodule(name).planes, exact.body.get_submodule(name).planes.bfloat16())
    # Six convolutions behind the stem, each with the error above at most.
    assert (view(x) - network(x)).norm() < 6 * 5 * 2**-9 * network(x).norm()


def test_without_winograd_every_convolution_stays():
    view = FoldedModel(wide()[0], Arithmetic(channels_last=True))
    assert not any(isinstance(part, WinogradConv2d) for part in view.modules())


@pytest.mark.parametrize(
    ("precision", "compile", "flags", "expected"),
    [
        ("auto", "auto", {"avx512_bf16"}, True),
        ("bf16", "auto", set(), True),
        ("bf16", "on", {"avx512_bf16"}, False),
        ("bf16", "auto", {"avx512_bf16", "amx_bf16"}, False),
        ("fp32", "auto", {"avx512_bf16"}, False),
    ],
)
def test_it_is_chosen_for_plain_bfloat16_on_a_cpu_without_amx(monkeypatch, precision, compile, flags, expected):
    monkeypatch.setattr("engine.fast.precision._cpu_flags", lambda: flags)
    arithmetic, words = choose_arithmetic(precision, compile, torch.device("cpu"))
    assert arithmetic.winograd == expected == words.endswith(", Winograd")


# Memory.


@pytest.mark.parametrize("arithmetic", [Arithmetic(), EXACT], ids=["plain", "winograd"])
def test_a_view_that_let_go_holds_nothing_of_its_network_and_still_computes(arithmetic):
    network, x, _ = wide()
    view = FoldedModel(network.eval(), arithmetic).detach_source()
    before, held = view(x), [weakref.ref(network), *(weakref.ref(part) for part in network.modules())]
    view.refresh()
    del network
    gc.collect()
    assert not any(reference() for reference in held)
    assert torch.equal(view(x), before)


def test_training_keeps_no_teacher_beside_its_view():
    student, teacher, x, y = tiny_problem()
    optimizer = torch.optim.SGD(student.parameters(), lr=0.1)
    method = METHODS["RSLAD"](TrainConfig())
    trainer = Trainer(student, [teacher], method, optimizer, epsilon=0.03, step_size=0.01, steps=1)
    held = weakref.ref(teacher.conv1.weight)
    del teacher
    assert held() is None
    trainer.step(x, y)
