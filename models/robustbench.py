"""Networks of RobustBench's model zoo, through its package or from its cache folder."""

import re
from pathlib import Path

from torch import nn

from models.weights import load_network, recognise
from utils.errors import UserError

PREFIX = "robustbench:"
DATASETS = {"CIFAR10": "cifar10", "CIFAR100": "cifar100"}


def cached(name: str, dataset: str) -> Path:
    """Where RobustBench keeps the L-infinity network of that name, under the working directory."""
    return Path("models", DATASETS[dataset], "Linf", f"{name}.pt")


def load_published(name: str, dataset: str, num_classes: int) -> nn.Module:
    """Return an L-infinity network of the zoo with its published weights.

    The installed ``robustbench`` package loads any of them, and downloads what is missing. Without it the file in the
    cache folder is read where its architecture is one of ours. Raises UserError otherwise.
    """
    if not re.fullmatch(r"\w[\w.-]*", name):  # it names a file, and may come from one
        raise UserError(f"--model/--teacher_model {PREFIX}{name}: no name of RobustBench's zoo")
    if dataset not in DATASETS:
        raise UserError(f"{PREFIX}{name}: RobustBench has networks for {' and '.join(DATASETS)}, not for {dataset}")
    try:
        from robustbench.utils import load_model
    except ImportError:
        return _load_cached(name, dataset, num_classes)
    try:
        return load_model(name, dataset=DATASETS[dataset], threat_model="Linf")
    except Exception as error:  # an unknown name, a download that failed, a file that is no checkpoint
        raise UserError(f"{PREFIX}{name}: robustbench cannot load it ({type(error).__name__}: {error})") from error


def _load_cached(name: str, dataset: str, num_classes: int) -> nn.Module:
    place = cached(name, dataset)
    install = "install the robustbench package (pip install robustbench)"
    if not place.exists():
        raise UserError(f"{PREFIX}{name}: no file at {place}: put it there, or {install}")
    architecture = recognise(place)
    if architecture is None:
        raise UserError(f"{PREFIX}{name}: {place} is none of the networks that can be read without it: {install}")
    return load_network(architecture, num_classes, place)
