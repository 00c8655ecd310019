"""The device of a command, and how precisely it multiplies float32 numbers."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from utils.errors import UserError
from utils.log import logger


def choose_device(device: str, gpu_id: int, threads: int | None = None) -> torch.device:
    """Turn ``--device`` and ``--gpu_id`` into an existing device; "auto" falls back to the CPU.

    ``threads`` sets the number of CPU threads of PyTorch. Raises UserError for an invalid name and a missing GPU.
    """
    if threads:
        torch.set_num_threads(threads)
    available = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if device == "auto" and not available:
        logger.info("no usable GPU: running on the CPU")
        return torch.device("cpu")
    if device in ("auto", "cuda"):
        device = f"cuda:{gpu_id}"
    try:
        chosen = torch.device(device)
    except RuntimeError:
        chosen = None
    if chosen is None or chosen.type not in ("cpu", "cuda"):
        raise UserError(f"--device {device}: not a device; use auto, cpu, cuda or cuda:N")
    if chosen.type == "cuda" and (chosen.index or 0) >= available:
        hint = "use --device cpu or another --gpu_id"
        raise UserError(f"--device {device}: not available; number of usable GPUs: {available}; {hint}")
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)  # NCCL, random number generators and pinned memory use the current GPU
    return chosen


def set_tf32(enabled: bool) -> None:
    """Allow or forbid TF32 (10-bit mantissa) in float32 convolutions and matrix products on Ampere and later GPUs."""
    torch.set_float32_matmul_precision("high" if enabled else "highest")
    torch.backends.cudnn.allow_tf32 = enabled


@contextmanager
def allow_tf32(enabled: bool) -> Iterator[None]:
    """Allow or forbid TF32, then restore the setting. Raises UserError if fp32_precision, which excludes it, is set."""
    try:
        previous = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    except RuntimeError as error:
        raise UserError("torch.backends: fp32_precision is set; use the older switches named allow_tf32") from error
    try:
        set_tf32(enabled)
        yield
    finally:
        torch.set_float32_matmul_precision(previous[0])
        torch.backends.cudnn.allow_tf32 = previous[1]


@contextmanager
def full_precision() -> Iterator[None]:
    """Compute in strict float32 and without cuDNN's autotuning inside the context.

    PGD that stops for misclassified images has batches of many sizes, and cuDNN would tune each of them.
    """
    benchmark = torch.backends.cudnn.benchmark
    try:
        torch.backends.cudnn.benchmark = False
        with allow_tf32(False):
            yield
    finally:
        torch.backends.cudnn.benchmark = benchmark
