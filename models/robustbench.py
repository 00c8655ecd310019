"""Networks of RobustBench's model zoo, from its package or from its cache folder."""

import io
import re
import sys
import warnings
from collections.abc import Mapping
from contextlib import redirect_stdout
from importlib.metadata import PackageNotFoundError, metadata
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import nn

from models.checkpoint_file import PLAIN
from models.weights import Checkpoint, identify, load_network, load_weights
from utils.errors import UserError
from utils.names import canonical

PREFIX = "robustbench:"
DATASETS = {"CIFAR10": "cifar10", "CIFAR100": "cifar100"}
INSTALL = "pip install -r requirements-zoo.txt"
# A module that importing robustbench may miss -> the command that installs it.
MISSING = {"pkg_resources": 'pip install "setuptools<81"', "autoattack": "pip install pyautoattack"}
ROW = re.compile(
    r"\| <sub>\*\*\d+\*\*</sub> \| <sub><sup>\*\*([\w.-]+)\*\*.*?<sub>([\d.]+)%</sub> \| <sub>([\d.]+)%</sub>"
)


def cache_path(name: str, dataset: str) -> Path:
    """Return the path, relative to the working directory, where RobustBench caches an L-infinity network."""
    return Path("models", DATASETS[dataset], "Linf", f"{name}.pt")


def find(name: str, dataset: str, path: str | Path | None = None) -> str:
    """Return ``robustbench:NAME`` as the zoo spells it, if the network can be built for ``dataset``.

    ``path`` is a file with weights for it. Raises UserError for an unknown name, a dataset without networks, and if the
    package is missing and the file, or the one in the cache, has no architecture of MODELS.
    """
    name = name.removeprefix(PREFIX)
    if not re.fullmatch(r"\w[\w.-]*", name):  # it becomes part of a path and may come from a checkpoint
        raise UserError(f"--model/--teacher_model {PREFIX}{name}: not a valid name; use one of RobustBench's model zoo")
    if dataset not in DATASETS:
        raise UserError(f"{PREFIX}{name}: RobustBench has networks for {' and '.join(DATASETS)}, not for {dataset}")
    try:
        networks = zoo(dataset)
    except UserError as error:
        file = Path(path or cache_path(name, dataset))
        if not file.exists():
            raise UserError(f"{PREFIX}{name}: no file {file}; put it there, or {error}") from error
        if identify(file) is None:
            raise UserError(f"{PREFIX}{name}: {file} has an architecture that is not in --model; {error}") from error
        return PREFIX + name
    try:
        return PREFIX + canonical(name, networks, {}, PREFIX[:-1])
    except UserError as error:
        nearest = str(error).partition(" (all")[0].removeprefix(f"{PREFIX[:-1]} ")
        raise UserError(f"{PREFIX}{nearest}; python -m models.teachers lists the zoo") from error


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
        raise UserError(f"{MISSING.get(missing, INSTALL)} (no module {missing or error})") from error
    finally:
        if stand_in:
            sys.modules.pop("autoattack", None)
    return model_dicts[BenchmarkDataset(DATASETS[dataset])][ThreatModel.Linf]


def load_published(name: str, dataset: str, path: str | Path | Checkpoint | None = None) -> nn.Module:
    """Return an L-infinity network of the zoo with its published weights, or with those of ``path``.

    The ``robustbench`` package builds every network and downloads missing files. Without the package, a file is loaded
    if its architecture is one of MODELS. Raises UserError as :func:`find` does, and if a download fails.
    """
    name = find(name, dataset, path.path if isinstance(path, Checkpoint) else path).removeprefix(PREFIX)
    try:
        networks = zoo(dataset)
    except UserError:
        file = Checkpoint.of(path or cache_path(name, dataset))
        return load_network(identify(file)[0], int(DATASETS[dataset].removeprefix("cifar")), file)
    try:
        return load_weights(build(name, dataset), path) if path else _download(name, dataset)
    except UserError:
        raise
    except Exception as error:  # a failed download, a damaged file, a network that needs a GPU
        file, drive = cache_path(name, dataset), networks[name].get("gdrive_id")
        hint = ""
        if not path and not file.exists() and isinstance(drive, str):
            hint = f"; if the download failed, save https://drive.google.com/uc?id={drive} as {file}"
        reason = f"{type(error).__name__}: {str(error).strip().splitlines()[0][:120]}" if str(error) else error
        raise UserError(f"{PREFIX}{name}: robustbench cannot load it ({reason}){hint}") from error


def build(name: str, dataset: str) -> nn.Module:
    """Return the newly initialized network ``name`` of the zoo."""
    import timm

    registered = f"{name.lower().replace('-', '_')}_{DATASETS[dataset]}_linf"
    if timm.is_model(registered):
        return timm.create_model(registered, num_classes=int(DATASETS[dataset].removeprefix("cifar")))
    return zoo(dataset)[name]["model"]()


def published_accuracies() -> list[tuple[str, str, float, float]]:
    """Return name, dataset, clean and AutoAttack accuracy of the zoo's networks, from the package's description.

    Empty if the package is not installed.
    """
    try:
        text = metadata("robustbench").get_payload()
    except PackageNotFoundError:
        return []
    rows = []
    for dataset, title in (("CIFAR10", "### CIFAR-10"), ("CIFAR100", "### CIFAR-100")):
        table = text.partition(f"{title}\n")[2].partition("#### Linf")[2].partition("####")[0]
        rows += [(name, dataset, float(clean), float(robust)) for name, clean, robust in ROW.findall(table)]
    return rows


def _download(name: str, dataset: str) -> nn.Module:
    from robustbench.utils import load_model

    with redirect_stdout(io.StringIO()), warnings.catch_warnings(), torch.serialization.safe_globals(PLAIN):
        warnings.simplefilter("ignore")
        return load_model(name, dataset=DATASETS[dataset], threat_model="Linf")
