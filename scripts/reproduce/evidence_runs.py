"""Runs of the comparison on a CPU, read back from their folders."""

import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from engine.checkpoint import BEST_PGD10, LAST
from engine.evaluation.records import read_evaluations, results_folder
from utils.errors import UserError
from utils.files import read_json
from utils.log import logger
from utils.tables import read_csv

ATTACKS = ("Clean", "FGSM", "PGD-20", "C&W-inf-30", "AutoAttack")  # the later the stronger
KINDS = {"best": BEST_PGD10, "last": LAST}
TEACHER, LONG = "teacher", "long"  # --desc_str, as small_setting.sh and overfitting_cpu.sh set it
SHARED = (
    "model",
    "dataset",
    "limit_train",
    "epochs",
    "bs",
    "lr_schedule",
    "lr_max",
    "epsilon",
    "num_steps",
    "val_size",
)
OWN = ("checkpoint", "sha256")  # what evaluations under equal conditions differ in


class Run(NamedTuple):
    """One trained network: its settings, the rows of results.csv and reliability.csv, and its figures.

    ``figures[kind][attack]`` is a figure of eval.json, of the newest evaluation; ``conditions`` those of each kind.
    """

    config: dict
    epochs: list[dict[str, str]]
    trust: list[dict[str, str]]
    figures: dict[str, dict[str, dict]]
    conditions: set[str]

    @property
    def method(self) -> str:
        """Its name in METHODS."""
        return self.config["method"]

    @property
    def word(self) -> str:
        """What its folder's name ends with: "" for a plain run of its method."""
        return self.config["desc_str"]

    def accuracy(self, kind: str, attack: str) -> float | None:
        """Accuracy in percent, None where that was not evaluated."""
        figure = self.figures[kind].get(attack)
        return figure and figure["accuracy"]


def read_runs(folder: Path) -> list[Run]:
    """All evaluated runs below a folder, by path; others are left out with a warning.

    Raises UserError where there is no student, a file is damaged, or runs cannot stand in one table: one of them is
    there twice, or they were trained in different settings or evaluated under different conditions. The teachers, and
    the long runs that no table shows, may have settings of their own.
    """
    places = [path.parent for path in sorted(folder.rglob("config.json"))]
    runs = [_read(place) for place in places if any(place.glob("*_eval/eval.json"))]
    if len(runs) < len(places):
        logger.warning("left out: %d runs that are not evaluated", len(places) - len(runs))
    if not any(run.word != TEACHER for run in runs):
        raise UserError(f"{folder}: no evaluated run of a student below it; methods_cpu.sh makes some")
    (most, times), *_ = Counter((run.method, run.word, run.config["seed"]) for run in runs).most_common(1)
    if times > 1:
        raise UserError(f"{folder}: {' '.join(filter(None, map(str, most)))} is there {times} times; keep one of them")
    compared = [run for run in runs if run.word not in (TEACHER, LONG)]
    for key in (*SHARED, "limit_test"):
        values = sorted({str(run.config.get(key)) for run in compared})
        if len(values) > 1:
            raise UserError(f"{folder}: trained at --{key} {' and '.join(values)}; give the folder of one comparison")
    if len(set().union(*(run.conditions for run in runs))) > 1:
        raise UserError(f"{folder}: evaluated under different conditions; give the folder of one comparison")
    return runs


def grouped(runs: Iterable[Run], key: Callable[[Run], str | None]) -> dict[str, list[Run]]:
    """Runs by what ``key`` says of them; those of which it says None are left out."""
    groups: dict[str, list[Run]] = {}
    for run in runs:
        if (name := key(run)) is not None:
            groups.setdefault(name, []).append(run)
    return groups


def plain_methods(runs: Iterable[Run]) -> dict[str, list[Run]]:
    """The seeds of each method as it is, without a word."""
    return grouped(runs, lambda run: None if run.word else run.method)


def strongest(methods: Mapping[str, Sequence[Run]], kind: str) -> str:
    """The strongest attack that every run has a figure for."""
    runs = [run for group in methods.values() for run in group]
    met = [attack for attack in ATTACKS if all(attack in run.figures[kind] for run in runs)]
    return met[-1] if met else ATTACKS[0]


def _read(place: Path) -> Run:
    try:
        config, epochs = read_json(place / "config.json"), read_csv(place / "results.csv")
        watched = place / "reliability.csv"
        trust = read_csv(watched) if watched.exists() else []
    except (OSError, ValueError) as error:
        raise UserError(f"{place}: no whole run ({error})") from error
    figures, conditions = {}, set()
    for kind, name in KINDS.items():
        evaluated = results_folder(place / name) / "eval.json"
        newest = read_evaluations(evaluated)[-1] if evaluated.exists() else {"figures": {}, "conditions": None}
        figures[kind] = newest["figures"]
        if newest["conditions"]:
            alike = {key: value for key, value in newest["conditions"].items() if key not in OWN}
            conditions.add(json.dumps(alike, sort_keys=True))
    return Run(config, epochs, trust, figures, conditions)
