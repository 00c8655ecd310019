"""Results of a checkpoint's evaluations on disk: ``<checkpoint>_eval/eval.json`` and eval.csv."""

import hashlib
import json
import math
from pathlib import Path, PurePath

from utils.errors import UserError
from utils.files import read_json, require_writable, write_text
from utils.tables import write_csv

WORST = "worst case"
CORRECT, WRONG, NOT_ATTACKED = "10-"  # characters of ``correct``, one per image

# Columns of eval.csv that identify an evaluation, and those with parameters of an attack.
CONDITIONS = ("checkpoint", "sha256", "protocol", "dataset", "limit_test", "model", "seed", "bs", "judge", "surrogate")
PARAMETERS = ("step_size", "steps", "restarts")
LATER_CONDITIONS = ("precision", "weights", "normalize")  # at the end, where older files have no column


class Record:
    """Results of one checkpoint under given ``conditions``; results under other conditions stay in the file.

    Raises UserError if the folder is not writable or its eval.json is damaged.
    """

    def __init__(self, folder: Path, conditions: dict):
        self.path, self.conditions = folder / "eval.json", conditions
        if self.path.exists():
            read_evaluations(self.path, complete=True)  # never overwrite a damaged file
        try:
            require_writable(folder)  # checked before the evaluation, which may take hours
        except OSError as error:
            raise UserError(
                f"{folder}: cannot be written to ({error.strerror}); --out DIR writes results to another folder"
            ) from error

    def add(self, title: str, result: dict) -> dict[str, dict]:
        """Write one result and return all under these conditions; an older result on more images is kept."""
        results = self.results
        if results.get(title, {"n": 0})["n"] <= result["n"]:
            results[title] = result
        results.pop(WORST, None)
        results |= worst_case(results)
        others = [entry for entry in self.evaluations if not self._is_same(entry)]
        newest = {"conditions": self.conditions, "figures": results}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_text(self.path, json.dumps({"evaluations": [*others, newest]}, indent=1) + "\n")
        return results

    @property
    def results(self) -> dict[str, dict]:
        """Results under these conditions, by title of the attack."""
        return next((entry["figures"] for entry in self.evaluations if self._is_same(entry)), {})

    @property
    def evaluations(self) -> list[dict]:
        """Evaluations under all conditions, the newest last."""
        return read_evaluations(self.path) if self.path.exists() else []

    def _is_same(self, entry: dict) -> bool:
        """Return whether an entry has these conditions; no result depends on the batch size."""
        return entry["conditions"] | {"bs": 0} == self.conditions | {"bs": 0}

    def write_table(self) -> None:
        """Write eval.csv with one row per attack."""
        header = [*CONDITIONS, "attack", "accuracy", "n", "eps", *PARAMETERS, "settings", *LATER_CONDITIONS]
        rows = [row for entry in self.evaluations for row in _rows(**entry)]
        write_csv(self.path.with_name("eval.csv"), header, rows)


def _rows(conditions: dict, figures: dict) -> list[list]:
    identity, rows = [conditions[key] for key in CONDITIONS], []
    for title, result in figures.items():
        parameters = {} if title == WORST else result["parameters"]
        values = [title, result["accuracy"], result["n"], conditions["eps"]]
        values += [*(parameters.get(key, "") for key in PARAMETERS), result["settings"]]
        rows.append([*identity, *values, *(conditions.get(key, "") for key in LATER_CONDITIONS)])
    return rows


def worst_case(results: dict[str, dict]) -> dict[str, dict]:
    """Return the accuracy under all bounded attacks together, over images that all attacked; {} for fewer than two."""
    bounded = {title: result for title, result in results.items() if result["bounded"]}
    if len(bounded) < 2:
        return {}
    images = map(set, zip(*(result["correct"] for result in bounded.values()), strict=True))
    attacked = [marks for marks in images if NOT_ATTACKED not in marks]
    if not attacked:
        return {}
    accuracy = 100 * attacked.count({CORRECT}) / len(attacked)
    return {WORST: {"accuracy": accuracy, "n": len(attacked), "settings": "over " + ", ".join(bounded)}}


def results_path(checkpoint: str | Path) -> Path:
    """Return the path of a checkpoint's eval.json."""
    return results_folder(checkpoint) / "eval.json"


def results_folder(checkpoint: str | Path) -> Path:
    """Return the folder for the results of a checkpoint.

    Its name omits the suffix ``.pth`` and keeps others: a.pth, a.pt and a.pth.tar are three checkpoints.
    """
    path = Path(checkpoint)
    return path.with_name(f"{path.stem if path.suffix == '.pth' else path.name}_eval")


def read_evaluations(path: Path, *, complete: bool = False) -> list[dict]:
    """Return all evaluations in a file, the newest last. Raises UserError if it is missing, empty or damaged.

    With ``complete``, also if a further evaluation could not use an entry, for instance because it was edited.
    """
    try:
        evaluations = read_json(path)["evaluations"]
        if not isinstance(evaluations, list) or not evaluations:
            raise ValueError("no evaluations")
        for entry in evaluations:
            _validate(entry["conditions"], entry["figures"])
            entry["conditions"].setdefault("precision", "fp32")  # older files do not have it
            if complete:
                _rows(**entry)
                results = {title: result for title, result in entry["figures"].items() if title != WORST}
                worst_case(results)
                marks = [(result["n"], result.get("correct", "")) for result in results.values()]
                if any(text and len(text.replace(NOT_ATTACKED, "")) != n for n, text in marks):
                    raise ValueError("marks of other images")
        return evaluations
    except FileNotFoundError as error:
        raise UserError(f"{path}: no results; evaluate the checkpoint with main_eval.py first") from error
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); delete it") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: damaged; delete it and evaluate the checkpoint again") from error


def _validate(conditions: dict, results: dict) -> None:
    """Raise ValueError, KeyError, TypeError or AttributeError for content that no evaluation writes.

    The file may come from anyone, and the checkpoint it names is opened: that must be a file name in the run's folder.
    """
    name = conditions.get("checkpoint", "")
    valid = all(map(is_plain, conditions.values())) and name == PurePath(name).name != ".."
    valid &= isinstance(conditions.get("eps", 0.0), int | float)
    for result in results.values():
        valid &= math.isfinite(result["accuracy"]) and type(result["n"]) is int and result["n"] > 0
        for value in result.values():
            valid &= all(map(is_plain, value.values() if isinstance(value, dict) else [value]))
    if not valid:
        raise ValueError("not written by an evaluation")


def is_plain(value) -> bool:
    """Return whether a JSON value is a string, number, boolean or null."""
    return value is None or isinstance(value, str | int | float)


def sha256(path: str | Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal."""
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()
