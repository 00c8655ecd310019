"""The tiny network of the recordings, two strided convolutions with BatchNorm for 8x8 images, and its training."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from engine.training.trainer import Trainer
from methods import METHODS, count_teachers
from utils.config import TrainConfig

NO_CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
CUDA = pytest.param("cuda", marks=[pytest.mark.gpu, NO_CUDA])


class TinyNet(nn.Module):
    def __init__(self, width: int = 4, num_classes: int = 10):
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, 2 * width, 3, 2, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(2 * width)
        self.linear = nn.Linear(8 * width, num_classes)

    def forward(self, x):
        x = F.relu(self.bn1(self.conv1(x)))
        x = F.relu(self.bn2(self.conv2(x)))
        return self.linear(F.avg_pool2d(x, 2).flatten(1))


class Function(nn.Module):
    def __init__(self, forward):
        super().__init__()
        self.forward = forward


def tiny_from(state: dict) -> TinyNet:
    """The tiny network that a recorded state belongs to, in its precision."""
    net = TinyNet(state["conv1.weight"].shape[0], state["linear.weight"].shape[0]).to(state["conv1.weight"].dtype)
    net.load_state_dict(state)
    return net


def part(arrays: dict, name: str) -> dict:
    """The state dict recorded under ``name``."""
    return {key.removeprefix(f"{name}."): value for key, value in arrays.items() if key.startswith(f"{name}.")}


def tiny_problem(seed: int = 0, n: int = 6, dtype=torch.float64):
    """A student, a teacher in eval mode, images and labels, all from one seed."""
    torch.manual_seed(seed)
    student, teacher = TinyNet().to(dtype), TinyNet().to(dtype).eval().requires_grad_(False)
    return student, teacher, torch.rand(n, 3, 8, 8, dtype=dtype), torch.randint(10, (n,))


def make_trainer(name, student, teachers, *, kind=Trainer, config=None, lr=0.1, weight_decay=0.0, **options):
    """A trainer of this kind with as many of the teachers as the method has; ``options`` are those of the trainer."""
    method = METHODS[name](TrainConfig(method=name, **(config or {})))
    optimizer = torch.optim.SGD(student.parameters(), lr=lr, momentum=0.9, weight_decay=weight_decay)
    options = {"epsilon": 8 / 255, "step_size": 2 / 255, "steps": 10} | options
    return kind(student, teachers[: count_teachers(name)], method, optimizer, **options)


def trained_on_stripes(n=500, seed=0):
    """TinyNet trained for some seconds to classify noisy stripes by ten directions, in eval mode; its images."""
    torch.manual_seed(0)
    y = torch.arange(n) % 10
    grid = torch.arange(8) - 3.5
    angle = y * torch.pi / 10
    waves = angle.cos()[:, None, None] * grid + angle.sin()[:, None, None] * grid[:, None]
    x = (0.5 + 0.17 * waves[:, None].sin() + 0.05 * torch.randn(n, 3, 8, 8)).clamp(0, 1)
    torch.manual_seed(seed)  # only for the network: all are trained on the same images
    net = TinyNet(width=8)
    optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
    for _ in range(60):
        optimizer.zero_grad()
        F.cross_entropy(net(x), y).backward()
        optimizer.step()
    return net.eval().requires_grad_(False), x, y
