"""WinogradConv2d equals nn.Conv2d: outputs and gradients, within a FoldedModel too."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from engine.fast import winograd
from engine.fast.frozen import FoldedModel
from engine.fast.precision import Arithmetic
from engine.fast.winograd import WinogradConv2d

CHANNELS = winograd.MIN_CHANNELS
WINOGRAD = Arithmetic(channels_last=True, winograd=True)


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


def test_a_folded_model_uses_it_for_wide_convolutions_and_refreshes_it_in_place():
    network = Wide().double().eval()
    x, y = torch.rand(2, 3, 7, 7, dtype=torch.float64), torch.tensor([3, 1])
    folded = FoldedModel(network, WINOGRAD)
    replaced = {path for path, module in folded.body.named_modules() if isinstance(module, WinogradConv2d)}
    assert replaced == {"folded", "biased", "unbiased"}
    addresses = {key: value.data_ptr() for key, value in folded.state_dict().items()}
    optimizer = torch.optim.SGD(network.train().parameters(), lr=0.1)
    F.cross_entropy(network(x), y).backward()
    optimizer.step()
    network.eval()
    folded.refresh()
    assert addresses == {key: value.data_ptr() for key, value in folded.state_dict().items()}
    x.requires_grad_()
    logits, expected = folded(x), network(x)
    torch.testing.assert_close(logits, expected, rtol=1e-12, atol=1e-12)
    gradients = [torch.autograd.grad(F.cross_entropy(z, y), x)[0] for z in (logits, expected)]
    torch.testing.assert_close(*gradients, rtol=1e-10, atol=1e-13)
    plain = FoldedModel(network, Arithmetic(channels_last=True))
    assert not any(isinstance(module, WinogradConv2d) for module in plain.modules())
