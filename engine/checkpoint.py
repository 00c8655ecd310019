"""Checkpoints, written completely or not at all."""

import sys
from pathlib import Path
from typing import Any

import torch

from methods import WITHOUT_ATTACK
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
