"""One table and one figure of several runs: python scripts/summarize.py OUT.png NAME=CHECKPOINT ...

The table has the accuracies of the newest evaluation of each checkpoint. The figure has the accuracy per epoch of all
runs and, for the last one, test images, their perturbations and the predictions on both.
"""

import csv
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import matplotlib.pyplot as plt
from tabulate import tabulate

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # this file is run from its folder

from attacks.suite import pgd10
from data import load
from engine.evaluation.figures import adversarial_examples
from engine.evaluation.records import read_evaluations, results_path
from models.weights import load_network
from utils.cli import run_command
from utils.config import TrainConfig
from utils.errors import UserError
from utils.files import read_json
from utils.log import logger
from utils.plots import draw_curves, draw_examples, save_figure

EXAMPLES = 6


def summarize(argv: list[str]) -> None:
    """Print the table and save the figure; raises UserError if a file is missing or damaged."""
    if len(argv) < 2 or not all("=" in arg for arg in argv[1:]):
        raise UserError("usage: python scripts/summarize.py OUT.png NAME=CHECKPOINT ...")
    runs = {name: Path(path) for name, path in (arg.split("=", 1) for arg in argv[1:])}
    results = {name: read_evaluations(results_path(path))[-1]["figures"] for name, path in runs.items()}
    counts = {attack: result["n"] for row in results.values() for attack, result in row.items()}
    header = ["accuracy (%)", *(f"{attack} (n={n})" for attack, n in counts.items())]
    rows = [
        [name, *(f"{row[attack]['accuracy']:.1f}" if attack in row else "-" for attack in counts)]
        for name, row in results.items()
    ]
    align = ["left"] + ["right"] * len(counts)
    logger.info("\n%s\n", tabulate(rows, header, disable_numparse=True, colalign=align))
    figure = plt.figure(figsize=(15, 5), layout="constrained")
    left, right = figure.subfigures(1, 2, width_ratios=(2, 3))
    draw_curves(left.subplots(), {name: _read_epochs(path.with_name("results.csv")) for name, path in runs.items()})
    _draw_predictions(right, *list(runs.items())[-1])
    try:
        save_figure(figure, Path(argv[0]))
    except (OSError, ValueError) as error:  # ValueError: the suffix is not one of an image format
        raise UserError(f"{argv[0]}: cannot be written ({error}); use another path, for example OUT.png") from error
    logger.info("figure: %s", argv[0])


def _draw_predictions(figure, name: str, checkpoint: Path) -> None:
    config = _read_config(checkpoint.with_name("config.json"))
    splits = load(config.dataset, config.data_root, image_size=config.image_size)
    network = load_network(config.model, len(splits.classes), checkpoint, splits.image_size).eval()
    epsilon = config.epsilon / 255
    examples = adversarial_examples(network, pgd10(epsilon), splits.test, splits.classes, config.seed, count=EXAMPLES)
    draw_examples(figure.subplots(3, EXAMPLES), *examples, epsilon)
    figure.suptitle(f"predictions of the {name} before and after PGD-10 at epsilon {config.epsilon:g}/255")


def _read_epochs(path: Path) -> list[dict[str, str]]:
    with _reading(path), open(path, newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
        for row in rows:
            int(row["epoch"]), float(row["clean_acc"]), float(row["PGD10_acc"])
        return rows


def _read_config(path: Path) -> TrainConfig:
    with _reading(path):
        config = TrainConfig(**read_json(path))
        types = {"dataset": str, "data_root": str | None, "model": str, "image_size": int | None, "seed": int}
        if all(isinstance(getattr(config, key), type_) for key, type_ in types.items()):
            return config
        raise ValueError("a value has the wrong type")


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError, KeyError, TypeError, csv.Error, UserError) as error:
        raise UserError(f"{path}: missing or damaged ({error}); name a checkpoint in the folder of its run") from error


if __name__ == "__main__":
    run_command(lambda: summarize(sys.argv[1:]))
