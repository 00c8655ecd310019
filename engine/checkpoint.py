"""Checkpoints: written completely or not at all, and loaded without executing code."""

import sys
import zipfile
from pathlib import Path
from typing import Any

import torch

from methods import WITHOUT_ATTACK
from utils.errors import UserError
from utils.files import write_atomically

# Files and folders of a run; the names of the checkpoints are those of the official codes.
BEST_PGD10, BEST_CLEAN, LAST = "best_PGD10_acc_model.pth", "best_clean_acc_model.pth", "last_epoch_model.pth"
BEST = {BEST_PGD10: "PGD10_acc", BEST_CLEAN: "clean_acc"}  # checkpoint -> the column of results.csv that chooses it
STATES = "resume"  # folder of the resume states


def best_checkpoint(method: str | None) -> str:
    """Return the file of a run's best checkpoint: chosen by clean accuracy if the method does not attack."""
    return BEST_CLEAN if method in WITHOUT_ATTACK else BEST_PGD10


def save_checkpoint(path: Path, content: dict[str, Any]) -> None:
    """Write tensors, numbers, strings, lists and dicts to ``path``; equal content gives equal bytes."""

    def write(temporary: Path) -> None:
        # To a file object: given a path, torch writes its (temporary) name into the archive.
        with open(temporary, "wb") as file:
            torch.save(_interned(content), file)

    write_atomically(path, write)


def _interned(value):
    """Copy containers so that equal strings are one object. Pickle stores each object once, so the bytes of a resumed
    run would differ otherwise.
    """
    if isinstance(value, str):
        return sys.intern(value)
    if isinstance(value, dict):
        return {_interned(key): _interned(item) for key, item in value.items()}
    return [_interned(item) for item in value] if isinstance(value, list | tuple) else value


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Load a checkpoint of this project to the CPU, saved on any device.

    Raises UserError if the file is missing or damaged, or contains anything but data.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such checkpoint")
    try:
        with zipfile.ZipFile(path) as archive:  # torch.load does not verify checksums
            damaged = archive.testzip()
        if damaged:
            raise ValueError(f"wrong checksum of {damaged}")
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises five types for a damaged file
        reason = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
        raise UserError(f"{path}: not a readable checkpoint ({reason})") from error
