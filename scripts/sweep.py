"""Train every combination of datasets, methods, networks and seeds:
  bash scripts/sweep.sh [options] [-- flags of main.py and main_tiny.py]

Finished runs are skipped, interrupted runs continue, and a failed run does not stop the others. The output of each run
is in DIR/logs/. SIGINT and SIGTERM reach the runs as SIGTERM, SIGUSR1 as itself; the sweep waits until they have saved
and starts no others. A student waits for earlier runs that train its teachers. The variable PYTHON sets the interpreter
[python]. Evaluations use the runs' flags for data, device and threads.

Exit status: 0 all runs are finished, 1 a run failed, 2 bad input. If runs are left and none failed: 130 after SIGINT,
143 after SIGTERM, 129 after SIGHUP, 75 otherwise; the same command continues.
"""

import os
import re
import shlex
import subprocess
import sys
import zlib
from argparse import Namespace
from itertools import product
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # this file is run from its folder

from scripts.tasks import STATUS, UNFINISHED, Pool, Task, split_flags
from utils.cli import ROOT, run_command
from utils.config import EvalConfig, TinyEvalConfig, TinyTrainConfig, TrainConfig
from utils.errors import UserError
from utils.flags import parse, parser_for
from utils.log import logger

LISTED = ("dataset", "method", "model", "seed")  # flags of a run, set from the lists --datasets, --methods, ...
REPEATED = ("data_root", "image_size", "cache_dir", "skip_damaged", "max_pixels", "device", "gpu_id", "threads")


class Run:
    """One combination: its training and evaluation commands; raises UserError for an invalid flag.

    ``problem`` says why its training or evaluation did not finish; ``trained`` is set after a training of this sweep.
    """

    def __init__(self, names: tuple[str, ...], options: Namespace, threads: list[str], flags: list[str]):
        python, folder = os.environ.get("PYTHON") or sys.executable, "" if Path.cwd() == ROOT else f"{ROOT}/"
        self.title, tiny = "{} {} {} seed {}".format(*names), "tiny" in names[0].lower()
        argv = [arg for name, value in zip(LISTED, names, strict=True) for arg in (f"--{name}", value)]
        argv += ["--root_path", options.root_path, "--resume", *threads, *flags]
        self.train = [python, folder + ("main_tiny.py" if tiny else "main.py"), *argv]
        self.parsed = parse(TinyTrainConfig if tiny else TrainConfig, argv)
        values = {f"--{key}": getattr(self.parsed.config, key) for key in REPEATED if key in self.parsed.given}
        argv = [flag if value is True else f"{flag}={value}" for flag, value in values.items() if value]
        argv += shlex.split(options.eval)
        self.evaluate = [python, folder + ("main_eval_tinyimagenet.py" if tiny else "main_eval.py"), *argv]
        self.eval_config = parse(TinyEvalConfig if tiny else EvalConfig, argv).config
        self.evaluates, self.trained, self.problem = bool(options.eval), False, ""
        self.teachers: list[Run] = []  # earlier runs that train its teachers
        # The number identifies the flags after --: sweeps with different flags may share DIR.
        name = f"{self.title.translate(str.maketrans(' /:', '___'))}_{zlib.crc32(shlex.join(flags).encode())}"
        self.log = Path(options.root_path, "logs", f"{name}.log")
        self.evaluated = self.log.with_name(f"{name}_{zlib.crc32(options.eval.encode())}.evaluated")

    def next_task(self) -> Task | None:
        """Return the training, after those of its teachers; then the evaluation, unless it is up to date."""
        if self.problem or not all(teacher.trained for teacher in self.teachers):
            return None
        if not self.trained:
            return Task(self.title, self.train, self.log, self._ended)
        if not self.evaluates or self._is_evaluated():
            return None
        return Task(f"{self.title}, evaluation", self.evaluate, self.log, self._ended)

    def _is_evaluated(self) -> bool:
        last, marker = self.folder / "last_epoch_model.pth", self.evaluated
        if not marker.exists() or not any(self.folder.rglob("eval.json")):
            return False
        return not (last.exists() and last.stat().st_mtime >= marker.stat().st_mtime)

    def _ended(self, problem: str, _seconds: float) -> None:
        if problem:
            self.problem = problem
        elif self.trained:
            self.evaluated.touch()
        self.trained = self.trained or not problem


def read_options(argv: list[str]) -> Namespace:
    """The options before ``--``."""
    for k in reversed(range(1, len(argv))):
        if argv[k - 1] == "--eval":  # its value looks like a flag
            argv[k - 1 : k + 1] = [f"--eval={argv[k]}"]
    parser = parser_for(__doc__)
    parser.add_argument("--datasets", default="CIFAR10", help="datasets; Tiny_Image uses main_tiny.py [CIFAR10]")
    parser.add_argument("--methods", default="AT", help='methods, separated by spaces: "AT DGAD" [AT]')
    parser.add_argument("--models", default="resnet18", help="students [resnet18]")
    parser.add_argument("--seeds", default="42", help='random seeds: "1 2" [42]')
    parser.add_argument("--root_path", default="tuned_models", metavar="DIR", help="folder of all runs [tuned_models]")
    parser.add_argument("--jobs", type=int, metavar="N", help="runs at a time; they share the cores [1, or all --gpus]")
    parser.add_argument("--gpus", default="", help='run on one of these GPUs each, as --gpu_id: "0 1"')
    parser.add_argument("--eval", default="", metavar="FLAGS", help="evaluate each finished run with these flags")
    parser.add_argument("--list", action="store_true", help="print every run as one command, then exit")
    parser.add_argument("--only", type=int, metavar="I", help="only run I of that list, counted from 0")
    return parser.parse_args(argv)


def make_runs(options: Namespace, flags: list[str]) -> tuple[list[Run], list[list[str]]]:
    """The runs, and the flags of each of those that are executed at a time; ``flags`` are those after ``--``."""
    gpus, lists = options.gpus.split(), [getattr(options, f"{name}s").split() for name in LISTED]
    given = parse(TrainConfig, flags).given
    for name in (*LISTED, "root_path", *["gpu_id"] * bool(gpus)):
        if given.get(name) == "flag":  # a value of --config FILE is overridden
            raise UserError(f"--{name} after --: the sweep sets it; an option before -- chooses it")
    try:
        evaluation = parse(EvalConfig, shlex.split(options.eval)).given
    except ValueError as error:  # of shlex
        raise UserError(f"--eval {options.eval}: {error}") from error
    for name in {"model_path", "out"} & evaluation.keys():
        raise UserError(f"--eval --{name}: the sweep evaluates its own runs, in their folders; remove it")
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
    slots = [["--gpu_id", gpus[k % len(gpus)]] if gpus else [] for k in range(jobs)]
    for slot in slots:
        parse(TrainConfig, slot)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    threads = ["--threads", str(max(1, cores // jobs))] if jobs > 1 else []
    return [Run(names, options, threads, flags) for names in chosen], slots


def resolve_runs(runs: list[Run]) -> None:
    """Set each run's config and folder; raises UserError for unknown names and missing teachers, data or packages."""
    from data import load_configured  # these import torch, which --list does not need
    from engine.evaluation.run import select_attacks
    from engine.networks import find_teachers
    from engine.training.run_folder import RunFolder
    from engine.training.settings import resolve
    from methods import count_teachers

    folders: dict[Path, Run] = {}
    for run in runs:
        config, _ = resolve(*run.parsed)
        count = count_teachers(config.method)
        run.config = config
        run.folder = RunFolder(config, writes=False).path
        run.evaluate += ["--model_path", str(run.folder)]
        if run.folder.absolute() in folders:
            raise UserError(f"{run.title}: is listed twice; remove one")
        paths = [
            Path(path).absolute().parent for path in (config.teacher_path, config.std_teacher_path)[:count] if path
        ]
        run.teachers = [folders[path] for path in paths if path in folders]
        if not run.teachers:
            find_teachers(config)
        folders[run.folder.absolute()] = run
    if runs[0].evaluates:  # reads data, after all other checks
        select_attacks(runs[0].eval_config)
        for run in {run.config.dataset: run for run in runs}.values():
            select_attacks(run.eval_config, len(load_configured(run.config).classes))


def execute(runs: list[Run], pool: Pool) -> int:
    """Train and evaluate; return the exit status."""
    tables = {run: run.folder / "results.csv" for run in runs}
    rows = {run: len(path.read_bytes().splitlines()) - 1 for run, path in tables.items() if path.exists()}
    before = {run for run in rows if rows[run] >= run.config.epochs}
    pool.run(lambda: filter(None, [run.next_task() for run in runs]))
    done = {run for run in runs if run.trained and not (run.problem or run.next_task())}
    failed = sum(run.problem not in ("", UNFINISHED) for run in runs)
    left = len(runs) - len(done) - failed
    line = "runs: %d finished, %d skipped (finished before), %d failed, %d left to do"
    logger.info(line, len(done - before), len(done & before), failed, left)
    return 1 if failed else STATUS.get(pool.received, 75) if left else 0


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
    own, flags = split_flags(argv)
    options = read_options(own)
    try:
        runs, slots = make_runs(options, flags)
        if options.list:
            logger.info("%s", "\n".join(shlex.join(run.train) for run in runs))
            return 0
        resolve_runs(runs)
    except UserError as error:
        raise UserError(re.sub(rf"^--({'|'.join(LISTED)})\b(?! after)", r"--\1s", str(error))) from error
    pool = Pool(slots)
    status = execute(runs, pool)
    if options.only is None and not pool.received:
        compare(runs, Path(options.root_path, "comparison"))
    return status


if __name__ == "__main__":
    run_command(lambda: sys.exit(sweep(sys.argv[1:])))
