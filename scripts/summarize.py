"""One table and one picture of several runs: python scripts/summarize.py OUT.png NAME=CHECKPOINT ...

The table shows the evaluation kept beside each checkpoint; the picture accuracy per epoch of the runs they come from,
and test images of the last one's data set, their perturbations and what the last network says of both.
"""

import csv
import sys
from pathlib import Path

import matplotlib.pyplot as plt

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
from utils.tables import read_csv, text_table

EXAMPLES = 6


def summarize(arguments: list[str]) -> None:
    """Print the table, write the picture. Raises UserError where a file is missing or damaged."""
    if len(arguments) < 2 or not all("=" in argument for argument in arguments[1:]):
        raise UserError(f"usage: {__doc__.splitlines()[0].partition(': ')[2]}")
    picture, runs = Path(arguments[0]), [argument.split("=", 1) for argument in arguments[1:]]
    runs = {name: Path(checkpoint) for name, checkpoint in runs}
    figures = {name: read_evaluations(results_path(path))[-1]["figures"] for name, path in runs.items()}
    columns = list(dict.fromkeys(title for row in figures.values() for title in row))
    rows = [
        [name, *(f"{row[title]['accuracy']:.1f}" if title in row else "-" for title in columns)]
        for name, row in figures.items()
    ]
    counts = {title: row[title]["n"] for row in figures.values() for title in row}
    header = ["accuracy in %", *(f"{title} (n={counts[title]})" for title in columns)]
    logger.info("\n%s\n", text_table(header, rows))
    draw(runs, picture)
    logger.info("picture: %s", picture)


def draw(runs: dict[str, Path], picture: Path) -> None:
    """Draw the curves of all runs and the examples of the last one."""
    figure = plt.figure(figsize=(15, 5), layout="constrained")
    left, right = figure.subfigures(1, 2, width_ratios=(2, 3))
    draw_curves(left.subplots(), {name: _rows(path.with_name("results.csv")) for name, path in runs.items()})
    name, checkpoint = list(runs.items())[-1]
    config = _settings(checkpoint.with_name("config.json"))
    splits = load(config.dataset, config.data_root, image_size=config.image_size)
    network = load_network(config.model, len(splits.classes), checkpoint, splits.image_size).eval()
    epsilon = config.epsilon / 255
    clean, adversarial, words = adversarial_examples(
        network, pgd10(epsilon), splits.test, splits.classes, config.seed, count=EXAMPLES
    )
    draw_examples(right.subplots(3, EXAMPLES), clean, adversarial, words, epsilon)
    right.suptitle(f"what the {name} predicts before and after PGD-10 at epsilon {255 * epsilon:g}/255")
    try:
        save_figure(figure, picture)
    except (OSError, ValueError) as error:  # ValueError: a name that ends in no kind of picture
        raise UserError(f"{picture}: cannot be written ({error}); name another file, for example OUT.png") from error


def _rows(path: Path) -> list[dict[str, str]]:
    """The epochs of a run; raises UserError where its table is missing or damaged."""
    try:
        rows = read_csv(path)
        for row in rows:
            int(row["epoch"]), float(row["clean_acc"]), float(row["PGD10_acc"])
    except (OSError, ValueError, KeyError, TypeError, csv.Error) as error:
        raise UserError(f"{path}: not the table of a run; name a checkpoint in the folder of its run") from error
    return rows


def _settings(path: Path) -> TrainConfig:
    """The settings of a run; raises UserError where they are missing or damaged."""
    try:
        config = TrainConfig(**read_json(path))
        kinds = {"dataset": str, "data_root": str | None, "model": str, "image_size": int | None, "seed": int}
        if all(isinstance(getattr(config, key), kind) for key, kind in kinds.items()):
            return config
    except (OSError, ValueError, TypeError, UserError) as error:
        raise UserError(f"{path}: not the settings of a run ({error}); train it again") from error
    raise UserError(f"{path}: not the settings of a run; train it again")


if __name__ == "__main__":
    run_command(lambda: summarize(sys.argv[1:]))
