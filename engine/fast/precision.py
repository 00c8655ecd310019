"""How a training computes: number format, memory layout and execution, chosen from its flags and its device."""

import os
import shutil
from contextlib import nullcontext
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from engine.device import set_tf32
from utils.errors import UserError


class Arithmetic(NamedTuple):
    """How networks compute: number format, memory format, and how attacks run them."""

    dtype: torch.dtype | None = None  # of weights and activations; None: the network's own, float32
    channels_last: bool = False
    compiled: bool = False  # through torch.compile
    winograd: bool = False  # wide 3x3 convolutions by Winograd's algorithm
    graphs: bool = False  # the PGD loop as a CUDA graph

    def autocast(self, device_type: str):
        """Context in which a network computes in ``dtype`` while its weights stay float32."""
        return nullcontext() if self.dtype is None else torch.autocast(device_type, self.dtype)


PLAIN = Arithmetic()


def at_least_float32(value: Tensor) -> Tensor:
    """Convert bfloat16 and float16 to float32; float32 and float64 stay."""
    return value.to(torch.promote_types(value.dtype, torch.float32))


def choose_arithmetic(precision: str, compile: str, device: torch.device) -> tuple[Arithmetic, str]:
    """Turn ``--precision`` and ``--compile`` into an Arithmetic and a line for the log; set CUDA's global switches.

    "auto" selects bfloat16 if the device supports it natively, and CUDA graphs on a GPU. "graphs" captures compiled
    networks if torch.compile works. Raises UserError if the device does not support the request.
    """
    cuda = device.type == "cuda"
    if precision == "tf32" and not cuda:
        raise UserError("--precision tf32: requires a GPU; use --precision bf16 or fp32 on a CPU")
    if compile == "graphs" and not cuda:
        raise UserError("--compile graphs: requires a GPU; use --compile off on a CPU")
    units = {"avx512_bf16", "amx_bf16"} & _cpu_flags()
    native = torch.cuda.get_device_capability(device) >= (8, 0) if cuda else bool(units)
    number_format, reason = precision, ""
    if precision == "auto":
        number_format = "bf16" if native else "fp32"
        reason = " (native on this device)" if native else " (no native bfloat16 on this device)"
    # PyTorch's default is TF32 in the convolutions of Ampere and later GPUs.
    set_tf32(number_format == "tf32")
    if cuda:  # training batches have one shape; autotuning may choose another algorithm in every process
        torch.backends.cudnn.benchmark = not torch.backends.cudnn.deterministic
    execution = compile
    if compile == "auto":
        execution = "graphs" if cuda else "off"
    obstacle = _compile_obstacle(device) if execution == "graphs" else None
    compiled = execution == "on" or (execution == "graphs" and obstacle is None)
    # In fp32, without tensor cores, a GPU is faster in PyTorch's default layout.
    channels_last = number_format != "fp32" or not cuda
    # AMX multiplies so fast that Winograd's transforms would take longer than they save.
    winograd = number_format == "bf16" and not cuda and execution == "off" and "amx_bf16" not in _cpu_flags()
    description = f"precision {number_format}{reason}, compile {execution}"
    description += f" (without torch.compile: {obstacle})" if obstacle else ""
    description += f", channels-{'last' if channels_last else 'first'}{', Winograd' if winograd else ''}"
    dtype = torch.bfloat16 if number_format == "bf16" else None
    return Arithmetic(dtype, channels_last, compiled, winograd, execution == "graphs"), description


def _compile_obstacle(device: torch.device) -> str | None:
    """Return why torch.compile, which uses Triton on a GPU, does not work here; None if it does."""
    if torch.cuda.get_device_capability(device) < (7, 0):
        return "compute capability below 7"
    if not find_spec("triton"):
        return "no Triton"
    compilers = (os.environ.get("CC"), "cc", "gcc", "clang")
    return None if any(name and shutil.which(name) for name in compilers) else "no C compiler"


def _cpu_flags() -> set[str]:
    try:
        return set(Path("/proc/cpuinfo").read_text(encoding="utf-8").split())
    except OSError:  # not Linux
        return set()
