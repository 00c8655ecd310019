"""Finished stages of an interrupted evaluation, one small file per attack, batch and stage."""

import json
from glob import escape
from pathlib import Path

import torch
from torch import Tensor

from utils.errors import UserError
from utils.fields import shown
from utils.files import read_json, require_writable, write_text
from utils.log import logger

CONDITIONS = "conditions.json"


class State:
    """Folder with the finished stages of one checkpoint.

    Raises UserError if the folder is not writable or belongs to an evaluation with other ``conditions``.
    """

    def __init__(self, folder: Path, conditions: dict):
        self.folder, self.conditions = folder, conditions
        self.finished: dict[str, dict[int, tuple[int, int]]] = {}  # read from the folder
        try:
            require_writable(folder)
            path = folder / CONDITIONS
            stored = dict(read_json(path)) if path.exists() else conditions
        except (OSError, ValueError, TypeError) as error:
            reason = getattr(error, "strerror", None) or f"{CONDITIONS} is damaged"
            raise UserError(f"--state {folder}: cannot be used ({reason}); choose another folder") from error
        changed = [key for key in stored | conditions if stored.get(key) != conditions.get(key)]
        if changed:
            changes = ", ".join(f"{key} {shown(stored.get(key))} -> {shown(conditions.get(key))}" for key in changed)
            raise UserError(f"--state {folder}: belongs to another evaluation ({changes}); choose another folder")

    def load(self, attack: str, stage: int, start: int, size: int) -> tuple[Tensor, Tensor] | None:
        """Return predicted classes and stages, (``size``,) int64 each, of the images from ``start`` on.

        Returns None if :meth:`save` has not been called for all of them, in batches of any size. Damaged files are
        reported and ignored.
        """
        key = f"{attack.replace(' ', '_')}-stage{stage}"
        if key not in self.finished:
            self.finished[key] = self._read(key)
        images = [self.finished[key].get(image) for image in range(start, start + size)]
        return None if None in images else tuple(torch.tensor(images, dtype=torch.int64).T)

    def save(self, attack: str, stage: int, start: int, predicted: Tensor, fooled_at: Tensor) -> None:
        """Store the result of one stage on the images from ``start`` on."""
        if not (self.folder / CONDITIONS).exists():
            self.folder.mkdir(parents=True, exist_ok=True)
            write_text(self.folder / CONDITIONS, json.dumps(self.conditions))
        path = self.folder / f"{attack.replace(' ', '_')}-stage{stage}-images{start}.json"
        write_text(path, json.dumps({"predicted": predicted.tolist(), "fooled_at": fooled_at.tolist()}))

    def _read(self, key: str) -> dict[int, tuple[int, int]]:
        """Return the predicted class and the stage of each image for which one stage of an attack is finished."""
        finished = {}
        for path in sorted(self.folder.glob(f"{escape(key)}-images*.json")):
            try:
                saved, start = read_json(path), int(path.stem.rpartition("images")[2])
                finished |= dict(enumerate(zip(saved["predicted"], saved["fooled_at"], strict=True), start))
            except (OSError, ValueError, KeyError, TypeError):
                logger.warning("%s is damaged; this stage runs again", path)
        return finished
