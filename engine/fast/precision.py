"""In what arithmetic a run computes, chosen from its flags and its device."""

import os
import shutil
from contextlib import nullcontext
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import torch

from utils.errors import UserError


class Arithmetic(NamedTuple):
    """How networks are computed: ``dtype`` of weights and activations (None: the network's own, float32), whether they
    lie channels-last in memory, whether what an attack climbs is compiled, whether it convolves by Winograd's algorithm
    where that is faster.
    """

    dtype: torch.dtype | None = None
    channels_last: bool = False
    compiled: bool = False
    winograd: bool = False

    def autocast(self, device_type: str):
        """Context in which a live network computes in ``dtype`` while its weights stay float32."""
        return nullcontext() if self.dtype is None else torch.autocast(device_type, self.dtype)


PLAIN = Arithmetic()


def choose_arithmetic(precision: str, compile: str, device: torch.device) -> tuple[Arithmetic, str]:
    """Turn ``--precision`` and ``--compile`` into an Arithmetic, and a line that says what was chosen and why.

    "auto" takes bfloat16 where the device multiplies it natively, and compiles on a GPU that can. Raises UserError
    where the device cannot do what was asked.
    """
    cuda = device.type == "cuda"
    native = _native_bf16(device)
    chosen = ("bf16" if native else "fp32") if precision == "auto" else precision
    if chosen == "tf32" and not cuda:
        raise UserError("--precision tf32: is a GPU's; use --precision bf16 or fp32 on a CPU")
    # Also undoes PyTorch's own default, which convolves in TF32, of 10 bits, on GPUs from Ampere on.
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = chosen == "tf32"
    lacking = _lacking_to_compile(device) if cuda and compile == "auto" else None
    compiled = compile == "on" or (compile == "auto" and cuda and lacking is None)
    # A GPU without tensor cores at work is faster in PyTorch's own layout.
    channels_last = chosen != "fp32" or not cuda
    why = {True: "the device multiplies bfloat16", False: "no bfloat16 on this device"}[native]
    words = f"precision {chosen}" + (f" ({why})" if precision == "auto" else "")
    words += f", compile {'on' if compiled else 'off'}" + (f" ({lacking})" if lacking else "")
    words += f", {'channels-last' if channels_last else 'channels-first'}"
    # AMX multiplies so fast that the sums of the transforms would take longer than what they save.
    winograd = chosen == "bf16" and not cuda and not compiled and "amx_bf16" not in _cpu_flags()
    words += ", Winograd" * winograd
    return Arithmetic(torch.bfloat16 if chosen == "bf16" else None, channels_last, compiled, winograd), words


def _native_bf16(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    return not {"avx512_bf16", "amx_bf16"}.isdisjoint(_cpu_flags())


def _lacking_to_compile(device: torch.device) -> str | None:
    """What PyTorch's compiler lacks to serve this GPU, which it does through Triton; None where nothing."""
    if torch.cuda.get_device_capability(device) < (7, 0):
        return "a GPU before compute capability 7"
    if not find_spec("triton"):
        return "no Triton"
    compilers = (os.environ.get("CC"), "cc", "gcc", "clang")
    return None if any(name and shutil.which(name) for name in compilers) else "no C compiler"


def _cpu_flags() -> set[str]:
    try:
        return set(Path("/proc/cpuinfo").read_text(encoding="utf-8").split())
    except OSError:  # not Linux
        return set()
