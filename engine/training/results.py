"""What a run measures: results.csv and reliability.csv, one row per epoch, and their figures."""

import csv
from pathlib import Path

from engine.training.metrics import ALPHA_COLUMNS
from utils.plots import save_curves, save_reliability
from utils.tables import read_csv, write_csv

# One row per epoch, counted from 1. Means over images, accuracies in percent; empty if the logits are not computed.
# train_* are of the student in train mode during the epoch; clean_* and PGD10_* of the student after it, on the images
# that choose the best checkpoint, and empty in epochs without validation.
TRAINING = ("epoch", "lr", "train_loss", "train_clean_acc", "train_adv_acc")
METRICS = (*TRAINING, "clean_loss", "clean_acc", "PGD10_loss", "PGD10_acc")
# They differ from run to run, so they are only in results.csv: resume states have the same bytes in every run.
MEASUREMENTS = ("images_per_s", "peak_memory_mib")
RESULTS, RELIABILITY = "results.csv", "reliability.csv"
CURVES, PLOT = "curves.png", "reliability.png"


class Results:
    """The rows of a run in ``folder``: ``rows`` of results.csv, ``reliability`` of reliability.csv; None is missing."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.rows: list[dict] = []
        self.reliability: list[dict] = []

    def state(self) -> dict:
        """Return what a resume state holds of the tables."""
        rows = [{key: row[key] for key in METRICS} for row in self.rows]
        return {"rows": rows, "reliability": self.reliability}

    def restore(self, state: dict) -> None:
        """Continue the tables of ``state``; the measurements of its epochs are read from results.csv."""
        measured = _read_measurements(self.folder / RESULTS)
        unknown = dict.fromkeys(MEASUREMENTS)
        self.rows = [row | measured.get(row["epoch"], unknown) for row in state["rows"]]
        self.reliability = state["reliability"]

    def add(self, values: dict, reliability: dict | None) -> None:
        """Append one epoch."""
        self.rows.append({key: values.get(key) for key in (*METRICS, *MEASUREMENTS)})
        if reliability:
            self.reliability.append({"epoch": values["epoch"], **reliability})

    def best(self, column: str) -> dict | None:
        """Return the first row with the highest value in ``column``; None before the first validation."""
        return max((row for row in self.rows if row[column] is not None), key=lambda row: row[column], default=None)

    def write(self) -> None:
        """Write the tables."""
        for name, rows in ((RESULTS, self.rows), (RELIABILITY, self.reliability)):
            if rows:
                cells = [[_cell(value) for value in row.values()] for row in rows]
                write_csv(self.folder / name, rows[0].keys(), cells)
        (self.folder / CURVES).unlink(missing_ok=True)  # it shows fewer epochs

    def draw(self) -> None:
        """Draw curves.png, and reliability.png if the teacher's logits are known."""
        if any(row[key] is not None for row in self.reliability for key in ("teacher_clean_acc", "teacher_adv_acc")):
            save_reliability(self.reliability, ALPHA_COLUMNS, self.folder / PLOT)
        save_curves([row for row in self.rows if row["PGD10_acc"] is not None], self.folder / CURVES)


def _read_measurements(path: Path) -> dict[int, dict]:
    """Read the MEASUREMENTS of each epoch in a results.csv; empty if it is missing or damaged."""
    try:
        rows = read_csv(path) if path.is_file() else []
        return {int(row["epoch"]): {key: float(row[key]) if row[key] else None for key in MEASUREMENTS} for row in rows}
    except (OSError, ValueError, TypeError, KeyError, csv.Error):
        return {}


def _cell(value) -> str:
    if value is None:
        return ""
    return f"{value:.6g}" if isinstance(value, float) else str(value)
