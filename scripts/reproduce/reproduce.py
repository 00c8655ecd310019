"""Train and evaluate the rows of a table, and print our results next to the paper's.

python scripts/reproduce/reproduce.py --table IAD-2 --scale short --out runs/iad -- --data_root DIR

tables.csv lists every run, published.csv the papers' results. Flags after -- go to every training and evaluation. The
same command again continues: finished commands are skipped, interrupted trainings and evaluations resume.
"""

import hashlib
import shlex
import sys
from collections.abc import Collection, Iterator, Sequence
from fnmatch import fnmatch
from functools import partial
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # this file is run from its folder

from engine.checkpoint import best_checkpoint
from engine.evaluation.records import read_evaluations
from engine.reporting.runs import NONE
from engine.reporting.tables import mean_and_deviation
from engine.training.run_folder import RunFolder
from engine.training.settings import resolve
from scripts.tasks import STATUS, Pool, Task, check_seeds, split_flags
from utils.cli import ROOT, run_command
from utils.config import EvalConfig, TinyTrainConfig, TrainConfig
from utils.errors import UserError
from utils.files import write_text
from utils.flags import parse, parser_for
from utils.log import logger
from utils.tables import markdown_table, read_csv, text_table
from utils.versions import versions

ATTACKS = ("Clean", "FGSM", "PGD-20", "PGD-TRADES-20", "C&W-inf-30", "AutoAttack")
PUBLISHED = "published"  # the method of a teacher that others trained
KINDS = {"best_PGD10_acc_model_eval": "best", "last_epoch_model_eval": "last"}
DEFAULT_SEED = 42


def _table(name: str) -> list[dict[str, str]]:
    return read_csv(Path(__file__).with_name(f"{name}.csv"))


# Name -> flags of training and evaluation, further ones of distillations, the checkpoint that is evaluated (empty: best
# and last) and seeds. "scale NAME" -> flags of training and evaluation that a scale adds.
SETTINGS = {line["name"]: line for line in _table("settings")}
SCALES = ("full", "short", "smoke")


class Row(NamedTuple):
    """One line of tables.csv.

    A published teacher has its name as ``student``, the flags of its evaluation as ``flags``, and the source of its
    ``file`` as ``note``.
    """

    table: str
    row: str
    scale: str  # empty for a row of every scale
    setting: str  # one of SETTINGS
    dataset: str
    student: str
    method: str
    teacher: str  # this and the second teacher are rows of the same table
    second: str
    flags: str
    file: str
    note: str

    @property
    def suffix(self) -> str:
        """What the row's folder name ends with: the row's name without the method."""
        return self.row.removeprefix(self.method).strip("_")


def load_tables() -> dict[str, list[Row]]:
    """The rows of tables.csv by the name of their table."""
    rows = [Row(**line) for line in _table("tables")]
    return {name: [row for row in rows if row.table == name] for name in dict.fromkeys(row.table for row in rows)}


class Run(NamedTuple):
    """The commands of one row and seed, the folder of its evaluations, its weights, and the runs that come first."""

    name: str
    commands: list[list[str]]
    folder: Path
    weights: Path
    needs: list["Run"]


class Planner:
    """Turns rows into runs; runs with the same commands, also of several tables, become one.

    ``data`` are flags of every training and evaluation; raises UserError for one that either does not have.
    """

    def __init__(self, out: Path, scale: str, seeds: Sequence[int], teacher: str | None, data: Sequence[str]):
        self.out, self.scale, self.seeds, self.teacher, self.data = out, scale, seeds, teacher, list(data)
        for config_class in (TrainConfig, EvalConfig):
            parse(config_class, data)
        self.runs: dict[str, Run] = {}  # by their first command
        self.rows: dict[str, Row] = {}  # of the present table

    def plan(self, rows: Sequence[Row], patterns: Sequence[str]) -> dict[str, list[Run]]:
        """Add the runs of one table; return those of each row. Teachers are added as they are needed."""
        self.rows = {row.row: self._at_scale(row) for row in rows if row.scale in ("", self.scale)}
        teachers = {name for row in self.rows.values() for name in (row.teacher, row.second)}
        planned = {}
        for name, row in self.rows.items():
            if any(fnmatch(name, pattern) for pattern in patterns):
                seeds = self.seeds or SETTINGS[row.setting]["seeds"].split()
                planned[name] = [self._add(row, seed) for seed in ([DEFAULT_SEED] if name in teachers else seeds)]
        return planned

    def _at_scale(self, row: Row) -> Row:
        """Return the row at this scale: smaller ones replace published teachers, smoke also dataset and network."""
        if self.scale != "full" and row.method == PUBLISHED:
            row = row._replace(method="AT", student="resnet18", flags="", file="")
        return row._replace(dataset="Digits", student="small_resnet") if self.scale == "smoke" else row

    def _add(self, row: Row, seed: int | str) -> Run:
        teachers = [self.rows[name] for name in (row.teacher, row.second) if name]
        needs = [self._add(teacher, DEFAULT_SEED) for teacher in teachers]
        train, test = self._flags(row)
        tiny = row.dataset == "Tiny_Image"
        evaluate = "main_eval_tinyimagenet.py" if tiny else "main_eval.py"
        if row.method == PUBLISHED:
            folder, weights = self.out / PUBLISHED / row.student, self.published(row)
            commands = [[evaluate, "--model_path", str(weights), *test, *row.flags.split(), "--out", str(folder)]]
        else:
            for flag, teacher, run in zip(("teacher", "std_teacher"), teachers, needs, strict=False):
                train += [f"--{flag}_model", teacher.student, f"--{flag}_path", str(run.weights)]
            train += ["--method", row.method, "--model", row.student, "--seed", str(seed), *row.flags.split()]
            train += ["--root_path", str(self.out / row.setting), "--resume"]
            train += ["--desc_str", row.suffix] if row.suffix else []
            config, _ = resolve(*parse(TinyTrainConfig if tiny else TrainConfig, train))
            folder = RunFolder(config, writes=False).path
            weights = folder / best_checkpoint(row.method)
            commands = [["main_tiny.py" if tiny else "main.py", *train]]
            if row.row not in {other.second for other in self.rows.values()}:  # second teachers are not evaluated
                commands.append([evaluate, "--model_path", str(folder / SETTINGS[row.setting]["checkpoint"]), *test])
        run = Run(f"{row.table}_{row.row}_seed{seed}", commands, folder, weights, needs)
        return self.runs.setdefault(shlex.join(commands[0]), run)

    def _flags(self, row: Row) -> tuple[list[str], list[str]]:
        """Flags of a row's training and evaluation that the other rows of its setting share."""
        small = self.scale == "short" and row.setting != "paper"  # the settings for a CPU have no short scale
        setting, scale = SETTINGS[row.setting], SETTINGS["scale full" if small else f"scale {self.scale}"]
        distillation = setting["distillation"] if row.teacher else ""
        train = ["--dataset", row.dataset, *f"{setting['training']} {distillation} {scale['training']}".split()]
        test = ["--dataset", row.dataset, *f"{setting['evaluation']} {scale['evaluation']}".split()]
        return train + self.data, test + self.data

    def published(self, teacher: Row) -> Path:
        """Path of the weights of a teacher that others trained."""
        return Path(self.teacher or ROOT / teacher.file).absolute()


def carry_out(runs: Collection[Run], out: Path, jobs: int) -> bool:
    """Run the commands that have not succeeded before; return whether all have succeeded.

    ``out``/finished records the successful ones. A run waits for the first command of the runs in its ``needs``.
    """

    def mark(command: list[str]) -> Path:
        return out / "finished" / hashlib.sha256(shlex.join(command).encode()).hexdigest()[:16]

    def left(run: Run) -> list[list[str]]:
        return [command for command in run.commands if not mark(command).exists()]

    def can_start(run: Run) -> bool:
        return all(mark(need.commands[0]).exists() for need in run.needs)

    def ended(command: list[str], problem: str, _seconds: float) -> None:
        if not problem:
            write_text(mark(command), shlex.join(command) + "\n")

    def waiting() -> Iterator[Task]:
        for run in runs:
            if left(run) and can_start(run):
                command = left(run)[0]
                name, args = Path(command[0]).stem, [sys.executable, f"{ROOT}/{command[0]}", *command[1:]]
                if name.startswith("main_eval"):  # only the same code continues an unfinished evaluation
                    args += ["--state", str(out / "state" / (versions()["git"] or "unknown"))]
                log = out / "logs" / f"{run.name}_{name}.txt"
                yield Task(f"{run.name} {name}", args, log, partial(ended, command))

    (out / "finished").mkdir(parents=True, exist_ok=True)
    pool = Pool([[]] * jobs)
    pool.run(waiting)
    if pool.received:
        sys.exit(STATUS[pool.received])
    for run in runs:
        if not can_start(run):
            logger.error("%s: skipped, because its teacher failed", run.name)
    return not any(map(left, runs))


def reproduce(arguments: Sequence[str]) -> None:
    """Run a table's commands. Raises UserError for invalid flags; exits with status 1 if a run failed."""
    own, data = split_flags(arguments)
    options = _parser().parse_args(own)
    tables = load_tables()
    wanted = (options.table or "").lower()
    names = [name for name in tables if name.lower() == wanted or name.lower().startswith(f"{wanted}-")]
    if not names:
        raise UserError(f"--table {wanted}: must be one of {', '.join(tables)}; IAD-2 selects all IAD-2-...")
    out = Path(options.out or f"runs/{options.table}").absolute()
    if options.jobs < 1:
        raise UserError(f"--jobs {options.jobs}: must be at least 1")
    check_seeds(options.seeds)
    planner = Planner(out, options.scale, options.seeds, options.teacher, data)
    planned = {name: planner.plan(tables[name], options.rows) for name in names}
    rows = {row for table in planned.values() for row in table}
    if unknown := [pattern for pattern in options.rows if not any(fnmatch(row, pattern) for row in rows)]:
        raise UserError(f"--rows {' '.join(unknown)}: no such row in {', '.join(names)}")
    if options.list:
        for run in planner.runs.values():
            for command in run.commands:
                logger.info("%s", shlex.join(["python", *command]))
        return
    published = [row for name in names for row in tables[name] if row.method == PUBLISHED and options.scale == "full"]
    for path, row in ((planner.published(row), row) for row in published):
        if not path.exists():
            raise UserError(f"{path}: no such teacher; put it there or give --teacher FILE: {row.note}")
    succeeded = carry_out(planner.runs.values(), out, options.jobs)
    for name, rows in planned.items():
        show(name, {row: [run.folder for run in runs] for row, runs in rows.items()}, out, options.scale)
    if not succeeded:
        logger.error("some commands failed (see above); the same command continues")
        sys.exit(1)


def _parser():
    parser = parser_for(__doc__)
    parser.add_argument("--table", nargs="?", metavar="NAME", help="a table, or the first part of several names")
    parser.add_argument("--scale", choices=SCALES, default="full", help="size of the runs [default: full]")
    parser.add_argument("--rows", nargs="+", default=["*"], metavar="ROW", help="names or patterns; default: all")
    parser.add_argument("--seeds", nargs="+", type=int, default=[], metavar="N", help="seeds; default: of the table")
    parser.add_argument("--teacher", metavar="FILE", help="the published teacher; default: its path in tables.csv")
    parser.add_argument("--out", metavar="DIR", help="folder of everything; default: runs/TABLE")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="runs at once [default: 1]")
    parser.add_argument("--list", action="store_true", help="print the commands and end")
    return parser


def show(table: str, rows: dict[str, list[Path]], out: Path, scale: str) -> None:
    """Print the published and our results of a table, and write them to ``out``/``table``.md."""
    published = {line["row"]: line for line in _table("published") if line["table"] == table}
    lines, sizes = [], {}
    for row in dict.fromkeys([*published, *rows]):
        if row in published:
            lines.append([row, published[row]["source"], *(published[row][attack] or NONE for attack in ATTACKS)])
        results: dict[str, list[dict]] = {}
        for path in (path for folder in rows.get(row, ()) for path in sorted(folder.rglob("eval.json"))):
            kind = KINDS.get(path.parent.name, PUBLISHED)
            results.setdefault(kind, []).append(read_evaluations(path)[-1]["figures"])
        for kind, group in results.items():
            accuracies = ([one[attack]["accuracy"] for one in group if attack in one] for attack in ATTACKS)
            lines.append([row, f"ours, {kind} ({len(group)})", *map(mean_and_deviation, accuracies)])
            for attack in ATTACKS:
                sizes.setdefault(attack, set()).update(str(one[attack]["n"]) for one in group if attack in one)
    header = ["row", "results", *ATTACKS]
    images = ", ".join(f"{attack} {'/'.join(sorted(counts))}" for attack, counts in sizes.items() if counts)
    note = f"{table}: accuracy in %; ours at scale {scale}, test images: {images or NONE}"
    write_text(out / f"{table}.md", f"{markdown_table(header, lines)}\n\n{note}\n")
    logger.info("\n%s\n\n%s", text_table(header, lines), note)


if __name__ == "__main__":
    run_command(lambda: reproduce(sys.argv[1:]))
