"""The figures of a checkpoint's evaluations, kept beside it: ``<checkpoint>_eval/eval.json``."""

import hashlib
import json
import math
from collections.abc import Sequence
from pathlib import Path, PurePath

from torch import Tensor

from attacks.suite import Attack
from engine.evaluation.attack import AttackResult
from utils.errors import UserError
from utils.files import read_json, require_writable, write_text
from utils.versions import versions

WORST = "worst case"
RIGHT, WRONG, NOT_ATTACKED = "10-"


class Record:
    """Figures of one checkpoint under one set of conditions; those of other conditions are kept beside them.

    Raises UserError where the folder cannot be written to.
    """

    def __init__(self, folder: Path, conditions: dict):
        self.path, self.conditions = folder / "eval.json", conditions
        if self.path.exists():
            read_evaluations(self.path)  # damaged figures are not written over
        try:
            require_writable(folder)  # asked before the hours of an evaluation, not after
        except OSError as error:
            raise UserError(
                f"{folder}: cannot be written to ({error.strerror}); --out DIR keeps the figures elsewhere"
            ) from error

    def keep(self, title: str, figure: dict) -> dict[str, dict]:
        """Add one figure at once, so that an interruption loses none, and return all; one of more images stays."""
        figures = self.figures
        if figures.get(title, {"n": 0})["n"] <= figure["n"]:
            figures[title] = figure
        figures.pop(WORST, None)
        figures |= worst_case(figures)
        self._write(figures)
        return figures

    @property
    def figures(self) -> dict[str, dict]:
        """What is kept under these conditions."""
        return next((entry["figures"] for entry in self.evaluations if entry["conditions"] == self.conditions), {})

    @property
    def evaluations(self) -> list[dict]:
        """What is kept under any conditions, the newest last."""
        return read_evaluations(self.path) if self.path.exists() else []

    def _write(self, figures: dict) -> None:
        others = [entry for entry in self.evaluations if entry["conditions"] != self.conditions]
        newest = {"conditions": self.conditions, "figures": figures}
        text = json.dumps({"evaluations": [*others, newest]}, indent=1) + "\n"
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_text(self.path, text)


def make_result(
    attack: Attack, outcome: AttackResult, labels: Tensor, attacked: Tensor, seconds: float, classes: Sequence[str]
) -> dict:
    """One figure with all that makes it: parameters, per-image results, what stood after each stage.

    ``labels`` (n,) are those of the attacked images; ``attacked`` (N,) bool marks these among all that are evaluated.
    ``correct`` has a character per image: 1 classified correctly, 0 misclassified, - not attacked. ``per_class`` has
    the accuracy over the attacked images of each of the ``classes`` that has any.
    """
    right = outcome.predicted == labels
    marks = iter(RIGHT if one else WRONG for one in right.tolist())
    after = {name: _percent(outcome.fooled_at > number) for number, name in enumerate(attack.stages, start=1) if name}
    return {
        "accuracy": _percent(right),
        "n": len(right),
        "settings": attack.settings,
        "parameters": attack.parameters,
        "bounded": attack.bounded,
        "stages": after if len(after) > 1 else {},
        "per_class": {classes[label]: _percent(right[labels == label]) for label in labels.unique().tolist()},
        "seconds": round(seconds, 2),
        "versions": versions(),
        "correct": "".join(next(marks) if one else NOT_ATTACKED for one in attacked.tolist()),
    }


def worst_case(figures: dict[str, dict]) -> dict[str, dict]:
    """The share of images that stand against every attack in the ball, over those that met each; {} for one attack."""
    bounded = {title: figure for title, figure in figures.items() if figure["bounded"]}
    if len(bounded) < 2:
        return {}
    met = [marks for marks in zip(*(figure["correct"] for figure in bounded.values()), strict=True)]
    met = [set(marks) for marks in met if NOT_ATTACKED not in marks]
    if not met:
        return {}
    accuracy = 100 * sum(marks == {RIGHT} for marks in met) / len(met)
    return {WORST: {"accuracy": accuracy, "n": len(met), "settings": "over " + ", ".join(bounded)}}


def results_path(checkpoint: str | Path) -> Path:
    """Where the figures of a checkpoint are kept."""
    return results_folder(checkpoint) / "eval.json"


def results_folder(checkpoint: str | Path) -> Path:
    """The folder of everything that evaluations of a checkpoint leave."""
    return Path(checkpoint).with_name(f"{Path(checkpoint).stem}_eval")


def read_evaluations(path: Path) -> list[dict]:
    """All evaluations kept in a file, the newest last; raises UserError where there are none or it is damaged."""
    try:
        evaluations = read_json(path)["evaluations"]
        if not isinstance(evaluations, list) or not evaluations:
            raise ValueError("no evaluations")
        for entry in evaluations:
            _require_sound(entry["conditions"], entry["figures"])
        return evaluations
    except OSError as error:
        raise UserError(f"{path}: no figures to read; evaluate the checkpoint with main_eval.py first") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: damaged; delete it and evaluate the checkpoint again") from error


def _require_sound(conditions: dict, figures: dict) -> None:
    """Raise ValueError, KeyError, TypeError or AttributeError for what no evaluation of ours keeps.

    The file may come from anyone, and its checkpoint's name is opened: it must be a name in the run's folder.
    """
    name = conditions.get("checkpoint", "")
    plain = all(map(is_plain, conditions.values())) and name == PurePath(name).name != ".."
    for figure in figures.values():
        plain &= math.isfinite(figure["accuracy"]) and type(figure["n"]) is int and figure["n"] > 0
        nested = [value for value in figure.values() if isinstance(value, dict)]
        rest = [value for value in figure.values() if not isinstance(value, dict)]
        plain &= all(map(is_plain, [*rest, *(item for value in nested for item in value.values())]))
    if not plain:
        raise ValueError("no evaluation of ours")


def is_plain(value) -> bool:
    """Whether a value of a JSON file is a word, a number, a truth value or nothing, and no container."""
    return value is None or isinstance(value, str | int | float)


def sha256(path: str | Path) -> str:
    """SHA-256 of a file, in hexadecimal digits."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while part := file.read(2**20):
            digest.update(part)
    return digest.hexdigest()


def _percent(marks: Tensor) -> float:
    return 100 * int(marks.sum()) / len(marks)
