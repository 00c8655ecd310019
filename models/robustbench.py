"""Networks of RobustBench's model zoo, from its package or from its cache folder."""

import re
from pathlib import Path

from torch import nn

from models.weights import identify_architecture, load_network
from utils.errors import UserError

PREFIX = "robustbench:"
DATASETS = {"CIFAR10": "cifar10", "CIFAR100": "cifar100"}


def cache_path(name: str, dataset: str) -> Path:
    """Return the path, relative to the working directory, where RobustBench caches an L-infinity network."""
    return Path("models", DATASETS[dataset], "Linf", f"{name}.pt")


def load_published(name: str, dataset: str, num_classes: int) -> nn.Module:
    """Return an L-infinity network of the zoo with its published weights.

    The ``robustbench`` package loads every network and downloads missing files. Without the package, a file in the
    cache folder is loaded if its architecture is one of MODELS. Raises UserError otherwise.
    """
    if not re.fullmatch(r"\w[\w.-]*", name):  # it becomes part of a path and may come from a checkpoint
        raise UserError(f"--model/--teacher_model {PREFIX}{name}: not a valid name; use one of RobustBench's model zoo")
    if dataset not in DATASETS:
        raise UserError(f"{PREFIX}{name}: RobustBench has networks for {' and '.join(DATASETS)}, not for {dataset}")
    try:
        from robustbench.utils import load_model
    except ImportError:
        return _load_cached(name, dataset, num_classes)
    try:
        return load_model(name, dataset=DATASETS[dataset], threat_model="Linf")
    except Exception as error:  # an unknown name, a failed download, a damaged file
        raise UserError(f"{PREFIX}{name}: robustbench cannot load it ({type(error).__name__}: {error})") from error


def _load_cached(name: str, dataset: str, num_classes: int) -> nn.Module:
    path = cache_path(name, dataset)
    install = "install the robustbench package (pip install robustbench)"
    if not path.exists():
        raise UserError(f"{PREFIX}{name}: no file {path}; put it there, or {install}")
    architecture = identify_architecture(path)
    if architecture is None:
        raise UserError(f"{PREFIX}{name}: {path} has an architecture that is not in --model; {install}")
    return load_network(architecture, num_classes, path)
