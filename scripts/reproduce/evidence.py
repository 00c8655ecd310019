"""Compare methods with an equal budget of tuning: python scripts/reproduce/evidence.py --data_root IMAGES --out DIR

Each method trains with one seed and three values of its loss scale or learning rate, then with further seeds at the
best value. AWP and IDBH-weak are then added to AT and to the best distillation. Held-out training images make every
choice. Averaged and raw weights are evaluated. Flags after -- go to every training.

    evidence.py --data_root IMAGES --out DIR --device cuda --jobs 16 -- --compile graphs
    evidence.py --table DIR                                         write the table and the figure

Writes results.json to DIR after every training and evaluation, then fair.md and fair.png. Skips what results.json
contains; the same command continues a stopped training.
"""

import argparse
import json
import os
import platform
import sys
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # this file is run from its folder

from data import load
from engine.checkpoint import BEST_PGD10
from engine.evaluation.records import read_evaluations
from engine.reporting.runs import read_run
from methods import WITH_TEACHER
from scripts.reproduce.evidence_page import draw, missing, page
from scripts.reproduce.study import ATTACKS, BASE, GRID, TRAIN, Run, Study, find
from scripts.tasks import STATUS, UNFINISHED, Pool, Task, check_seeds, split_flags
from utils.cli import ROOT, run_command
from utils.config import TrainConfig
from utils.errors import UserError
from utils.files import read_json, write_text
from utils.flags import parse, parser_for
from utils.log import logger
from utils.plots import save_figure
from utils.versions import versions

TEACHER = ROOT / "models" / "pretrained" / "small_resnet_cifar10" / "model.safetensors"
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
    if options.jobs < 1:
        raise UserError(f"--jobs {options.jobs}: must be at least 1")
    check_seeds(options.seeds or ())
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
    pool = Pool([[]] * options.jobs)
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
    return parser


if __name__ == "__main__":
    run_command(lambda: evidence(sys.argv[1:]))
