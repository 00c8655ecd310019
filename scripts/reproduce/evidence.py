"""Compare methods with an equal budget of tuning: python scripts/reproduce/evidence.py --data_root IMAGES --out DIR

Each method trains with one seed and three values of its loss scale or learning rate, then with further seeds at the
best value. AWP and IDBH-weak are then added to AT and to the best distillation. Held-out training images make every
choice. Averaged and raw weights are evaluated. Flags after -- go to every training.

    evidence.py --data_root IMAGES --out DIR --device cuda --jobs 16 --minutes 5 -- --compile graphs
    evidence.py --table DIR                                         write the table and the figure

Writes results.json to DIR after every training and evaluation, then fair.md and fair.png. Skips what results.json
contains; the same command continues a stopped training.
"""

import argparse
import json
import os
import platform
import re
import sys
from collections.abc import Iterator, Sequence
from functools import partial
from math import inf
from pathlib import Path
from statistics import mean, variance
from typing import NamedTuple

import matplotlib.pyplot as plt
import torch
from matplotlib.figure import Figure

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # this file is run from its folder

from data import load
from engine.checkpoint import BEST_PGD10
from engine.evaluation.records import read_evaluations
from engine.reporting.runs import NONE, read_run
from methods import WITH_TEACHER
from scripts.tasks import STATUS, UNFINISHED, Pool, Task, split_flags
from utils.cli import ROOT, run_command
from utils.config import TrainConfig
from utils.errors import UserError
from utils.files import read_json, write_text
from utils.flags import parse, parser_for
from utils.log import logger
from utils.plots import save_figure
from utils.tables import markdown_table
from utils.versions import versions

RATES = ("--lr_max 0.1", "--lr_max 0.3", "--lr_max 1")
SCALES = ("--kl_weight 0.1", "--kl_weight 1", "--kl_weight 3")  # 0.1 is the official one of RSLAD and AdaAD
# Method -> three values of its loss scale or, where it has none, of its learning rate.
GRID = {
    "AT": RATES,
    "TRADES": RATES,
    "RSLAD": SCALES,
    "IAD-I": RATES,
    "ADR": RATES,
    "DGAD": tuple(f"--distill_weight {scale:g} --ALP_beta {5 * scale:g}" for scale in (0.3, 1, 3)),
    "AdaAD": SCALES,
    "IGDM": tuple(f"--igdm 1 {rate}" for rate in RATES),  # the official weight on CIFAR-10
}
BASE = "AT"  # every method is compared with it
PIECES = {"AWP": "--awp 0.005", "IDBH-weak": "--augment idbh-weak"}
TEACHER = ROOT / "models" / "pretrained" / "small_resnet_cifar10" / "model.safetensors"
TRAIN, WEIGHTS = "train", ("ema", "raw")  # the steps of a run: a training, and an evaluation of either weights
ATTACKS = ("Clean", "PGD-20", "AutoAttack")
RESULTS, PAGE, FIGURE = "results.json", "fair.md", "fair.png"
SEEDS = {"full": [1, 2, 3], "smoke": [1, 2]}  # the first one tunes
TRAINING = {
    "full": "--dataset Folder --model small_resnet --limit_train 20000 --val_size 1000 --limit_test 500 --epochs 10 "
    "--bs 128 --eval_bs 500 --lr_schedule cosine --IAD_begin 3 --ema 0.995",
    "smoke": "--dataset Digits --image_size 16 --model small_resnet --limit_train 64 --val_size 20 --limit_test 20 "
    "--epochs 2 --bs 32 --num_steps 2 --IAD_begin 1 --ema 0.995 --no_teacher_check",
}
EVALUATION = {
    "full": "--attacks clean,pgd,aa --limit_test 2000 --limit_aa 500 --bs 500 --no-pictures --precision bf16",
    "smoke": "--attacks clean,pgd --limit_test 20 --bs 20 --no-pictures",
}


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


class Runner:
    """Runs the steps and writes their results.

    Raises UserError if the folder has results of another scale or with other flags after --.
    """

    def __init__(self, study: Study, options: argparse.Namespace, flags: list[str]):
        self.study, self.out, self.scale, self.flags = study, Path(options.out), options.scale, flags
        self.work = Path(options.work or f"runs/fair-{options.scale}").absolute()
        threads = options.threads or max(1, (os.cpu_count() or 1) // options.jobs)
        self.shared = ["--device", options.device, "--threads", str(threads)]
        self.shared += ["--data_root", options.data_root] if options.data_root else []
        cuda = options.device != "cpu" and torch.cuda.is_available()
        device = torch.cuda.get_device_name() if cuda else f"CPU, {platform.machine()}"
        mine = {"scale": options.scale, "flags": flags}
        self.machine = {"device": device, "torch": torch.__version__, "git": versions()["git"], **mine}
        self.failed = False
        for key, value in mine.items():
            others = [result[key] for result in study.results.values() if result.get(key, value) != value]
            if others:
                raise UserError(f"--out {self.out}: has results of other {key} ({others[0]}); choose another folder")

    def command(self, run: Run, part: str) -> list[str]:
        """The script and its flags."""
        folder = self.work / run.folder
        if part != TRAIN:
            path = find(folder, BEST_PGD10) or folder
            args = ["--model_path", str(path), "--weights", part, "--out", str(folder / part)]
            return ["main_eval.py", *args, *EVALUATION[self.scale].split(), *self.shared]
        args = ["--method", run.method, *TRAINING[self.scale].split(), *run.flags.split(), "--seed", str(run.seed)]
        if run.method in WITH_TEACHER:
            args += ["--teacher_model", "small_resnet", "--teacher_path", str(TEACHER)]
        return ["main.py", *args, *self.shared, "--root_path", str(folder), "--resume", *self.flags]

    def tasks(self) -> Iterator[Task]:
        """What is not done and can start."""
        for run, part in self.study.steps(self.work):
            script, *args = self.command(run, part)
            command = [sys.executable, f"{ROOT}/{script}", *args]
            log = self.work / "logs" / f"{run.folder}_{part}.txt"
            yield Task(f"{run.name} {part}", command, log, partial(self.add, run, part))

    def add(self, run: Run, part: str, problem: str, seconds: float) -> None:
        """Add the results of a step that has ended and write all."""
        if problem:
            self.failed |= problem != UNFINISHED
            return
        folder, results = self.work / run.folder, self.study.results
        result = {f"{part} seconds": round(seconds, 1), **self.machine}
        if part == TRAIN:
            result["epochs"] = read_run(find(folder, "results.csv").parent).epochs
        else:
            figures = read_evaluations(find(folder / part, "eval.json"))[-1]["figures"]
            shown = {title: figures[title] for title in ATTACKS if title in figures}
            result[part] = {title: one["accuracy"] for title, one in shown.items()}
            logger.info("%s, %s: %s", run.name, part, result[part])
            result[part]["images"] = {title: one["n"] for title, one in shown.items()}
        results[run.name] = results.get(run.name, {}) | result
        lines = (f"{json.dumps(name)}: {json.dumps(result)}" for name, result in results.items())
        write_text(self.out / RESULTS, "{\n" + ",\n".join(lines) + "\n}\n")


def read_results(folder: Path) -> dict[str, dict]:
    """The results in a folder; {} if it has none. Raises UserError for a damaged file."""
    path = folder / RESULTS
    try:
        results = read_json(path) if path.exists() else {}
        if not all((row["PGD10_acc"] or 0) >= 0 for result in results.values() for row in result["epochs"]):
            raise ValueError("not an accuracy")
        return results
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise UserError(f"{path}: no results of evidence.py ({error}); choose another folder") from error


def evidence(arguments: Sequence[str]) -> None:
    """Run the comparison and write its table.

    Raises UserError for invalid flags; exits with status 1 if a step failed, and with its own status after a signal.
    """
    own, flags = split_flags(arguments)
    options = _parser().parse_args(own)
    if not (options.table or options.out):
        raise UserError("--out: required; give a folder for the results")
    if unknown := set(options.methods) - GRID.keys():
        raise UserError(f"--methods {' '.join(sorted(unknown))}: must be among {', '.join(GRID)}")
    if not (options.jobs >= 1 and options.minutes >= 0):
        raise UserError(f"--jobs {options.jobs} --minutes {options.minutes:g}: must be at least 1 and 0")
    folder, seeds = Path(options.table or options.out), options.seeds or SEEDS[options.scale]
    results = read_results(folder)
    if options.table and not results:
        raise UserError(f"--table {folder}: has no results of evidence.py")
    status = 0 if options.table else carry_out(Study(options.methods, seeds, results), options, flags)
    shown = {*options.methods, *(name.split()[0] for name in results)}  # --methods only chooses what runs
    study = Study([method for method in GRID if method in shown], seeds, results)
    write_text(folder / PAGE, page(study))
    save_figure(draw(study), folder / FIGURE)
    logger.info("%s, %s; missing runs: %s", folder / PAGE, folder / FIGURE, missing(study))
    if status:
        sys.exit(status)


def carry_out(study: Study, options: argparse.Namespace, flags: list[str]) -> int:
    """Run the steps of the study; return the exit status."""
    runner = Runner(study, options, flags)
    parse(TrainConfig, runner.command(Run(BASE, GRID[BASE][0], 1), TRAIN)[1:], description="", choices={})
    if options.scale == "full":
        load("Folder", options.data_root, workers=os.cpu_count() or 1)  # reports a bad folder before the first run
    runner.out.mkdir(parents=True, exist_ok=True)
    pool = Pool([[]] * options.jobs, 60 * options.minutes or inf)
    pool.run(runner.tasks)
    return 1 if runner.failed else STATUS.get(pool.received, 0)


def _parser() -> argparse.ArgumentParser:
    parser = parser_for(__doc__)
    parser.add_argument("--data_root", metavar="DIR", help="image folder of CIFAR-10; default: datasets/")
    parser.add_argument("--out", metavar="DIR", help="folder of the results")
    parser.add_argument("--table", metavar="DIR", help="write table and figure of the results in DIR and end")
    parser.add_argument("--work", metavar="DIR", help="folder of the checkpoints; default: runs/fair-SCALE")
    parser.add_argument("--scale", choices=SEEDS, default="full", help="smoke shows that everything runs [full]")
    parser.add_argument("--methods", nargs="+", default=list(GRID), metavar="NAME", help="some methods; default: all")
    parser.add_argument("--seeds", nargs="+", type=int, metavar="N", help="the first one tunes [1 2 3]")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N [auto]")
    parser.add_argument("--threads", type=int, metavar="N", help="CPU threads of a process; default: cores / jobs")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="processes at once [1]")
    parser.add_argument("--minutes", type=float, default=0, metavar="M", help="stop after M minutes [no limit]")
    return parser


def two_errors(*groups: Sequence[float]) -> float:
    """Two standard errors of a mean, or of the difference of two means."""
    return 2 * sum(variance(values) / len(values) for values in groups) ** 0.5


def page(study: Study) -> str:
    """The comparison and the tuning as Markdown."""
    lines, base = [], study.runs(BASE) if BASE in study.methods else []
    for title, runs in study.rows().items():
        cells = [study.accuracies(runs, weights, attack) for weights in WEIGHTS for attack in ATTACKS]
        ours, theirs = (study.accuracies(group, WEIGHTS[0], ATTACKS[-1]) for group in (runs, base))
        known = title != BASE and min(len(ours), len(theirs)) > 1
        gap = f"{mean(ours) - mean(theirs):+.2f} ± {two_errors(ours, theirs):.2f}" if known else NONE
        lines.append([title, runs[0].flags, len(cells[0]), *map(_cell, cells), gap])
    columns = [f"{weights} {attack}" for weights in ("averaged:", "raw:") for attack in ATTACKS]
    header = ["method", "chosen", "seeds", *columns, f"{ATTACKS[-1]}, averaged, minus {BASE}"]
    tuned, bold = [], set()
    for number, method in enumerate(study.methods):
        scores = study.tuning(method)
        tuned.append([method, *(f"{flags}: {NONE if score is None else score}" for flags, score in scores.items())])
        if None not in scores.values():
            bold.add((number, 1 + list(scores).index(max(scores, key=scores.get))))
    results = study.results.values()
    machines = {f"{result['device']}, PyTorch {result['torch']}" for result in results}
    images = {f"{attack} {n}" for one in results for w in WEIGHTS if w in one for attack, n in one[w]["images"].items()}
    parts = [
        "# Methods with an equal budget of tuning",
        f"Accuracy in %, mean ± two standard errors over seeds. Test images: {', '.join(sorted(images)) or NONE}.",
        f"Hardware: {'; '.join(sorted(machines)) or NONE}.",
        markdown_table(header, lines),
        f"Missing runs: {missing(study)}.",
        "## Tuning",
        f"PGD-10 accuracy in % of the best epoch on held-out images, seed {study.seeds[0]}; bold: chosen.",
        markdown_table(["method", "first value", "second value", "third value"], tuned, bold) + "\n",
    ]
    return "\n\n".join(parts)


def missing(study: Study) -> str:
    """The runs that are missing in the table, as far as they are known."""
    return "; ".join(run.name for run in study.left()) or "none"


def _cell(values: Sequence[float]) -> str:
    errors = f" ± {two_errors(values):.2f}" if len(values) > 1 else ""
    return f"{mean(values):.2f}{errors}" if values else NONE


def draw(study: Study) -> Figure:
    """Accuracy of each row with two standard errors, one panel per attack: averaged weights filled, raw ones empty."""
    rows = study.rows()
    size = (10, 0.35 * len(rows) + 1.3)
    figure, axes = plt.subplots(1, len(ATTACKS), figsize=size, sharey=True, layout="constrained")
    for axis, attack in zip(axes, ATTACKS, strict=True):
        for weights, shift, fill in (("ema", -0.12, "C0"), ("raw", 0.12, "white")):
            for number, runs in enumerate(rows.values()):
                if values := study.accuracies(runs, weights, attack):
                    style = {"fmt": "o", "color": "C0", "markerfacecolor": fill, "elinewidth": 0.8, "capsize": 2}
                    error = two_errors(values) if len(values) > 1 else 0
                    axis.errorbar(mean(values), number + shift, xerr=error, **style)
        axis.set_xlabel(f"{attack} (%)")
        axis.grid(alpha=0.3)
    axes[0].set_yticks(range(len(rows)), rows)
    axes[0].invert_yaxis()
    figure.suptitle("filled: averaged weights, empty: raw weights", fontsize="medium")
    return figure


if __name__ == "__main__":
    run_command(lambda: evidence(sys.argv[1:]))
