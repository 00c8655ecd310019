"""What a training run leaves on the disk, and where."""

import json
import os
from dataclasses import asdict, fields
from pathlib import Path

from engine.checkpoint import load_checkpoint, save_checkpoint
from utils.config import TrainConfig
from utils.errors import UserError
from utils.files import write_atomically
from utils.flags import spelling
from utils.plots import save_curves
from utils.report import read_csv, write_csv

BEST_PGD10, BEST_CLEAN, LAST = "best_PGD10_acc_model.pth", "best_clean_acc_model.pth", "last_epoch_model.pth"

# One row per epoch, counted from 0. Means over images; accuracies in percent, empty where the method has no such
# logits. train_* are of the student in train mode during the epoch; the last four are of the student after it, on the
# images that choose the best checkpoint.
COLUMNS = (
    *("epoch", "lr", "train_loss", "train_clean_acc", "train_adv_acc"),
    *("clean_loss", "clean_acc", "PGD10_loss", "PGD10_acc"),
)


class RunFolder:
    """``<root_path>/<dataset>/<method>/<name>/`` of one run; nothing is written before :meth:`create`."""

    def __init__(self, config: TrainConfig, *, teacher: str | None):
        self.config = config
        parts = [config.model, teacher and f"from_{teacher}", config.method != "Natural" and f"eps{config.epsilon:g}"]
        name = "_".join(filter(None, [*parts, f"seed{config.seed}", config.desc_str]))
        plain = name.replace(os.sep, "-").replace(":", "-")
        self.path = Path(config.root_path) / config.dataset / config.method / plain
        self.rows: list[dict[str, str]] = []

    def last_state(self) -> dict | None:
        """State to resume from, or None where the run starts anew.

        Raises UserError when the folder holds a run and ``--resume`` was not given, or the run had other settings.
        """
        last = self.path / LAST
        if not last.exists():
            return None
        if not self.config.resume:
            raise UserError(f"{self.path}: holds a run already; --resume continues it, --desc_str NAME starts another")
        state = load_checkpoint(last)
        ours, theirs = identity(self.config), state["config"]
        flags = {spec.name: spelling(spec) for spec in fields(self.config)}
        changes = [f"{flags[key]} {theirs.get(key)} -> {ours[key]}" for key in ours if ours[key] != theirs.get(key)]
        if changes:
            raise UserError(
                f"--resume: {self.path} has a run with other settings ({', '.join(changes)}); "
                "--desc_str NAME starts another"
            )
        return state

    def create(self, resumed_at: int) -> None:
        """Make the folder, write config.json, and keep of an earlier results.csv the epochs before ``resumed_at``."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            text = json.dumps(asdict(self.config), indent=2) + "\n"
            write_atomically(self.path / "config.json", lambda temporary: temporary.write_text(text, encoding="utf-8"))
        except OSError as error:
            raise UserError(f"--root_path {self.config.root_path}: cannot write there ({error.strerror})") from error
        if resumed_at:
            self.rows = [row for row in read_csv(self.path / "results.csv") if int(row["epoch"]) < resumed_at]

    def add_row(self, values: dict) -> None:
        """Append one epoch to results.csv."""
        self.rows.append({key: _plain(values[key]) for key in COLUMNS})
        write_csv(self.path / "results.csv", COLUMNS, [list(row.values()) for row in self.rows])

    def save(self, name: str, content: dict) -> None:
        """Write one checkpoint."""
        save_checkpoint(self.path / name, content)

    def draw(self) -> None:
        """Write curves.png from the rows so far."""
        save_curves(self.rows, self.path / "curves.png")


def identity(config: TrainConfig) -> dict:
    """The settings that decide a run's result; how long, where and on what it runs are not among them."""
    kept = [spec.name for spec in fields(config) if not spec.metadata["place"] and spec.name != "epochs"]
    values = {name: getattr(config, name) for name in kept}
    return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}


def _plain(value) -> str:
    return "" if value is None else f"{value:.6g}" if isinstance(value, float) else str(value)
