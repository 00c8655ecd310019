"""What a training run leaves on the disk, and where."""

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, fields
from pathlib import Path

from engine.checkpoint import LAST, STATES, load_checkpoint, save_checkpoint
from engine.training.loggers import Loggers
from engine.training.metrics import ALPHA_BINS, EMPTY
from engine.unused_fields import unused_fields
from utils.config import TrainConfig
from utils.errors import UserError
from utils.files import PARTIAL, require_writable, write_text
from utils.flags import spelling
from utils.log import logger
from utils.plots import save_curves, save_reliability
from utils.tables import write_csv

# One row per epoch, counted from 0. Means over images; accuracies in percent, empty where the method has no such
# logits. train_* are of the student in train mode during the epoch; the last four are of the student after it, on the
# images that choose the best checkpoint.
COLUMNS = (
    *("epoch", "lr", "train_loss", "train_clean_acc", "train_adv_acc"),
    *("clean_loss", "clean_acc", "PGD10_loss", "PGD10_acc"),
)
# With --log_reliability a row per epoch too: images counted, how often the teacher is right on them, in percent, and
# how many have an alpha of at least so much and less than the next; empty where the method has no such logits.
RELIABILITY_COLUMNS = ("epoch", "n", "teacher_clean_acc", "teacher_adv_acc")
ALPHA_COLUMNS = tuple(f"alpha_{number / ALPHA_BINS:.2f}" for number in range(ALPHA_BINS))
CURVES = "curves.png"
LONGEST_NAME = 200  # bytes; file systems take 255 and the files in the folder add theirs
STATE_NAME = "{:04d}-{:06d}.pth"  # finished epochs, finished batches of the next
STATES_KEPT = 2
STATE_KEYS = {"net", "optimizer", "epochs", "metrics", "rows", "config", "classes", "images", "teachers"}


class RunFolder:
    """``<root_path>/<dataset>/<method>/<name>/`` of one run; nothing is written before :meth:`create`.

    With ``writes`` False, as on all ranks but rank 0, it follows the run without touching the disk. Raises UserError
    where a file cannot be written, and at once where the package of a logger is missing.
    """

    def __init__(self, config: TrainConfig, *, teacher: str | None, writes: bool = True):
        self.config, self.writes = config, writes
        parts = [config.model, teacher and f"from_{teacher}", config.method != "Natural" and f"eps{config.epsilon:g}"]
        name = "_".join(filter(None, [*parts, f"seed{config.seed}", config.desc_str]))
        name = name.replace(os.sep, "-").replace(":", "-")
        if len(name.encode()) > LONGEST_NAME:
            raise UserError(f"--desc_str {config.desc_str[:20]}...: makes the folder's name too long; shorten it")
        self.path = Path(config.root_path) / config.dataset / config.method / name
        self.loggers = Loggers(config)
        self.rows: list[dict] = []
        self.reliability: list[dict] = []

    def last_state(self) -> dict | None:
        """State to resume from, or None where the run starts anew.

        Raises UserError when the folder cannot be made, when it holds a run and ``--resume`` was not given, when none
        of its states can be read, or when that run had other settings.
        """
        self._require_writable()
        self._seen = self._states()
        if not self._seen and not (self.path / LAST).exists():
            return None
        if not self.config.resume:
            raise UserError(f"{self.path}: holds a run already; --resume continues it, --desc_str NAME starts another")
        state = self._newest_state()
        ours, theirs = config_fingerprint(self.config), state["config"]
        if ours["milestones"] is None:
            ours["milestones"] = theirs["milestones"]  # more epochs move no milestone that was not asked for
        flags = {spec.name: spelling(spec) for spec in fields(self.config)}
        heeded = ours.keys() - unused_fields(self.config)
        changes = [
            f"{flags[key]} {_shown(theirs.get(key))} -> {_shown(ours[key])}"
            for key in ours
            if key in heeded and ours[key] != theirs.get(key)
        ]
        if changes:
            raise UserError(
                f"--resume: {self.path} has a run with other settings ({', '.join(changes)}); "
                "--desc_str NAME starts another"
            )
        return state

    def require_same(self, state: dict, metadata: dict) -> None:
        """Raise UserError where the run of ``state`` had other images, classes or teachers; warn of other precision."""
        for key in ("classes", "images", "teachers"):
            if state[key] != metadata[key]:
                raise UserError(
                    f"--resume: {self.path} was trained with other {key}; --desc_str NAME starts another run"
                )
        if state.get("arithmetic") != metadata["arithmetic"]:
            before = state.get("arithmetic")
            logger.warning("--resume: the run computed in %s so far, and goes on in %s", before, metadata["arithmetic"])

    def restore(self, state: dict) -> None:
        """Take over the rows of ``state``."""
        self.rows, self.reliability = state["rows"], state.get("reliability", [])

    @property
    def finalized(self) -> bool:
        """Whether the pictures of all epochs are drawn."""
        return (self.path / CURVES).exists()

    def create(self, state: dict | None) -> None:
        """Make the folder, take it for this process to go on from ``state``, and write config.json.

        Raises UserError where that cannot be, or where another process trains there, or did since ``state`` was read.
        """
        if not self.writes:
            return
        with self._writing(self.path):
            self._take()
            if self._states() != self._seen:
                raise UserError(f"{self.path}: another run was training there just now; the same command again")
            for rest in (*self.path.glob(f"{PARTIAL}*"), *(self.path / STATES).glob(f"{PARTIAL}*")):
                rest.unlink()  # of a process that was killed while it saved
            for newer in self._states():  # passed over, for they could not be read
                if state is None or _place(newer) > (state["epochs"], state["metrics"]["batches"]):
                    newer.rename(newer.with_suffix(".bad"))
            write_text(self.path / "config.json", json.dumps(asdict(self.config), indent=2) + "\n")
        self.loggers.open(self.path, self.rows)

    def _take(self) -> None:
        """Make the folder and lock it while this object lives; follow no link, for it may come from elsewhere."""
        states, lock = self.path / STATES, self.path / ".lock"
        if states.is_symlink():
            raise UserError(f"{states}: a link, and checkpoints would be written where it points; remove it")
        states.mkdir(parents=True, exist_ok=True)
        self._lock = os.fdopen(os.open(lock, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW), "w")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(
                f"{self.path}: another run is training there; --desc_str NAME starts one beside it"
            ) from error

    def add_row(self, values: dict) -> None:
        """Append one epoch to results.csv, and tell the loggers."""
        self.rows.append({key: values[key] for key in COLUMNS})
        self._write_rows("results.csv", self.rows)
        if self.writes:
            (self.path / CURVES).unlink(missing_ok=True)  # of fewer epochs
        self.loggers.add(self.rows[-1])

    def add_reliability(self, values: dict) -> None:
        """Append one epoch to reliability.csv; ``values`` are the epoch and the fields of Reliability."""
        alpha = values["alpha"] or [None] * ALPHA_BINS
        cells = (*(values[key] for key in ("epoch", "n", "clean_acc", "adv_acc")), *alpha)
        self.reliability.append(dict(zip((*RELIABILITY_COLUMNS, *ALPHA_COLUMNS), cells, strict=True)))
        self._write_rows("reliability.csv", self.reliability)

    def _write_rows(self, name: str, rows: list[dict]) -> None:
        if self.writes:
            table = [[_plain(value) for value in row.values()] for row in rows]
            with self._writing(self.path / name):
                write_csv(self.path / name, rows[0].keys(), table)

    def best(self, figure: str) -> dict:
        """The first row with the highest ``figure``."""
        return max(self.rows, key=lambda row: row[figure])

    def save(self, name: str, content: dict) -> None:
        """Write one checkpoint."""
        if self.writes:
            with self._writing(self.path / name):
                save_checkpoint(self.path / name, content)

    def save_state(self, content: dict) -> None:
        """Write all that resuming needs: ``content`` has ``net``, ``optimizer``, ``epochs`` and ``metrics``.

        The newest states are kept, so that one that a fault of the disk spoils does not end the run.
        """
        state = content | {
            "rows": self.rows,
            "reliability": self.reliability,
            "config": config_fingerprint(self.config),
        }
        self.save(f"{STATES}/{_state_name(state)}", state)
        if self.writes:
            for old in self._states()[STATES_KEPT:]:
                old.unlink()

    def draw(self) -> None:
        """Write curves.png from the rows so far, and reliability.png where the teacher was watched."""
        if self.config.log_reliability:
            self._draw_reliability()
        with self._writing(self.path / CURVES):
            save_curves(self.rows, self.path / CURVES)

    def _draw_reliability(self) -> None:
        if all(row[key] is None for row in self.reliability for key in RELIABILITY_COLUMNS[2:]):
            logger.warning("no reliability.png: %s returns no logits of its teacher in a Step", self.config.method)
            return
        with self._writing(self.path / "reliability.png"):
            save_reliability(self.reliability, ALPHA_COLUMNS, self.path / "reliability.png")

    def last_good(self) -> str:
        """Words that name the newest checkpoint to go on from."""
        states = self._states()
        return f"the last good checkpoint is {states[0]}" if states else "no checkpoint was saved before"

    def _states(self) -> list[Path]:
        """Files to resume from, the newest first: their names tell the order, whatever the clock did."""
        return sorted((self.path / STATES).glob("[0-9]*-[0-9]*.pth"), key=_place, reverse=True)

    def _newest_state(self) -> dict:
        if not self._seen:
            raise UserError(f"{self.path}: its folder {STATES}/ is empty; --desc_str NAME starts another run beside it")
        for path in self._seen:
            try:
                state = load_checkpoint(path)
                _require_sound(path, state)
                return state
            except UserError as error:
                logger.warning("%s; trying the one before", error)
        raise UserError(f"{self._seen[0]}: cannot be read, nor can any before; --desc_str NAME starts another run")

    @contextmanager
    def _writing(self, path: Path) -> Iterator[None]:
        try:
            yield
        except (OSError, RuntimeError) as error:  # torch reports a full disk as RuntimeError
            reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
            raise UserError(f"{path}: cannot be written ({reason}); --resume continues the run") from error

    def _require_writable(self) -> None:
        try:
            require_writable(self.path)
        except OSError as error:
            raise UserError(f"--root_path {self.config.root_path}: cannot write there ({error.strerror})") from error


def config_fingerprint(config: TrainConfig) -> dict:
    """The settings that decide a run's result; where and on what it runs are not among them.

    The number of epochs is one only where the learning rate of every epoch depends on it.
    """
    kept = [spec.name for spec in fields(config) if spec.metadata["affects_result"]]
    values = {name: getattr(config, name) for name in kept if name != "epochs" or config.lr_schedule == "cosine"}
    return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}


def _require_sound(path: Path, state: dict) -> None:
    """Raise UserError for a checkpoint that no run of ours left to resume from."""
    kinds = {"net": dict, "optimizer": dict, "epochs": int, "metrics": dict, "rows": list, "config": dict}
    sound = isinstance(state, dict) and state.keys() >= STATE_KEYS
    sound = sound and all(isinstance(state[key], kind) for key, kind in kinds.items())
    sound = sound and 0 <= state["epochs"] == len(state["rows"]) and _counts(state["metrics"])
    sound = sound and isinstance(state.get("reliability", []), list)
    if not (sound and all(isinstance(row, dict) and row.keys() == set(COLUMNS) for row in state["rows"])):
        raise UserError(f"{path}: not a state of a run")


def _counts(metrics: dict) -> bool:
    kinds = {"batches": int, "images": int, "loss": float, "clean": int | None, "adv": int | None}
    return metrics.keys() >= EMPTY.keys() and all(isinstance(metrics[key], kind) for key, kind in kinds.items())


def _place(state: Path) -> tuple[int, ...]:
    """Finished epochs and batches of a state, as its name has them."""
    return tuple(int(number) for number in state.stem.split("-") if number.isdecimal())


def _state_name(state: dict) -> str:
    return STATE_NAME.format(state["epochs"], state["metrics"]["batches"])


def _shown(value) -> str:
    """A setting as a flag has it."""
    if value is None:
        return "not given"
    return " ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _plain(value) -> str:
    return "" if value is None else f"{value:.6g}" if isinstance(value, float) else str(value)
