"""The figures of a checkpoint's evaluations, kept beside it: ``<checkpoint>.eval.json``."""

import hashlib
import json
from pathlib import Path

from utils.config import EvalConfig
from utils.errors import UserError
from utils.files import write_atomically
from utils.log import logger

# Settings under which figures belong in one table.
CONDITIONS = ("dataset", "model", "image_size", "limit_test", "protocol", "eps", "steps", "seed")


class Record:
    """Figures of one checkpoint under the conditions of ``config``; those of other conditions are kept beside them."""

    def __init__(self, config: EvalConfig):
        self.path = place_of(config.model_path or config.model.replace(":", "-"))
        self.conditions = {key: getattr(config, key) for key in CONDITIONS}
        self.conditions["sha256"] = _sha256(config.model_path) if config.model_path else None

    def keep(self, title: str, figure: dict) -> None:
        """Add one figure at once, so that an interruption loses none; one of more images is not replaced.

        Where the folder cannot be written to, a line says so and the evaluation goes on.
        """
        try:
            evaluations = read_evaluations(self.path)
        except UserError:  # none yet, or damaged
            evaluations = []
        same = [entry for entry in evaluations if entry["conditions"] == self.conditions]
        figures = same[0]["figures"] if same else {}
        if figures.get(title, {"n": 0})["n"] <= figure["n"]:
            figures[title] = figure
        others = [entry for entry in evaluations if entry["conditions"] != self.conditions]
        newest = {"conditions": self.conditions, "figures": figures}
        text = json.dumps({"evaluations": [*others, newest]}, indent=2) + "\n"
        try:
            write_atomically(self.path, lambda temporary: temporary.write_text(text, encoding="utf-8"))
        except OSError as error:
            logger.warning("%s: not written (%s)", self.path, error.strerror)


def place_of(checkpoint: str | Path) -> Path:
    """Where the figures of a checkpoint are kept."""
    return Path(checkpoint).with_suffix(".eval.json")


def read_evaluations(path: Path) -> list[dict]:
    """All evaluations kept in a file, the newest last; raises UserError where there are none or it is damaged."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))["evaluations"]
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{path}: no figures to read; evaluate the checkpoint with main_eval.py first") from error


def _sha256(path: str) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while part := file.read(2**20):
            digest.update(part)
    return digest.hexdigest()
