"""How the benchmarks measure: alternately, beside what the machine can do at most, passes and arithmetic counted."""

import platform
import statistics
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from utils.log import logger

SIDE = {"cuda": 8192, "cpu": 2048}  # of the square matrices whose product is the ceiling of arithmetic
COPIED = {"cuda": 2**30, "cpu": 2**27}  # bytes of the copy that is the ceiling of memory


def compare(reference: Callable, ours: Callable, images: int, pairs: int, device: torch.device) -> dict:
    """Time both alternately, after one unmeasured time each; log and return images/s and the ratio of the times."""
    seconds = {"reference": [], "ours": []}
    for repeat in range(pairs + 1):
        for name, work in (("reference", reference), ("ours", ours)):
            took = timed(work, device)
            if repeat:
                seconds[name].append(took)
    ratios = [a / b for a, b in zip(*seconds.values(), strict=True)]
    low, ratio, high = statistics.quantiles(ratios, n=4) if pairs > 1 else ratios * 3
    rates = {name: images / statistics.median(times) for name, times in seconds.items()}
    line = "reference %.1f images/s, ours %.1f images/s: %.2f x as fast (quartiles %.2f to %.2f), %.2f of the cost"
    logger.info(line, *rates.values(), ratio, low, high, 1 / ratio)
    return {"images_per_second": rates, "ratio": ratio, "quartiles": [low, high], "seconds": seconds}


def timed(work: Callable, device: torch.device) -> float:
    """Seconds that ``work`` takes, the device's included."""
    _wait(device)
    began = time.perf_counter()
    work()
    _wait(device)
    return time.perf_counter() - began


def ceilings(device: torch.device) -> dict[str, float]:
    """What a large product reaches, in GFLOP/s by type, and a large copy, in GB/s (read and written)."""
    reached = {}
    side = SIDE[device.type]
    for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
        reached[name] = 2 * side**3 / _fastest(lambda a=a, b=b: a @ b, device) / 1e9
    source = torch.empty(COPIED[device.type], dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    reached["copy"] = 2 * len(source) / _fastest(lambda: target.copy_(source), device) / 1e9
    return reached


def gflop(work: Callable) -> float:
    """Multiplications and additions, in 10^9, in the convolutions and matrix products of ``work``."""
    with _Counter() as counter:
        work()
    return counter.total / 1e9


class _Counter(TorchDispatchMode):
    # Our own: PyTorch's FlopCounterMode fails under torch.autograd.grad, and takes a strided backward for a dense one.
    def __init__(self):
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        count = _FLOP.get(function._overloadpacket)
        if count:
            self.total += count(args, result)
        return result


def _dot_products(output, weight) -> int:
    return 2 * output.numel() * weight[0].numel()


_FLOP = {
    torch.ops.aten.convolution: lambda args, output: _dot_products(output, args[1]),
    # Arguments: gradient of the output, input, weight, ..., which of input, weight and bias need a gradient.
    torch.ops.aten.convolution_backward: lambda args, _: sum(args[-1][:2]) * _dot_products(args[0], args[2]),
    torch.ops.aten.mm: lambda args, output: 2 * output.numel() * args[0].shape[1],
    torch.ops.aten.bmm: lambda args, output: 2 * output.numel() * args[0].shape[2],
    torch.ops.aten.addmm: lambda args, output: 2 * output.numel() * args[1].shape[1],
}


def passes(networks: dict[str, nn.Module], work: Callable) -> Counter:
    """Count how often each network is run forward in ``work``, and how often a gradient comes back to its logits."""
    counts, handles = Counter(), []

    def count(name):
        def hook(module, inputs, logits):
            counts[f"{name} forward"] += 1
            if logits.requires_grad:
                logits.register_hook(lambda gradient: counts.update([f"{name} backward"]))

        return hook

    for name, network in networks.items():
        handles.append(network.register_forward_hook(count(name)))
    work()
    for handle in handles:
        handle.remove()
    return counts


def machine(device: torch.device) -> str:
    """The hardware in words."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    names = {line.partition(":")[2].strip() for line in _cpuinfo() if line.startswith("model name")}
    return f"{', '.join(names) or platform.machine()}, {torch.get_num_threads()} threads"


def _cpuinfo() -> list[str]:
    try:
        return Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return []


def _fastest(work: Callable, device: torch.device) -> float:
    return min(timed(work, device) for _ in range(5))


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
