"""What a training run leaves on the disk, and where."""

import fcntl
import json
import os
from dataclasses import asdict, fields
from pathlib import Path

from engine.checkpoint import load_checkpoint, save_checkpoint
from utils.config import TrainConfig
from utils.errors import UserError
from utils.files import write_text
from utils.flags import spelling
from utils.plots import save_curves
from utils.report import write_csv

BEST_PGD10, BEST_CLEAN, LAST = "best_PGD10_acc_model.pth", "best_clean_acc_model.pth", "last_epoch_model.pth"

# One row per epoch, counted from 0. Means over images; accuracies in percent, empty where the method has no such
# logits. train_* are of the student in train mode during the epoch; the last four are of the student after it, on the
# images that choose the best checkpoint.
COLUMNS = (
    *("epoch", "lr", "train_loss", "train_clean_acc", "train_adv_acc"),
    *("clean_loss", "clean_acc", "PGD10_loss", "PGD10_acc"),
)
LONGEST_NAME = 200  # bytes; file systems take 255 and the files in the folder add theirs


class RunFolder:
    """``<root_path>/<dataset>/<method>/<name>/`` of one run; nothing is written before :meth:`create`."""

    def __init__(self, config: TrainConfig, *, teacher: str | None):
        self.config = config
        parts = [config.model, teacher and f"from_{teacher}", config.method != "Natural" and f"eps{config.epsilon:g}"]
        name = "_".join(filter(None, [*parts, f"seed{config.seed}", config.desc_str]))
        name = name.replace(os.sep, "-").replace(":", "-")
        if len(name.encode()) > LONGEST_NAME:
            raise UserError(f"--desc_str {config.desc_str[:20]}...: makes the folder's name too long; shorten it")
        self.path = Path(config.root_path) / config.dataset / config.method / name
        self.rows: list[dict] = []

    def last_state(self) -> dict | None:
        """State to resume from, or None where the run starts anew.

        Raises UserError when the folder cannot be made, when it holds a run and ``--resume`` was not given, or when
        that run had other settings.
        """
        self._require_writable()
        last = self.path / LAST
        if not last.exists():
            return None
        if not self.config.resume:
            raise UserError(f"{self.path}: holds a run already; --resume continues it, --desc_str NAME starts another")
        state = load_checkpoint(last)
        if not {"net", "epoch", "optimizer", "rows", "config", "classes", "images", "teachers"} <= state.keys():
            raise UserError(f"{last}: not the last checkpoint of a run; --desc_str NAME starts another run beside it")
        ours, theirs = identity(self.config), state["config"]
        if ours["milestones"] is None:
            ours["milestones"] = theirs["milestones"]  # more epochs move no milestone that was not asked for
        flags = {spec.name: spelling(spec) for spec in fields(self.config)}
        changes = [f"{flags[key]} {theirs.get(key)} -> {ours[key]}" for key in ours if ours[key] != theirs.get(key)]
        if changes:
            raise UserError(
                f"--resume: {self.path} has a run with other settings ({', '.join(changes)}); "
                "--desc_str NAME starts another"
            )
        return state

    def restore(self, state: dict, facts: dict) -> None:
        """Take over the rows of ``state``; raise UserError where that run had other images, classes or teachers."""
        for key, name in (("classes", "classes"), ("images", "images"), ("teachers", "teachers")):
            if state[key] != facts[key]:
                raise UserError(
                    f"--resume: {self.path} was trained with other {name}; --desc_str NAME starts another run"
                )
        self.rows = state["rows"]

    def create(self) -> None:
        """Make the folder, take it for this process, and write config.json.

        Raises UserError where that cannot be, or where another process is training there.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock = open(self.path / ".lock", "w")  # noqa: SIM115  (held, with its lock, until the process ends)
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            text = json.dumps(asdict(self.config), indent=2) + "\n"
            write_text(self.path / "config.json", text)
        except BlockingIOError as error:
            raise UserError(
                f"{self.path}: another run is training there; --desc_str NAME starts one beside it"
            ) from error
        except OSError as error:
            raise UserError(f"--root_path {self.config.root_path}: cannot write there ({error.strerror})") from error

    def add_row(self, values: dict) -> None:
        """Append one epoch to results.csv."""
        self.rows.append({key: values[key] for key in COLUMNS})
        write_csv(self.path / "results.csv", COLUMNS, [[_plain(value) for value in row.values()] for row in self.rows])

    def best(self, figure: str) -> dict:
        """The first row with the highest ``figure``."""
        return max(self.rows, key=lambda row: row[figure])

    def state(self) -> dict:
        """What the last checkpoint holds beside the network, for resuming."""
        return {"rows": self.rows, "config": identity(self.config)}

    def save(self, name: str, content: dict) -> None:
        """Write one checkpoint; raise UserError where the disk does not take it."""
        try:
            save_checkpoint(self.path / name, content)
        except (OSError, RuntimeError) as error:  # torch reports a full disk as RuntimeError
            reason = str(error).splitlines()[0]
            raise UserError(f"{self.path / name}: cannot be written ({reason}); --resume continues the run") from error

    def draw(self) -> None:
        """Write curves.png from the rows so far."""
        save_curves(self.rows, self.path / "curves.png")

    def _require_writable(self) -> None:
        existing = next(place for place in (self.path, *self.path.parents) if place.exists())
        if not existing.is_dir() or not os.access(existing, os.W_OK):
            why = "no write permission" if existing.is_dir() else "not a folder"
            raise UserError(f"--root_path {self.config.root_path}: cannot write there ({existing}: {why})")


def identity(config: TrainConfig) -> dict:
    """The settings that decide a run's result; where and on what it runs are not among them.

    The number of epochs is one only where the learning rate of every epoch depends on it.
    """
    kept = [spec.name for spec in fields(config) if not spec.metadata["place"]]
    values = {name: getattr(config, name) for name in kept if name != "epochs" or config.lr_schedule == "cosine"}
    return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}


def _plain(value) -> str:
    return "" if value is None else f"{value:.6g}" if isinstance(value, float) else str(value)
