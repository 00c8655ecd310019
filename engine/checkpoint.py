"""Checkpoints: written whole or not at all, read without running code."""

import sys
import zipfile
from pathlib import Path
from typing import Any

import torch

from utils.errors import UserError
from utils.files import write_atomically

# Files and folders of a run; the names of the checkpoints are those of the official codes.
BEST_PGD10, BEST_CLEAN, LAST = "best_PGD10_acc_model.pth", "best_clean_acc_model.pth", "last_epoch_model.pth"
STATES = "resume"  # folder of the states that --resume continues from


def save_checkpoint(path: Path, content: dict[str, Any]) -> None:
    """Write tensors, numbers, text, lists and dicts to ``path``; the same content gives the same bytes."""

    def write(temporary: Path) -> None:
        # Through a file object: given a path, torch writes its (temporary) name into the archive.
        with open(temporary, "wb") as file:
            torch.save(_interned(content), file)

    write_atomically(path, write)


def _interned(value):
    """Copy the containers so that equal texts are one object: pickle writes each object once, and a restored run
    would otherwise save other bytes than one that was never interrupted.
    """
    if isinstance(value, str):
        return sys.intern(value)
    if isinstance(value, dict):
        return {_interned(key): _interned(item) for key, item in value.items()}
    return [_interned(item) for item in value] if isinstance(value, list | tuple) else value


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint of ours onto the CPU, whatever device wrote it.

    Raises UserError where the file is missing, damaged, or holds anything but data.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such checkpoint")
    try:
        with zipfile.ZipFile(path) as archive:  # torch.load does not look at the checksums
            broken = archive.testzip()
        if broken:
            raise ValueError(f"wrong checksum of {broken}")
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises five kinds for a damaged file
        reason = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
        raise UserError(f"{path}: not a readable checkpoint ({reason})") from error
