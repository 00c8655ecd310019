"""The comparison of evidence.py: its methods and their values, and which runs the results so far require next."""

import re
from collections.abc import Sequence
from pathlib import Path
from statistics import mean
from typing import NamedTuple

from engine.checkpoint import BEST_PGD10
from methods import WITH_TEACHER

RATES = ("--lr_max 0.1", "--lr_max 0.3", "--lr_max 1")
SCALES = ("--kl_weight 0.1", "--kl_weight 1", "--kl_weight 3")  # 0.1 is the official one of RSLAD and AdaAD
# Method -> three values of its loss scale or, where it has none, of its learning rate.
GRID = {
    "AT": RATES,
    "TRADES": RATES,
    "RSLAD": SCALES,
    "IAD-I": RATES,
    "ADR": RATES,
    "IKL": RATES,
    "DGAD": tuple(f"--distill_weight {scale:g} --ALP_beta {5 * scale:g}" for scale in (0.3, 1, 3)),
    "AdaAD": SCALES,
    "IGDM": tuple(f"--igdm 1 {rate}" for rate in RATES),  # the official weight on CIFAR-10
    "SAAD": tuple(f"--igdm 1 {rate}" for rate in RATES),
}
BASE = "AT"  # every method is compared with it
PIECES = {"AWP": "--awp 0.005", "IDBH-weak": "--augment idbh-weak"}
TRAIN, WEIGHTS = "train", ("ema", "raw")  # the steps of a run: a training, and an evaluation of either weights
ATTACKS = ("Clean", "PGD-20", "AutoAttack")


class Run(NamedTuple):
    """One trained network; ``flags`` are those of the tuned value and of the added piece."""

    method: str
    flags: str
    seed: int

    @property
    def name(self) -> str:
        """Key of results.json."""
        return f"{self.method} {self.flags} --seed {self.seed}"

    @property
    def folder(self) -> str:
        """Name of its folder below --work."""
        return re.sub(r"[^\w.]+", "_", self.name)


class Study:
    """The results so far, ``results[run.name]``, and what they require next.

    A result has ``epochs``, the rows of results.csv, and for each kind of weights the accuracy by attack.
    """

    def __init__(self, methods: Sequence[str], seeds: Sequence[int], results: dict[str, dict]):
        self.methods, self.seeds, self.results = methods, seeds, results

    def held_out(self, run: Run) -> float | None:
        """PGD-10 accuracy of the best epoch on held-out training images; None before the run is trained."""
        epochs = self.results.get(run.name, {}).get("epochs")
        return epochs and max(row["PGD10_acc"] or 0 for row in epochs)

    def tuning(self, method: str) -> dict[str, float | None]:
        """Held-out accuracy of each value of the method's grid."""
        return {flags: self.held_out(Run(method, flags, self.seeds[0])) for flags in GRID[method]}

    def runs(self, method: str, piece: str = "") -> list[Run]:
        """All seeds of the method at its best value, with the flags of a piece; none before all values are trained."""
        scores = self.tuning(method)
        if None in scores.values():
            return []
        return [Run(method, f"{max(scores, key=scores.get)} {piece}".strip(), seed) for seed in self.seeds]

    def best_distillation(self) -> str | None:
        """The distillation with the highest mean held-out accuracy; None before all are trained."""
        scores = {}
        for method in filter(WITH_TEACHER.__contains__, self.methods):
            values = [self.held_out(run) for run in self.runs(method)]
            if not values or None in values:
                return None
            scores[method] = mean(values)
        return max(scores, key=scores.get, default=None)

    def rows(self) -> dict[str, list[Run]]:
        """The runs of each row of the table that are known so far."""
        rows, best = {method: self.runs(method) for method in self.methods}, self.best_distillation()
        for method in self.methods:
            for piece, flags in PIECES.items():
                runs = self.runs(method, flags)
                if method in (BASE, best) or any(run.name in self.results for run in runs):
                    rows[f"{method} + {piece}"] = runs
        return {title: runs for title, runs in rows.items() if runs}

    def left(self) -> dict[Run, list[str]]:
        """The runs known so far that are not done, with their missing steps: TRAIN, and WEIGHTS for table rows."""
        left = {Run(method, flags, self.seeds[0]): [TRAIN] for method in self.methods for flags in GRID[method]}
        left |= {run: [TRAIN, *WEIGHTS] for runs in self.rows().values() for run in runs}
        for run, parts in left.items():
            done = self.results.get(run.name, {})
            left[run] = [part for part in parts if f"{part} seconds" not in done]
        return {run: parts for run, parts in left.items() if parts}

    def steps(self, work: Path) -> list[tuple[Run, str]]:
        """The steps that are not done and can start; evaluations come first, so that finished runs have full rows.

        A run whose checkpoint is not in ``work`` is trained again before its evaluation.
        """
        steps = []
        for run, parts in self.left().items():
            trained = TRAIN not in parts and find(work / run.folder, BEST_PGD10)
            steps += [(run, part) for part in (parts if trained else [TRAIN])]
        return sorted(steps, key=lambda step: step[1] == TRAIN)

    def accuracies(self, runs: Sequence[Run], weights: str, attack: str) -> list[float]:
        """Accuracy in percent of each run with this evaluation."""
        results = [self.results.get(run.name, {}).get(weights, {}) for run in runs]
        return [result[attack] for result in results if attack in result]


def find(folder: Path, name: str) -> Path | None:
    """The file of that name below a folder."""
    return next(folder.rglob(name), None)
