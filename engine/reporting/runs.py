"""Everything that the folders of runs tell, whatever state they are in: of runs that go on, ended, or were damaged.

A fault is kept beside what could be read, and ends nothing. Of a run's folder only regular files inside it are read:
no link leads out of it.
"""

import csv
import json
import os
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from engine.checkpoint import BEST_CLEAN, BEST_PGD10, LAST, STATES
from engine.evaluation.records import read_evaluations, sha256
from engine.reporting.tables import CONDITIONS, KINDS
from utils.errors import UserError

SETTINGS, RESULTS, FIGURES = "config.json", "results.csv", "eval.json"
PICTURES = ("examples.png", "attacks.png", "confusion.png")  # of an evaluation, in this order
MARKS = {RESULTS, BEST_PGD10, BEST_CLEAN, LAST, STATES}  # a folder with any of them is a run's
LARGEST_TEXT, LARGEST_PICTURE = 2**26, 2**22  # bytes
MOST_EPOCHS, LARGEST_NUMBER = 1e6, 1e9  # beyond them a table is damaged
PNG = b"\x89PNG\r\n\x1a\n"
DAMAGE = (AttributeError, KeyError, OverflowError, RuntimeError, TypeError, ValueError, csv.Error)


class Figure(NamedTuple):
    """Accuracy in percent over n images under one attack.

    ``checkpoint`` is best, best clean, last or a file's name; ``conditions`` are those of the evaluation, as text;
    ``outdated`` where the checkpoint has changed since.
    """

    attack: str
    checkpoint: str
    percent: float
    n: int
    conditions: dict[str, str]
    settings: str
    outdated: bool


class SurveyedRun(NamedTuple):
    """What one run's folder tells.

    ``name`` is its path below what was asked for; ``settings`` are those of config.json, {} where there are none;
    ``epochs`` the rows of results.csv as numbers, None where a cell is empty; ``pictures`` PNG files by their place in
    the folder; ``faults`` a line for everything that could not be read.
    """

    name: str
    settings: dict[str, Any]
    epochs: list[dict[str, float | None]]
    figures: list[Figure]
    pictures: dict[str, bytes]
    faults: list[str]


def survey(words: Sequence[str]) -> list[SurveyedRun]:
    """All runs in folders and trees of them, each once, in the order of their names.

    Raises UserError for a word that is no folder.
    """
    for word in words:
        if not Path(word).is_dir():
            raise UserError(f"{word}: no such folder; name run folders, or trees of them")
    roots = [Path(word).resolve() for word in words]
    folders = sorted({folder for root in roots for folder in _runs_below(root)})
    base = Path(os.path.commonpath(roots))
    return [read_run(folder, str(folder.relative_to(base)) if folder != base else base.name) for folder in folders]


def _runs_below(root: Path) -> Iterator[Path]:
    for place, folders, files in os.walk(root):  # follows no links
        folder = Path(place)
        if FIGURES in files and folder != root:
            yield folder.parent
        if MARKS & {*folders, *files} or (SETTINGS in files and _may_be_of_a_run(folder / SETTINGS)):
            yield folder
        folders[:] = [name for name in folders if name != STATES]


def _may_be_of_a_run(path: Path) -> bool:
    """Whether a config.json, which other programs write too, is a run's, or was not written to its end."""
    try:
        settings = json.loads(_text(path)) if path.is_file() else {}
    except (OSError, *DAMAGE):
        return True
    return isinstance(settings, dict) and "method" in settings


def read_run(folder: Path, name: str) -> SurveyedRun:
    """What the folder of one run tells; raises nothing."""
    reader = _Reader(folder)
    if not os.path.lexists(folder / SETTINGS):
        reader.faults.append(f"{SETTINGS}: not there")
    settings = reader.read(SETTINGS, _settings) or {}
    epochs, bad = reader.read(RESULTS, _rows) or ([], 0)
    reader.faults += [f"{RESULTS}: damaged rows left out: {bad}"] * bool(bad)
    evaluated = [path.parent.name for path in sorted(folder.glob(f"*/{FIGURES}"))]
    figures = [figure for inner in evaluated for figure in reader.read(f"{inner}/{FIGURES}", _figures) or []]
    places = ["reliability.png", *(f"{inner}/{picture}" for inner in evaluated for picture in PICTURES)]
    pictures = {place: content for place in places if (content := reader.read(place, _picture))}
    return SurveyedRun(name, settings, epochs, figures, pictures, reader.faults)


class _Reader:
    """Reads files of one folder, none outside of it, and notes what it cannot read."""

    def __init__(self, folder: Path):
        self.folder, self.faults = folder, []

    def read(self, place: str, read: Callable[[Path], Any]) -> Any:
        """What ``read`` makes of a file; None where there is none, or a fault."""
        path = self.folder / place
        if not os.path.lexists(path):
            return None
        try:
            if not (path.resolve().is_relative_to(self.folder.resolve()) and path.is_file()):
                raise UserError("no file of this folder")
            return read(path)
        except UserError as error:
            self.faults.append(f"{place}: {str(error).removeprefix(f'{path}: ')}")
        except OSError as error:
            self.faults.append(f"{place}: cannot be read ({error.strerror})")
        except DAMAGE:
            self.faults.append(f"{place}: damaged")
        return None


def _text(path: Path) -> str:
    if path.stat().st_size > LARGEST_TEXT:
        raise UserError(f"{path}: larger than {LARGEST_TEXT >> 20} MiB")
    return path.read_text(encoding="utf-8", errors="replace")


def _settings(path: Path) -> dict:
    return {key: _plain(value) for key, value in json.loads(_text(path)).items()}


def _plain(value) -> Any:
    if isinstance(value, list):
        return " ".join(map(str, value))
    return value if value is None or isinstance(value, int | float) else str(value)


def _rows(path: Path) -> tuple[list[dict[str, float | None]], int]:
    """The rows of a table of epochs, and how many could not be read."""
    table = csv.DictReader(_text(path).splitlines())
    if "epoch" not in (table.fieldnames or ()):
        raise ValueError("no table of epochs")
    rows, bad = [], 0
    for cells in table:
        try:
            row = {key: None if cell == "" else _number(cell) for key, cell in cells.items()}
            if not (row["epoch"] % 1 == 0 and 0 <= row["epoch"] < MOST_EPOCHS):
                raise ValueError(row["epoch"])
            rows.append(row)
        except DAMAGE:
            bad += 1
    return rows, bad


def _number(cell: str) -> float:
    value = float(cell)
    if not abs(value) < LARGEST_NUMBER:
        raise ValueError(cell)
    return value


def _figures(path: Path) -> list[Figure]:
    """Figures of all evaluations in a file, those of the newest last."""
    _text(path)  # refuses one that is too large
    found = []
    for entry in read_evaluations(path):
        conditions = entry["conditions"]
        checkpoint = path.parent.with_name(Path(conditions["checkpoint"]).name)
        known = {title: (conditions.get(key), words) for title, (key, words) in CONDITIONS.items()}
        about = {title: words(value) for title, (value, words) in known.items() if value not in (None, "")}
        outdated = checkpoint.is_file() and _digest(checkpoint) != conditions["sha256"]
        for attack, figure in entry["figures"].items():
            kind, percent = KINDS.get(checkpoint.name, checkpoint.stem), _percent(figure["accuracy"])
            details = {"protocol": str(conditions["protocol"])} | about
            found.append(
                Figure(attack, kind, percent, int(figure["n"]), details, str(figure.get("settings", "")), outdated)
            )
    return found


def _percent(value) -> float:
    if not 0 <= value <= 100:
        raise ValueError(value)
    return float(value)


def _digest(path: Path) -> str:
    metadata = path.stat()
    return _digest_of(path, metadata.st_mtime_ns, metadata.st_size)


@cache  # a page that is written again and again reads no unchanged checkpoint twice
def _digest_of(path: Path, changed: int, size: int) -> str:
    return sha256(path)


def _picture(path: Path) -> bytes:
    if path.stat().st_size > LARGEST_PICTURE:
        raise UserError(f"{path}: larger than {LARGEST_PICTURE >> 20} MiB, not shown")
    content = path.read_bytes()
    if not content.startswith(PNG):
        raise ValueError("no PNG")
    return content
