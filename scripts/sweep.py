"""Train every combination of datasets, methods, networks and seeds:
  bash scripts/sweep.sh [options] [-- flags of main.py and main_tiny.py]

Finished runs are skipped, interrupted runs continue, and a failed run does not stop the others. The output of each run
is in DIR/logs/. SIGINT and SIGTERM reach the runs as SIGTERM, SIGUSR1 as itself; the sweep waits until they have saved
and starts no others. PYTHON names the interpreter [the activated environment's, except conda's base; else .venv's;
else python]. Names, flags, data and teachers of all runs and the attacks of --eval are checked before the first run
starts. Evaluations repeat the runs' --data_root, --image_size, --device, --gpu_id and --threads.

Exit status: 0 all runs are finished, 1 a run failed, 2 bad input. If runs are left and none failed: 130 after SIGINT,
143 after SIGTERM, 129 after SIGHUP, 75 otherwise; the same command continues.
"""

import csv
import os
import re
import shlex
import signal
import subprocess
import sys
import time
import zlib
from argparse import Namespace
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial
from itertools import product
from pathlib import Path
from queue import SimpleQueue
from threading import Lock

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # this file is run from its folder

from utils.cli import ROOT, run_command
from utils.config import EvalConfig, TinyEvalConfig, TinyTrainConfig, TrainConfig
from utils.errors import UserError
from utils.flags import parse, parser_for
from utils.log import logger

read_flags = partial(parse, description="", choices={})
STATUS = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGHUP: 129, signal.SIGUSR1: 75}
LISTED = ("dataset", "method", "model", "seed")  # flags of a run, set from the lists --datasets, --methods, ...
REPEATED = ("data_root", "image_size", "device", "gpu_id", "threads")  # by the evaluation of a run
FINISHED, SKIPPED, UNFINISHED = "finished", "finished before", "unfinished; the same command continues it"


class Run:
    """One combination: its training and evaluation commands; raises UserError for an invalid flag."""

    def __init__(self, names: tuple[str, ...], options: Namespace, threads: list[str], flags: list[str]):
        python, folder = os.environ.get("PYTHON", sys.executable), "" if Path.cwd() == ROOT else f"{ROOT}/"
        self.title, tiny = "{} {} {} seed {}".format(*names), "tiny" in names[0].lower()
        argv = [arg for name, value in zip(LISTED, names, strict=True) for arg in (f"--{name}", value)]
        argv += ["--root_path", options.root_path, "--resume", *threads, *flags]
        self.train = [python, folder + ("main_tiny.py" if tiny else "main.py"), *argv]
        self.parsed = read_flags(TinyTrainConfig if tiny else TrainConfig, argv)
        values = {key: getattr(self.parsed.config, key) for key in REPEATED if key in self.parsed.given}
        argv = [arg for key, value in values.items() if value is not None for arg in (f"--{key}", str(value))]
        argv += shlex.split(options.eval)
        self.evaluate = [python, folder + ("main_eval_tinyimagenet.py" if tiny else "main_eval.py"), *argv]
        self.eval_config = read_flags(TinyEvalConfig if tiny else EvalConfig, argv).config
        # The number identifies the flags after --: sweeps with different flags may share DIR.
        name = f"{self.title.translate(str.maketrans(' /:', '___'))}_{zlib.crc32(shlex.join(flags).encode())}"
        self.log = Path(options.root_path, "logs", f"{name}.log")
        self.evaluated = self.log.with_name(f"{name}_{zlib.crc32(options.eval.encode())}.evaluated")

    def complete(self) -> bool:
        """Whether results.csv has the last epoch."""
        try:
            with open(self.folder / "results.csv", newline="", encoding="utf-8") as file:
                return max(int(row["epoch"]) + 1 for row in csv.DictReader(file)) >= self.config.epochs
        except (OSError, ValueError, KeyError):
            return False

    def needs_evaluation(self) -> bool:
        """Whether it has been trained since its evaluation with these flags."""
        last = self.folder / "last_epoch_model.pth"
        return not (self.evaluated.exists() and self.evaluated.stat().st_mtime > last.stat().st_mtime)


class Sweep:
    """Executes runs, ``jobs`` at a time and one per GPU; after a signal it waits until the runs have saved."""

    def __init__(self, jobs: int, gpus: list[str], evaluates: bool):
        self.jobs, self.evaluates, self.gpus = jobs, evaluates, SimpleQueue()
        for k in range(jobs):
            self.gpus.put(["--gpu_id", gpus[k % len(gpus)]] if gpus else [])
        self.processes, self.lock, self.received = set(), Lock(), None

    def stop(self, number: int, _frame) -> None:
        """Signal handler. Only the first signal is passed on: a run that is saving must not receive another."""
        if not self.received:
            self.received = number
            logger.info("stopping: waiting until the runs have saved")
            with self.lock:
                for process in self.processes:
                    process.send_signal(number if number == signal.SIGUSR1 else signal.SIGTERM)

    def execute(self, runs: list[Run]) -> int:
        """Train and evaluate; return the exit status."""
        for number in STATUS:
            if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:  # nohup ignores it
                signal.signal(number, self.stop)
        with ThreadPoolExecutor(self.jobs) as pool:
            outcomes = list(pool.map(self._execute, runs))
        failed = sum("failed" in outcome for outcome in outcomes)
        finished, skipped, left = (outcomes.count(outcome) for outcome in (FINISHED, SKIPPED, UNFINISHED))
        line = "runs: %d finished, %d skipped (finished before), %d failed, %d left to do"
        logger.info(line, finished, skipped, failed, left)
        return 1 if failed else STATUS.get(self.received, 75) if left else 0

    def _execute(self, run: Run) -> str:
        """Train and evaluate one run; return its outcome."""
        if self.received:
            return UNFINISHED
        gpu, before = self.gpus.get(), run.complete()
        if not before:
            logger.info("%s: started, log %s", run.title, run.log)
        outcome = self._call(run.train + gpu, run.log, "failed") or (SKIPPED if before else FINISHED)
        if self.evaluates and outcome in (FINISHED, SKIPPED) and run.needs_evaluation():
            failure = self._call(run.evaluate + gpu, run.log, "evaluation failed")
            if not failure:
                run.evaluated.touch()
            outcome = failure or outcome
        logger.info("%s: %s", run.title, outcome)
        self.gpus.put(gpu)
        return outcome

    def _call(self, command: list[str], log: Path, failed: str) -> str | None:
        """Execute a command, append its output to ``log``, and return the outcome if it is not a success."""
        with self.lock, open(log, "a", encoding="utf-8", errors="surrogateescape") as file:
            if self.received:
                return UNFINISHED
            print(time.strftime("%F %T"), shlex.join(command), file=file, flush=True)
            # In a separate session, so that Ctrl-C reaches it only from here, once.
            streams = {"stdin": subprocess.DEVNULL, "stdout": file, "stderr": subprocess.STDOUT}
            process = subprocess.Popen(command, **streams, start_new_session=True)
            self.processes.add(process)
        status = process.wait()
        with self.lock:
            self.processes.remove(process)
        status = 128 - status if status < 0 else status
        if status in (75, 130, 143) or (status > 128 and self.received):
            return UNFINISHED
        last = log.read_text(encoding="utf-8", errors="replace").splitlines()[-1]
        return f"{failed} (status {status}): {last} (log {log})" if status else None


def read_options(argv: list[str]) -> Namespace:
    """The options before ``--``."""
    for k in reversed(range(1, len(argv))):
        if argv[k - 1] == "--eval":  # its value looks like a flag
            argv[k - 1 : k + 1] = [f"--eval={argv[k]}"]
    parser = parser_for(__doc__)
    parser.add_argument("--datasets", default="CIFAR10", help="names; Tiny_Image uses main_tiny.py [CIFAR10]")
    parser.add_argument("--methods", default="AT", help='names separated by spaces, "AT DGAD" [AT]')
    parser.add_argument("--models", default="resnet18", help="names of students [resnet18]")
    parser.add_argument("--seeds", default="42", help='numbers separated by spaces, "1 2" [42]')
    parser.add_argument("--root_path", default="tuned_models", metavar="DIR", help="folder of all runs [tuned_models]")
    parser.add_argument("--jobs", type=int, metavar="N", help="runs at a time; they share the cores [1, or all --gpus]")
    parser.add_argument("--gpus", default="", help='"0 1": each run uses one of these GPUs, as --gpu_id')
    parser.add_argument("--eval", default="", metavar="FLAGS", help="evaluate each finished run with these flags")
    parser.add_argument("--list", action="store_true", help="print every run as one command, then exit")
    parser.add_argument("--only", type=int, metavar="I", help="only run I of that list, counted from 0")
    return parser.parse_args(argv)


def make_runs(options: Namespace, flags: list[str]) -> tuple[list[Run], int]:
    """The runs, and how many are executed at a time; ``flags`` are those after ``--``."""
    gpus, lists = options.gpus.split(), [getattr(options, f"{name}s").split() for name in LISTED]
    given = read_flags(TrainConfig, flags).given
    for name in (*LISTED, "root_path", *["gpu_id"] * bool(gpus)):
        if given.get(name) == "flag":  # a value of --config FILE is overridden
            raise UserError(f"--{name} after --: the sweep sets it; an option before -- chooses it")
    try:
        evaluation = read_flags(EvalConfig, shlex.split(options.eval)).given
    except ValueError as error:  # of shlex
        raise UserError(f"--eval {options.eval}: {error}") from error
    for name in {"model_path", "out"} & evaluation.keys():
        raise UserError(f"--eval --{name}: the sweep evaluates its own runs, in their folders; remove it")
    for gpu in gpus:
        read_flags(TrainConfig, ["--gpu_id", gpu])
    chosen = list(product(*lists))
    if not chosen:
        raise UserError("no runs: --datasets, --methods, --models or --seeds is empty")
    if options.jobs is not None and options.jobs < 1:
        raise UserError(f"--jobs {options.jobs}: must be at least 1")
    if options.only is not None:
        if not 0 <= options.only < len(chosen):
            raise UserError(f"--only {options.only}: the runs are numbered 0 to {len(chosen) - 1}")
        chosen = [chosen[options.only]]
    jobs = min(options.jobs or len(gpus) or 1, len(chosen))
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    threads = ["--threads", str(max(1, cores // jobs))] if jobs > 1 else []
    return [Run(names, options, threads, flags) for names in chosen], jobs


def resolve_runs(runs: list[Run], evaluates: bool) -> None:
    """Set each run's config and folder; raises UserError for an unknown name and what a run or evaluation misses."""
    from data import load  # these import torch, which --list does not need
    from engine.evaluation.run import select_attacks
    from engine.networks import find_teachers
    from engine.training.run_folder import RunFolder
    from engine.training.settings import resolve
    from methods import WITHOUT_TEACHER

    folders = []
    for run in runs:
        config, _ = resolve(*run.parsed)
        teacher = None if config.method in WITHOUT_TEACHER else config.teacher_model
        run.config, run.folder = config, RunFolder(config, teacher=teacher, writes=False).path
        run.evaluate += ["--model_path", str(run.folder)]
        if run.folder in folders:
            raise UserError(f"{run.title}: is listed twice; remove one")
        paths = [Path(path).parent for path in (config.teacher_path, config.std_teacher_path) if path]
        if not set(folders).intersection(paths):  # else an earlier run trains the teacher
            find_teachers(config)
        folders.append(run.folder)
        if evaluates:
            select_attacks(run.eval_config)
    count_classes = cache(lambda name, root, size: len(load(name, root, image_size=size).classes))
    for run in runs if evaluates else ():  # reads data, after all other checks
        config = run.config
        select_attacks(run.eval_config, count_classes(config.dataset, config.data_root, config.image_size))


def compare(runs: list[Run], out: Path) -> None:
    """Print the table of all evaluations of these runs."""
    folders = [str(run.folder) for run in runs if any(run.folder.rglob("eval.json"))]
    if not folders:
        logger.info('no table: no run is evaluated yet; --eval "FLAGS" evaluates them')
        return
    command = [runs[0].train[0], f"{ROOT}/scripts/compare.py", *folders, "--out", str(out)]
    subprocess.run([*command, "--protocol", runs[0].eval_config.protocol])


def sweep(argv: list[str]) -> int:
    """List or execute the runs of a command line; return the exit status."""
    end = argv.index("--") if "--" in argv else len(argv)
    options = read_options(argv[:end])
    try:
        runs, jobs = make_runs(options, argv[end + 1 :])
        if options.list:
            logger.info("%s", "\n".join(shlex.join(run.train) for run in runs))
            return 0
        resolve_runs(runs, bool(options.eval))
    except UserError as error:
        raise UserError(re.sub(rf"^--({'|'.join(LISTED)})\b(?! after)", r"--\1s", str(error))) from error
    Path(options.root_path, "logs").mkdir(parents=True, exist_ok=True)
    execution = Sweep(jobs, options.gpus.split(), bool(options.eval))
    status = execution.execute(runs)
    if options.only is None and not execution.received:
        compare(runs, Path(options.root_path, "comparison"))
    return status


if __name__ == "__main__":
    run_command(lambda: sys.exit(sweep(sys.argv[1:])))
