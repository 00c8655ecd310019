"""Finished pieces of an interrupted evaluation, one small file each."""

import json
from pathlib import Path

import torch
from torch import Tensor

from utils.errors import UserError
from utils.files import read_json, require_writable, write_text
from utils.log import logger

ABOUT = "conditions.json"


class State:
    """Folder of one checkpoint's finished stages; without a folder nothing is kept or found.

    Raises UserError where the folder cannot be written, or belongs to an evaluation of other ``conditions``.
    """

    def __init__(self, folder: Path | None, conditions: dict):
        self.folder, self.conditions = folder, conditions
        if folder is None:
            return
        about = folder / ABOUT
        try:
            require_writable(folder)
            if about.exists():
                self._compare(read_json(about), conditions)
        except (OSError, ValueError, AttributeError) as error:
            raise UserError(f"--state {folder}: cannot be used ({error}); name another folder") from error

    def find(self, title: str, batch: int, stage: int, size: int) -> tuple[Tensor, Tensor] | None:
        """Classes read and stages of the falls, (``size``,) int64 each, as :meth:`keep` got them.

        None where it did not, and, with a warning, where the file is damaged.
        """
        if self.folder is None or not self._place(title, batch, stage).exists():
            return None
        place = self._place(title, batch, stage)
        try:
            kept = read_json(place)
            found = tuple(torch.tensor(kept[key], dtype=torch.int64) for key in ("predicted", "fooled_at"))
            if all(values.shape == (size,) for values in found):
                return found
        except (OSError, ValueError, KeyError, TypeError, RuntimeError):  # told below, like another shape
            pass
        logger.warning("%s is damaged: that piece is done again", place)
        return None

    def keep(self, title: str, batch: int, stage: int, predicted: Tensor, fooled_at: Tensor) -> None:
        """Keep what one stage of one batch found."""
        if self.folder is not None:
            if not (self.folder / ABOUT).exists():
                self.folder.mkdir(parents=True, exist_ok=True)
                write_text(self.folder / ABOUT, json.dumps(self.conditions))
            found = {"predicted": predicted.tolist(), "fooled_at": fooled_at.tolist()}
            write_text(self._place(title, batch, stage), json.dumps(found))

    def _place(self, title: str, batch: int, stage: int) -> Path:
        return self.folder / f"{title.replace(' ', '_')}-batch{batch}-stage{stage}.json"

    def _compare(self, theirs: dict, ours: dict) -> None:
        changes = [f"{key} {theirs.get(key)} -> {ours[key]}" for key in ours if theirs.get(key) != ours[key]]
        if changes:
            raise UserError(f"--state {self.folder}: of another evaluation ({', '.join(changes)}); name another folder")


NO_STATE = State(None, {})
