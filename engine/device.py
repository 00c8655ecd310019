"""Which device a command runs on."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

import torch

from utils.errors import UserError
from utils.log import logger


def choose_device(device: str, gpu_id: int, threads: int | None = None) -> torch.device:
    """Turn ``--device`` and ``--gpu_id`` into a device that exists, of ``threads``; "auto" falls back to the CPU.

    Raises UserError for a name that is none, or a GPU that is not there.
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
    except RuntimeError as error:
        raise UserError(f"--device {device}: not a device; use auto, cpu, cuda or cuda:N") from error
    if chosen.type == "cuda" and (chosen.index or 0) >= available:
        raise UserError(
            f"--device {device}: this machine has {available} usable GPUs; use --device cpu or another --gpu_id"
        )
    if chosen.type not in ("cpu", "cuda"):
        raise UserError(f"--device {device}: only cpu and cuda are supported")
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)  # NCCL, random states and pinned memory belong to the GPU that is the present one
    return chosen


def use_full_precision() -> None:
    """Make fp32 mean fp32: by default PyTorch convolves in TF32, of 10 bits, on GPUs from Ampere on."""
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False


@contextmanager
def allow_tf32(enabled: bool) -> Iterator[None]:
    """Allow or forbid TF32 in convolutions and matrix products, and restore the previous setting afterwards."""
    backends = (torch.backends.cudnn, torch.backends.cuda.matmul)
    previous = [backend.allow_tf32 for backend in backends]
    try:
        for backend in backends:
            backend.allow_tf32 = enabled
        yield
    finally:
        for backend, allowed in zip(backends, previous, strict=True):
            backend.allow_tf32 = allowed


def full_precision() -> AbstractContextManager[None]:
    """Compute in strict float32 inside the context."""
    return allow_tf32(False)
