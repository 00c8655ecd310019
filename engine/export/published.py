"""A checkpoint as it goes to others: its network, what is certain of its data, the figures kept beside it."""

from pathlib import Path
from typing import NamedTuple

from torch import nn

from data import DATASETS, dataset_name
from engine.evaluation.records import read_evaluations, results_path, sha256
from engine.networks import network_in
from models import MODELS
from models.robustbench import PREFIX
from models.weights import DEEPMIND_LAYOUTS, identify_architecture, load_network, read_metadata, read_state_dict
from utils.errors import UserError


class Known(NamedTuple):
    """What is certain of a data set: classes, side of its images, number of test images."""

    classes: int
    image_size: int
    test_images: int


KNOWN = {
    "CIFAR10": Known(10, 32, 10_000),
    "CIFAR100": Known(100, 32, 10_000),
    "Tiny_Image": Known(200, 64, 10_000),
    "Digits": Known(10, 32, 360),
}

BENCHMARK_EPSILON = 8 / 255  # RobustBench's, for CIFAR and L-infinity
TITLES = "Clean", "AutoAttack"  # of the figures that are published


class Figure(NamedTuple):
    """Accuracy in percent over ``n`` test images."""

    accuracy: float
    n: int


class Figures(NamedTuple):
    """The figures of one evaluation by those of TITLES that it has; ``epsilon`` in [0, 1]."""

    epsilon: float
    kept: dict[str, Figure]


class Published(NamedTuple):
    """A network in eval mode, and what is known of it. ``classes`` are their names, () where the file has none."""

    network: nn.Module
    model: str
    dataset: str
    num_classes: int
    classes: tuple[str, ...]
    image_size: int
    figures: Figures


def read(path: str, model: str | None = None, dataset: str | None = None) -> Published:
    """Recognise and load a checkpoint; ``model`` and ``dataset`` say what its file does not.

    Raises UserError where the file is unfit, contradicts what was said, or has damaged figures beside it.
    """
    metadata = read_metadata(path)
    dataset = _dataset_of(path, dataset, metadata)
    name = network_in(path, model)
    if name.startswith(PREFIX):  # trained on from a network of the zoo: the file may still hold one of ours
        name = identify_architecture(path) or name
    if name not in MODELS:
        raise UserError(f"{path}: holds {name}, which is none of our networks; RobustBench has its form already")
    num_classes = _count_classes(path)
    known = KNOWN.get(dataset, Known(num_classes, 32, 0))
    if num_classes != known.classes:
        raise UserError(
            f"--dataset {dataset}: has {known.classes} classes, {path} {num_classes}; name the one it was trained on"
        )
    image_size = metadata.get("image_size", known.image_size)
    network = load_network(name, num_classes, path, image_size).eval()
    if "init_conv.weight" in network.state_dict():
        name = DEEPMIND_LAYOUTS.get(name, name)
    classes = tuple(map(str, metadata.get("classes", ())))
    return Published(network, name, dataset, num_classes, classes, image_size, find_figures(path, dataset))


def find_figures(path: str | Path, dataset: str) -> Figures:
    """Clean accuracy and AutoAttack kept beside a checkpoint: of the newest evaluation that has most of the two.

    Evaluations of another file under that name, or on another data set, do not count; where none is left there are no
    figures, at RobustBench's epsilon. Raises UserError where the file of evaluations is damaged.
    """
    place, none = results_path(path), Figures(BENCHMARK_EPSILON, {})
    if not place.exists():
        return none
    try:
        found = [none, *_figures_in(read_evaluations(place), sha256(path), dataset)]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{place}: damaged; delete it and evaluate the checkpoint again") from error
    return max(reversed(found), key=lambda figures: len(figures.kept))


def _figures_in(evaluations: list[dict], digest: str, dataset: str) -> list[Figures]:
    found = []
    for evaluation in evaluations:
        conditions, figures = evaluation["conditions"], evaluation["figures"]
        if (conditions.get("sha256"), conditions.get("dataset")) == (digest, dataset):
            kept = {
                title: Figure(float(figures[title]["accuracy"]), int(figures[title]["n"]))
                for title in TITLES
                if title in figures
            }
            found.append(Figures(float(conditions["eps"]), kept))
    return [figures for figures in found if figures.kept]


def _dataset_of(path: str, asked: str | None, metadata: dict) -> str:
    told, asked = metadata.get("dataset"), asked and dataset_name(asked)
    if told and told not in DATASETS:  # it becomes the name of a folder
        raise UserError(f"{path}: says it was trained on {told!r}, which is none of our data sets: the file is damaged")
    if told and asked not in (None, told):
        raise UserError(f"--dataset {asked}: {path} was trained on {told}; leave the flag out")
    return asked or told or "CIFAR10"


def _count_classes(path: str) -> int:
    matrices = [value for value in read_state_dict(path).values() if value.ndim == 2]
    if not matrices:
        raise UserError(f"{path}: has no linear classifier: the weights of another kind of network")
    return len(matrices[-1])
