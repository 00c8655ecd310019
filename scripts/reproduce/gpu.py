"""Measure on one GPU within a time limit: python scripts/reproduce/gpu.py --minutes 9 --out DIR --data_root IMAGES

Trains and evaluates the rows of the table GPU, a robust teacher and then one student after another, runs the GPU tests,
and benchmarks the training steps of the papers. Starts nothing that cannot finish in time. Writes results.json to DIR
after every measurement, and the teacher's weights as two files. Skips measurements that DIR, --work or --done already
contain; tests count only for the same commit.

    gpu.py --table results/gpu                                      print the results as Markdown
    gpu.py --join DIR --to models/pretrained/resnet18_cifar10       join and check the teacher's weights, write its card
"""

import argparse
import hashlib
import json
import os
import platform
import shlex
import shutil
import signal
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from itertools import pairwise
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # this file is run from its folder

from engine.checkpoint import BEST_PGD10, LAST
from engine.evaluation.records import read_evaluations, results_folder
from models.hub import CONFIG, WEIGHTS, save_folder
from models.weights import Checkpoint, load_network
from scripts.reproduce.gpu_results import PARTS, RESULTS, STEP, TEACHER, join, read_results, table
from scripts.reproduce.reproduce import Planner, load_tables
from scripts.tasks import last_line, start
from utils.cli import ROOT, run_command
from utils.errors import UserError
from utils.files import read_json, write_text
from utils.flags import parser_for
from utils.log import logger
from utils.tables import read_csv
from utils.versions import versions

SECOND = "standard"  # the row of the second teacher in the table GPU
START, EPOCH, EVALUATION, TESTS = "start", "epoch", "evaluation", "tests"
PUBLISHED, IMAGES = "models/pretrained/resnet18_cifar10", "datasets/cifar10_jpeg"
# Seconds of an epoch relative to AT's; 1.4 for other methods.
COSTS = {"Natural": 0.2, "AT": 1.0, "AdaAD": 2.2, "AdaIAD": 2.2, "DGAD": 2.2, "DGAD-IAD": 2.2, "IGDM": 2.5}
MARGIN, LIMIT = 1.1, 3.0  # factors on an estimate: a measurement must fit with the first, and ends after the second
PAIRS = (("AT", "resnet18"), *((method, of) for of in ("wideresnet34_10", "resnet18") for method in ("DGAD", "RSLAD")))
# "seconds" estimates what is not measured yet: START before the first epoch (decoding and compilation), EPOCH of AT.
# The table's epochs are chosen for 9 minutes on an H200: the teacher's 36 take about 320 s, DGAD's 20 about 380 s, and
# an evaluation follows. --lr_schedule cyclic with a peak of 0.2 is that of short adversarial trainings (Wong et al.,
# ICLR 2020); in results/fair a rate above 0.1, --ema, and a loss scale above 0.1 for RSLAD and AdaAD are better.
SCALES = {
    "full": {  # on an H200
        "seconds": {TESTS: 90, STEP: 75, START: 60, EPOCH: 7.2, EVALUATION: 110},
        "tests": ["-m", "gpu", "-n", "6", *(f"tests/test_{name}.py" for name in ("gpu", "graphs", "augment", "data"))],
        "steps": [
            f"--method {method} --model resnet18 --teacher_model {teacher} --bs {bs} --compile {mode}"
            for mode, bs in (("graphs", 128), ("graphs", 512), ("on", 128), ("off", 128))
            for method, teacher in PAIRS
        ],
        "rows": ["*"],
    },
    "smoke": {  # checks on a CPU that everything runs
        "seconds": {TESTS: 20, STEP: 30, START: 15, EPOCH: 0, EVALUATION: 50},
        "tests": ["tests/test_schedule.py"],
        "steps": ["--method AT --model small_resnet --bs 4 --pairs 1"],
        "rows": [TEACHER, "DGAD", SECOND, "IAD-II"],
    },
}


def gpu(arguments: Sequence[str]) -> None:
    """Measure, print a table or join weights. Raises UserError for invalid flags, before anything is measured."""
    parser = parser_for(__doc__)
    parser.add_argument("--minutes", type=float, default=0, metavar="M", help="time limit for everything")
    parser.add_argument("--out", metavar="DIR", help="folder for the results: 3 files of at most 16 MiB")
    parser.add_argument("--data_root", default=IMAGES, metavar="DIR", help=f"image folder of CIFAR-10 [{IMAGES}]")
    parser.add_argument("--epochs", type=int, metavar="N", help="training epochs of every row [those of the table]")
    parser.add_argument("--scale", choices=SCALES, default="full", help="smoke runs on a CPU [full]")
    parser.add_argument("--done", default="results/gpu", metavar="DIR", help="earlier results [results/gpu]")
    parser.add_argument("--work", metavar="DIR", help="folder for checkpoints [runs/gpu-SCALE]")
    parser.add_argument("--table", metavar="DIR", help="print the results in DIR as Markdown and exit")
    parser.add_argument("--join", metavar="DIR", help="join the teacher's weights in DIR and exit")
    parser.add_argument("--to", default=PUBLISHED, metavar="DIR", help=f"folder for the joined weights [{PUBLISHED}]")
    options = parser.parse_args(arguments)
    if options.table:
        logger.info("%s", table(Path(options.table)))
    elif options.join:
        join(Path(options.join), Path(options.to))
    else:
        _check(options)
        Session(options).measure()


def _check(options: argparse.Namespace) -> None:
    if not 0 < options.minutes < 1e4:
        raise UserError(f"--minutes {options.minutes:g}: must be a number above 0")
    if options.epochs is not None and options.epochs < 1:
        raise UserError(f"--epochs {options.epochs}: must be at least 1")
    if not options.out:
        raise UserError("--out: required; give a folder for the results")
    if options.scale == "full":
        for part in ("train", "test"):
            if not any(Path(options.data_root, part).glob("*/*.*")):
                raise UserError(f"--data_root {options.data_root}: no images in {part}/CLASS/; give an image folder")
        if not torch.cuda.is_available():
            raise UserError("--scale full: requires a CUDA device; --scale smoke runs on a CPU")


class Session:
    """One call of the script: the results so far, the remaining time, and the measurements.

    ``pieces`` are the measurements on this device by name; ``done`` has the successful ones, including those in --done.
    Raises UserError if --out or --work contains results of another device.
    """

    def __init__(self, options: argparse.Namespace):
        self.end = self.limit = time.monotonic() + 60 * options.minutes - 5
        self.scale, self.earlier, self.epochs = SCALES[options.scale], Path(options.done), options.epochs
        self.out = Path(options.out).absolute()
        self.work = Path(options.work or f"runs/gpu-{options.scale}").absolute()
        root, full = Path(options.data_root).absolute(), options.scale == "full"
        flags = ["--dataset", "Folder", "--data_root", str(root)] if full else []
        planned = Planner(self.work, options.scale, [], None, flags).plan(load_tables()["GPU"], self.scale["rows"])
        self.runs = {row: run for row, (run,) in planned.items()}
        device = torch.cuda.get_device_name(0) if torch.cuda.is_available() else f"CPU, {platform.machine()}"
        self.machine = {"device": device, "cores": os.cpu_count(), "cuda": torch.version.cuda, **versions()}
        self.machine["data"] = ("CIFAR-10 (JPEG copy)" if "jpeg" in root.name else root.name) if full else "Digits"
        self.pieces: dict[str, dict] = {}
        self.done: dict[str, dict] = {}
        own = self.out / RESULTS, self.work / RESULTS
        for path in (*own, *sorted(self.earlier.rglob("*.json"))):
            machine, pieces = read_results(path).values()
            same = (card := machine.get("device", device)) == device
            if path in own and not same:
                raise UserError(f"{path.parent}: has results of {card}, but this is {device}; give another folder")
            self.pieces |= pieces if path in own else {}
            current = same and machine.get("git") == self.machine["git"]
            for key, piece in pieces.items():  # times measured on another card do not count
                usable = current if key == TESTS else same or {"rows", "results"} & piece.keys()
                if usable and "error" not in piece:
                    self.done.setdefault(key, piece)
        for path in own:
            path.parent.mkdir(parents=True, exist_ok=True)

    def measure(self) -> None:
        """Measure everything: rows, then in the time they leave tests and steps, then rows with a second teacher."""
        rows, end = list(self.runs), list(self.runs).index(SECOND)
        for row in rows[:end]:
            self.train_row(row)
        tests = ["-m", "pytest", "-q", "--tb=short", *self.scale["tests"]]
        self.attempt(TESTS, self.longest(TESTS), partial(self.command, tests, TESTS))
        for flags in self.scale["steps"]:
            args = ["scripts/benchmark", "step", *flags.split(), "--json", str(self.work / "step.json")]
            self.attempt(f"{STEP} {flags}", self.longest(STEP), partial(self.command, args, STEP))
        for row in rows[end:]:
            self.train_row(row)

    def attempt(self, key: str, seconds: float, measure: Callable[[], dict]) -> None:
        """Call ``measure`` if ``key`` is not done and ``seconds`` remain; write the results immediately."""
        began = time.monotonic()
        if key in self.done:
            return
        if MARGIN * seconds > self.end - began:
            logger.info("%s: skipped, takes about %.0f s; %.0f s remain", key, MARGIN * seconds, self.end - began)
            return
        self.limit = min(self.end, began + LIMIT * seconds)
        try:
            piece = measure()
        except Exception as error:  # must not end the other measurements
            piece = {"error": f"{type(error).__name__}: {error}"}
        if "error" not in piece:
            self.done[key] = piece
        piece["seconds"] = round(time.monotonic() - began, 1)
        self.pieces[key] = piece
        logger.info("%s: %.0f s %s", key, piece["seconds"], piece.get("error", ""))
        for folder in (self.work, self.out):
            text = json.dumps({"machine": self.machine, "pieces": self.pieces}, indent=1)
            write_text(folder / RESULTS, text + "\n")
        for part in PARTS:
            if (self.work / part).exists() and self.work != self.out:
                shutil.copy(self.work / part, self.out)

    def longest(self, kind: str) -> float:
        """Seconds of the longest successful measurement so far whose name contains ``kind``, or the estimate."""
        measured = (piece["seconds"] for key, piece in self.pieces.items() if kind in key and "error" not in piece)
        return max(measured, default=self.scale["seconds"][kind])

    def command(self, args: Sequence[str], name: str, *, epochs: int = 0, results: Path | None = None) -> dict:
        """Run a command of the project; return it, the end of its log, and an "error" if it failed or was stopped.

        It is stopped when it cannot finish in time: at the limit, or as soon as the remaining ones of ``epochs`` epochs
        in ``results``, the results.csv of a training, would exceed the limit.
        """
        began, ends, log, error = time.monotonic(), [], self.work / f"{name}.txt", ""
        before = _count_epochs(results)  # of an earlier call; --resume continues after them
        process = start([sys.executable, *args], log, cwd=ROOT, start_new_session=True)
        try:
            while process.poll() is None and not error:
                time.sleep(0.1)
                now = time.monotonic()
                if _count_epochs(results) > before + len(ends):
                    ends.append(now - began)
                if now + (epochs - before - len(ends)) * _per_epoch(ends) > self.limit:
                    error = f"stopped after {now - began:.0f} s and {len(ends)} epochs: it would not finish in time"
        finally:
            with suppress(ProcessLookupError):  # it and its own processes have ended
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        if process.returncode and not error:
            error = f"status {process.returncode}: {last_line(log)}"
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
        piece = {"command": shlex.join(["python", *args]), "log": lines[-100 if error else -5 :]}
        piece |= {"first_epoch_seconds": ends[0], "epoch_seconds": _per_epoch(ends)} if ends else {}
        piece |= {"epochs": epochs, "rows": read_csv(results)} if results and results.exists() else {}
        if error:
            return piece | {"error": error}
        return piece | ({"benchmark": read_json(args[-1])} if name == STEP else {})

    def train_row(self, row: str) -> None:
        """Train and evaluate one row; skip it if its teacher does not exist."""
        run, evaluation, teacher = self.runs[row], f"{row} evaluation", self.weights()
        if not (teacher if row == TEACHER else run.folder.exists() or evaluation in self.done):
            for key in (row, evaluation):  # an earlier call trained it, but its checkpoints are on another machine
                self.done.pop(key, None)
        if row != TEACHER and not teacher:
            return
        args = [*run.commands[0], *(["--epochs", str(self.epochs)] if self.epochs else [])]
        args += ["--teacher_path", str(teacher)] if "--teacher_path" in args else []
        flags, estimates = dict(pairwise(args)), self.scale["seconds"]
        epochs, cost = int(flags["--epochs"]), COSTS.get(flags["--method"], 1.4)
        epoch = self.pieces.get(TEACHER, {}).get("epoch_seconds") or estimates[EPOCH]
        training = estimates[START] + (epochs - _count_epochs(run.folder / "results.csv")) * cost * epoch
        self.attempt(row, training + self.longest(EVALUATION), lambda: self.train(row, args, epochs))
        if row in self.done and row != SECOND:
            self.attempt(evaluation, self.longest(EVALUATION), partial(self.evaluate, row))

    def train(self, row: str, args: list[str], epochs: int) -> dict:
        """Train one row; for the teacher, also return the checksum of its saved weights."""
        folder = self.runs[row].folder
        piece = self.command(args, "training", epochs=epochs, results=folder / "results.csv")
        return piece | self.keep_teacher(folder / BEST_PGD10) if row == TEACHER and "error" not in piece else piece

    def evaluate(self, row: str) -> dict:
        """Evaluate the best checkpoint of a row, and the last one if it differs; return the attacks that finished."""
        run = self.runs[row]
        best, last = run.folder / BEST_PGD10, run.folder / LAST
        checkpoints = {"best": self.weights() if row == TEACHER else best}
        if last.exists() and not last.samefile(best):  # those of one epoch are one file
            checkpoints["last"] = last
        state = self.work / "state" / str(self.machine["git"])  # only the same code continues an evaluation
        args = [*run.commands[1], "--state", str(state), "--model_path", *map(str, checkpoints.values())]
        piece = self.command(args, "evaluation")
        paths = {kind: results_folder(path) / "eval.json" for kind, path in checkpoints.items()}
        found = {kind: read_evaluations(path)[-1]["figures"] for kind, path in paths.items() if path.exists()}
        return piece | {"results": found}

    def keep_teacher(self, checkpoint: Path) -> dict:
        """Write the teacher with convolutions and matrices in bfloat16, as one file and as two parts."""
        folder, metadata = self.work / TEACHER, Checkpoint(checkpoint).metadata
        network = load_network(metadata["model"], 10, checkpoint, metadata["image_size"])
        for parameter in network.parameters():
            if parameter.ndim > 1:
                parameter.data = parameter.data.bfloat16()
        save_folder(network, folder, metadata["model"], 10, metadata["image_size"])
        content = (folder / WEIGHTS).read_bytes()
        half = len(content) // 2
        for part, half_of_it in zip(PARTS, (content[:half], content[half:]), strict=True):
            (self.work / part).write_bytes(half_of_it)
        return {"sha256": hashlib.sha256(content).hexdigest(), "config": read_json(folder / CONFIG)}

    def weights(self) -> Path | None:
        """The teacher's file: written by this call, joined from the parts of an earlier call, or published."""
        path = self.work / TEACHER / WEIGHTS
        first = next(self.earlier.rglob(PARTS[0]), None)
        if first and not path.exists():
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(b"".join(first.with_name(part).read_bytes() for part in PARTS))
        published = ROOT / PUBLISHED / WEIGHTS
        usable = [path, published] if self.scale is SCALES["full"] else [path]
        return next((path for path in usable if path.exists()), None)


def _count_epochs(results: Path | None) -> int:
    return len(read_csv(results)) if results and results.exists() else 0


def _per_epoch(ends: Sequence[float]) -> float:
    """Mean seconds of the epochs after the first, which includes start-up; 0 before the second has ended."""
    return (ends[-1] - ends[0]) / (len(ends) - 1) if len(ends) > 1 else 0.0


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the running command ends, too
    run_command(lambda: gpu(sys.argv[1:]))
