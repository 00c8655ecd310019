"""Finished stages of an interrupted evaluation, one small file per attack, batch and stage."""

import json
from pathlib import Path

import torch
from torch import Tensor

from utils.errors import UserError
from utils.files import read_json, require_writable, write_text
from utils.log import logger

CONDITIONS = "conditions.json"


class State:
    """Folder with the finished stages of one checkpoint; without a folder nothing is stored.

    Raises UserError if the folder is not writable or belongs to an evaluation with other ``conditions``.
    """

    def __init__(self, folder: Path | None, conditions: dict):
        self.folder, self.conditions = folder, conditions
        if folder is None:
            return
        try:
            require_writable(folder)
            path = folder / CONDITIONS
            stored = {"precision": "fp32"} | read_json(path) if path.exists() else conditions
        except (OSError, ValueError, TypeError) as error:
            raise UserError(f"--state {folder}: cannot be used ({error}); choose another folder") from error
        changes = [f"{key} {stored.get(key)} -> {new}" for key, new in conditions.items() if stored.get(key) != new]
        if changes:
            raise UserError(f"--state {folder}: of another evaluation ({', '.join(changes)}); choose another folder")

    def load(self, title: str, batch: int, stage: int, size: int) -> tuple[Tensor, Tensor] | None:
        """Return predicted classes and stages, (``size``,) int64 each, as passed to :meth:`save`.

        None if they were not saved, or, with a warning, if the file is damaged.
        """
        if self.folder is None or not (path := self._path(title, batch, stage)).exists():
            return None
        try:
            saved = read_json(path)
            result = tuple(torch.tensor(saved[key], dtype=torch.int64) for key in ("predicted", "fooled_at"))
            if all(values.shape == (size,) for values in result):
                return result
        except (OSError, ValueError, KeyError, TypeError, RuntimeError):  # handled below, like a wrong shape
            pass
        logger.warning("%s is damaged; this stage runs again", path)
        return None

    def save(self, title: str, batch: int, stage: int, predicted: Tensor, fooled_at: Tensor) -> None:
        """Store the result of one stage on one batch."""
        if self.folder is not None:
            if not (self.folder / CONDITIONS).exists():
                self.folder.mkdir(parents=True, exist_ok=True)
                write_text(self.folder / CONDITIONS, json.dumps(self.conditions))
            content = {"predicted": predicted.tolist(), "fooled_at": fooled_at.tolist()}
            write_text(self._path(title, batch, stage), json.dumps(content))

    def _path(self, title: str, batch: int, stage: int) -> Path:
        return self.folder / f"{title.replace(' ', '_')}-batch{batch}-stage{stage}.json"


NO_STATE = State(None, {})
