"""The reader of run folders: settings, epochs, evaluations and images of runs that are training, finished or damaged.

A file that cannot be read is a problem of its run and never an exception. Only regular files inside a run's folder are
read: no link is followed out of it.
"""

import csv
import os
from collections.abc import Callable, Iterable, Iterator
from functools import cache, partial
from math import isfinite
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from engine.checkpoint import BEST_CLEAN, BEST_PGD10, LAST, best_checkpoint
from engine.evaluation.records import is_plain, read_evaluations, sha256
from utils.errors import UserError
from utils.files import read_json
from utils.tables import read_csv

CONFIG, RESULTS, EVALUATIONS = "config.json", "results.csv", "eval.json"
IMAGES = ("examples.png", "attacks.png", "confusion.png")  # of an evaluation, in this order
KINDS = {BEST_PGD10: "best PGD-10", BEST_CLEAN: "best clean", LAST: "last"}  # but "best" for best_checkpoint()
# Title -> column of results.csv, and how its epochs are summarized.
COSTS = {"images/s": ("images_per_s", median), "peak memory (MiB)": ("peak_memory_mib", max)}
# Title -> condition of an evaluation, and how it is shown.
CONDITIONS = {"dataset": "dataset", "student": "model", "protocol": "protocol", "eps": "eps", "evaluation seed": "seed"}
CONDITIONS |= {"image size": "image_size", "steps": "steps", "restarts": "restarts", "judged": "judge", "batch": "bs"}
CONDITIONS |= {"attack precision": "precision", "surrogate": "surrogate", "images": "images"}
CONDITIONS |= {"weights": "weights", "normalization": "normalize"}
FORMATS = {"eps": lambda eps: f"{255 * eps:.4g}/255", "surrogate": lambda sha256: sha256[:8], "images": "{:08x}".format}
NONE = "-"
DAMAGE = (AttributeError, KeyError, RuntimeError, TypeError, ValueError, csv.Error)  # RuntimeError: a loop of links

Rows = list[dict[str, float | None]]  # None: an empty cell


class Evaluation(NamedTuple):
    """Results of one checkpoint under one set of conditions: an entry of eval.json.

    ``checkpoint`` is a file name; ``kind`` is "best", "best clean", "best PGD-10", "last" or that name; ``labels`` are
    the conditions as text. ``results[attack]`` has ``accuracy`` (percent) and ``n``.
    """

    checkpoint: str
    kind: str
    conditions: dict[str, Any]
    labels: dict[str, str]
    results: dict[str, dict]


NO_EVALUATION = Evaluation("", "", {}, dict.fromkeys(CONDITIONS.keys() - {"dataset", "student"}, NONE), {})


class Run(NamedTuple):
    """The contents of one run folder; what is missing or damaged is empty.

    ``name`` is its path below the searched folders. ``epochs`` are the rows of results.csv. ``evaluations`` of a
    checkpoint end with the newest; those of a checkpoint that has changed since are a problem. ``images`` are PNG files
    and ``problems`` messages, both by file path inside the folder.
    """

    name: str
    path: Path
    config: dict[str, str | float | bool | None]
    epochs: Rows
    evaluations: list[Evaluation]
    images: dict[str, bytes]
    problems: dict[str, str]

    @property
    def costs(self) -> dict[str, float]:
        """Speed and memory of the training by title of COSTS; what was not measured is absent."""
        columns = {title: [row[key] for row in self.epochs if row.get(key)] for title, (key, _) in COSTS.items()}
        return {title: COSTS[title][1](values) for title, values in columns.items() if values}


def read_runs(paths: Iterable[str | Path]) -> list[Run]:
    """Return all runs in the given folders, each once, sorted by path.

    Raises UserError for a path that is no folder.
    """
    paths = list(map(Path, paths))
    for path in paths:
        if not path.is_dir():
            raise UserError(f"{path}: no such folder; give folders of runs")
    folders = {folder.resolve(): folder for path in paths for folder in _find_folders(path)}
    base = Path(os.path.commonpath([*(path.resolve() for path in paths), *folders]))
    names = {real: real.name if real == base else str(real.relative_to(base)) for real in folders}
    runs = [read_run(folders[real], names[real]) for real in sorted(folders)]
    return [run for run in runs if any(run[2:])]  # other programs, too, write a config.json


def _find_folders(root: Path) -> Iterator[Path]:
    for path, _, files in os.walk(root):  # follows no links
        if EVALUATIONS in files:
            yield Path(path).parent
        if {CONFIG, RESULTS} & {*files}:
            yield Path(path)


def read_run(folder: Path, name: str = "") -> Run:
    """Read one run folder; never raises an exception."""
    problems = {}

    def read(file: str, parse: Callable[[Path], Any], default: Any) -> Any:
        path = folder / file
        try:
            if not os.path.lexists(path):
                return default
            if not (path.resolve().is_relative_to(folder.resolve()) and path.is_file()):
                raise UserError("not a file of this folder")
            return parse(path)
        except UserError as error:
            problems[file] = str(error).removeprefix(f"{path}: ")
        except OSError as error:
            problems[file] = f"cannot be read ({error.strerror})"
        except DAMAGE:
            problems[file] = "damaged"
        return default

    config = read(CONFIG, _read_config, {})
    evaluated, evaluations = [path.parent.name for path in sorted(folder.glob(f"*/{EVALUATIONS}"))], []
    digest = cache(sha256)  # a checkpoint may have many evaluations
    for sub in evaluated:
        for entry in read(f"{sub}/{EVALUATIONS}", partial(_read_evaluations, config.get("method")), []):
            checkpoint, changed = folder / entry.checkpoint, False
            try:
                changed = checkpoint.is_file() and digest(checkpoint) != entry.conditions["sha256"]
            except OSError as error:
                problems[entry.checkpoint] = f"cannot be read ({error.strerror})"
            if changed:
                problems[entry.checkpoint] = "has changed since its evaluation, which is skipped"
            else:
                evaluations.append(entry)
    files = ["reliability.png", *(f"{sub}/{image}" for sub in evaluated for image in IMAGES)]
    images = {file: content for file in files if (content := read(file, _read_image, b""))}
    return Run(name, folder, config, read(RESULTS, _read_rows, []), evaluations, images, problems)


def _read_config(path: Path) -> dict:
    """Return the settings of a run, lists as text; {} for a file of another program."""
    config = {}
    for key, value in read_json(path).items():
        if not all(map(is_plain, value if isinstance(value, list) else [value])):
            raise ValueError("not a setting")
        config[key] = " ".join(map(str, value)) if isinstance(value, list) else value
    return config if "method" in config else {}


def _read_rows(path: Path) -> Rows:
    rows = []
    for cells in read_csv(path):
        row = {key: None if cell == "" else float(cell) for key, cell in cells.items()}
        if not all(isfinite(value) for value in row.values() if value is not None):
            raise ValueError("not a number of a run")
        rows.append(row | {"epoch": int(cells["epoch"])})
    if not rows:
        raise ValueError("no epochs")
    return rows


def _read_evaluations(method: str | None, path: Path) -> list[Evaluation]:
    kinds, evaluations = KINDS | {best_checkpoint(method): "best"}, []
    for entry in read_evaluations(path):
        conditions, results = {"sha256": None} | entry["conditions"], entry["figures"]
        if not all(0 <= result["accuracy"] <= 100 for result in results.values()):
            raise ValueError("not a percentage")
        values = {title: conditions.get(key) for title, key in CONDITIONS.items()}
        labels = {t: NONE if value in (None, "") else FORMATS.get(t, str)(value) for t, value in values.items()}
        name = conditions["checkpoint"]
        evaluations.append(Evaluation(name, kinds.get(name, name.removesuffix(".pth")), conditions, labels, results))
    return evaluations


def _read_image(path: Path) -> bytes:
    content = path.read_bytes()
    if not content.startswith(b"\x89PNG\r\n\x1a\n"):
        raise ValueError("not a PNG")
    return content
