"""Networks of RobustBench's model zoo, through its package."""

import io
import re
import sys
import warnings
from collections.abc import Mapping
from contextlib import redirect_stdout
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import nn

from models.checkpoint_file import PLAIN
from models.weights import Checkpoint, load_weights
from utils.errors import UserError
from utils.names import canonical

PREFIX = "robustbench:"
DATASETS = {"CIFAR10": "cifar10", "CIFAR100": "cifar100"}
INSTALL = "pip install -r requirements-zoo.txt"
# A module that importing robustbench may miss -> the command that installs it.
MISSING = {"pkg_resources": 'pip install "setuptools<81"', "autoattack": "pip install pyautoattack"}


def cache_path(name: str, dataset: str) -> Path:
    """Return the path, relative to the working directory, where RobustBench caches an L-infinity network."""
    return Path("models", DATASETS[dataset], "Linf", f"{name}.pt")


def find(name: str, dataset: str) -> str:
    """Return ``robustbench:NAME`` as the zoo spells it, if it has the network for ``dataset``.

    Raises UserError for an unknown name, for a dataset without networks, and if a package is missing.
    """
    name = name.removeprefix(PREFIX)
    if not re.fullmatch(r"\w[\w.-]*", name):  # it becomes part of a path and may come from a checkpoint
        raise UserError(f"--model/--teacher_model {PREFIX}{name}: not a valid name; use one of RobustBench's model zoo")
    if dataset not in DATASETS:
        raise UserError(f"{PREFIX}{name}: RobustBench has networks for {' and '.join(DATASETS)}, not for {dataset}")
    return PREFIX + canonical(name, zoo(dataset), {}, PREFIX)


def zoo(dataset: str) -> Mapping[str, dict]:
    """Return RobustBench's L-infinity networks for a dataset by name.

    Raises UserError with the command that installs what is missing.
    """
    stand_in = find_spec("autoattack") is None and find_spec("pyautoattack") is not None
    try:
        if stand_in:  # PyPI has the authors' code under this name only
            import pyautoattack

            sys.modules["autoattack"] = pyautoattack
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from robustbench.model_zoo import model_dicts
            from robustbench.model_zoo.enums import BenchmarkDataset, ThreatModel
    except ImportError as error:
        missing = (error.name or "").partition(".")[0]
        command = MISSING.get(missing, INSTALL)
        raise UserError(f"{PREFIX}NAME needs other packages: {command} (no module {missing or error})") from error
    finally:
        if stand_in:
            sys.modules.pop("autoattack", None)
    return model_dicts[BenchmarkDataset(DATASETS[dataset])][ThreatModel.Linf]


def load_published(name: str, dataset: str, source: str | Path | Checkpoint | None = None) -> nn.Module:
    """Return an L-infinity network of the zoo with its published weights, or with those of ``source``.

    The ``robustbench`` package builds the network and downloads a missing file. Raises UserError as :func:`find` does,
    and if a download fails.
    """
    name = find(name, dataset).removeprefix(PREFIX)
    try:
        return load_weights(build(name, dataset), source) if source else _download(name, dataset)
    except UserError:
        raise
    except Exception as error:  # a failed download, a damaged file, a network that needs a GPU
        file, drive = cache_path(name, dataset), zoo(dataset)[name].get("gdrive_id")
        hint = ""
        if not source and not file.exists() and isinstance(drive, str):
            hint = f"; if the download failed, save https://drive.google.com/uc?id={drive} as {file}"
        reason = f"{type(error).__name__}: {error}".splitlines()[0][:120]
        raise UserError(f"{PREFIX}{name}: robustbench cannot load it ({reason}){hint}") from error


def build(name: str, dataset: str) -> nn.Module:
    """Return the newly initialized network ``name`` of the zoo."""
    import timm

    registered = f"{name.lower().replace('-', '_')}_{DATASETS[dataset]}_linf"
    if timm.is_model(registered):
        return timm.create_model(registered, num_classes=int(DATASETS[dataset].removeprefix("cifar")))
    return zoo(dataset)[name]["model"]()


def _download(name: str, dataset: str) -> nn.Module:
    from robustbench.utils import load_model

    with redirect_stdout(io.StringIO()), warnings.catch_warnings(), torch.serialization.safe_globals(PLAIN):
        warnings.simplefilter("ignore")
        return load_model(name, dataset=DATASETS[dataset], threat_model="Linf")
