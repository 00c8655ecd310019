"""Time two functions alternately, measure the peak speed of the hardware, count arithmetic."""

import platform
import re
import statistics
import time
from collections.abc import Callable
from math import prod
from pathlib import Path

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from utils.log import logger

SIDE = {"cuda": 8192, "cpu": 2048}  # of the square matrices whose product measures the peak speed


def compare(reference: Callable, ours: Callable, images: int, pairs: int, device: torch.device) -> dict:
    """Time both alternately after one untimed call of each; log and return images/s and the ratio of the times."""
    seconds = {"reference": [], "ours": []}
    for repeat in range(pairs + 1):
        for name, work in (("reference", reference), ("ours", ours)):
            elapsed = timed(work, device)
            if repeat:
                seconds[name].append(elapsed)
    ratios = [a / b for a, b in zip(*seconds.values(), strict=True)]
    low, ratio, high = statistics.quantiles(ratios, n=4) if pairs > 1 else ratios * 3
    rates = {name: images / statistics.median(times) for name, times in seconds.items()}
    line = "reference %.1f images/s, ours %.1f images/s: %.2fx as fast (quartiles %.2f to %.2f)"
    logger.info(line, *rates.values(), ratio, low, high)
    return {"images_per_second": rates, "ratio": ratio, "quartiles": [low, high], "seconds": seconds}


def timed(work: Callable, device: torch.device) -> float:
    """Seconds until ``work`` and the kernels that it launches have finished."""
    synchronize = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    synchronize()
    start = time.perf_counter()
    work()
    synchronize()
    return time.perf_counter() - start


def product_speed(device: torch.device, dtype: torch.dtype) -> float:
    """GFLOP/s of a large matrix product."""
    side = SIDE[device.type]
    a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    return 2 * side**3 / min(timed(lambda: a @ b, device) for _ in range(5)) / 1e9


def gflop(work: Callable) -> float:
    """Count the 10^9 multiplications and additions of the convolutions and matrix products in ``work``.

    Uses PyTorch's formulas. A WinogradConv2d counts with the matrix products that it executes, which are fewer than
    those of the convolution's definition.
    """
    with _FlopCounter() as counter:
        work()
    return counter.total / 1e9


class _FlopCounter(TorchDispatchMode):
    # FlopCounterMode itself fails here: its hooks on modules do not allow torch.autograd.grad.
    def __init__(self):
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        formula = _FORMULAS.get(function._overloadpacket)
        if formula:
            self.total += formula(*args, **(kwargs or {}), out_val=result)
        return result


def _convolution_backward(gradient, x, weight, *args, out_val=None) -> int:
    """PyTorch's formula ignores groups in the gradient of the weight; both gradients cost as much as the forward."""
    return sum(args[-1][:2]) * 2 * gradient.numel() * prod(weight.shape[1:])


_FORMULAS = flop_registry | {torch.ops.aten.convolution_backward: _convolution_backward}


def machine(device: torch.device) -> str:
    """Name of the hardware."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    info = Path("/proc/cpuinfo")  # of Linux
    names = set(re.findall(r"model name\s*: (.+)", info.read_text(encoding="utf-8"))) if info.exists() else ()
    return f"{', '.join(names) or platform.machine()}, {torch.get_num_threads()} threads"
