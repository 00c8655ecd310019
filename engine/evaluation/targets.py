"""The networks to evaluate, as the flags name them: checked against the dataset, loaded."""

import math
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn

from data import Splits
from engine.checkpoint import BEST_PGD10, LAST
from engine.networks import make_network, network_in, network_name
from methods import WITHOUT_ATTACK
from models.robustbench import PREFIX
from models.weights import read_metadata
from utils.config import EvalConfig
from utils.errors import UserError
from utils.files import read_json
from utils.log import logger

SUFFIXES = (".pth", ".pt", ".safetensors")


class EvalTarget(NamedTuple):
    """A network to evaluate: ``name`` in MODELS and file, or ``robustbench:NAME`` and a path that does not exist."""

    path: Path
    name: str

    def load(self, config: EvalConfig, splits: Splits) -> nn.Module:
        """Load the network in eval mode with constant parameters.

        Raises UserError if the file does not fit, or was trained on other classes of the same kind of dataset.
        """
        metadata, classes = _metadata(self.path), list(splits.classes)
        trained = metadata.get("classes", classes)
        if metadata.get("dataset") == config.dataset and trained != classes:
            raise UserError(
                f"{self.path}: trained on other classes ({', '.join(trained[:3])}, ...) than those of --data_root "
                f"({', '.join(classes[:3])}, ...)"
            )
        path = str(self.path) if self.path.exists() else ""
        return make_network(self.name, path, config.dataset, splits).eval().requires_grad_(False)


def find_targets(config: EvalConfig) -> list[EvalTarget]:
    """Return the networks that ``--model_path`` and ``--model`` name.

    Raises UserError if a file is missing, or holds an unknown network or another one than requested.
    """
    if not all(map(str.strip, config.model_path)):
        raise UserError("--model_path: an empty name; give a checkpoint or a folder")
    paths = _checkpoints(config.model_path)
    if paths:
        return [EvalTarget(path, network_in(path, config.model)) for path in paths]
    if (config.model or "").startswith(PREFIX):
        return [EvalTarget(Path(config.model.replace(":", "-")), network_name(config.model))]
    raise UserError("--model_path: required; give the checkpoint, for example .../best_PGD10_acc_model.pth")


def infer_dataset(config: EvalConfig, paths: list[Path]) -> EvalConfig:
    """Fill in dataset and image size from the metadata of our checkpoints; warn if those differ from the flags."""
    metadata, sizes = {path: _metadata(path) for path in paths}, set()
    if config.dataset is None:
        datasets = {values["dataset"] for values in metadata.values() if "dataset" in values} or {"CIFAR10"}
        if len(datasets) > 1:
            raise UserError(f"--dataset: required; the checkpoints were trained on {', '.join(sorted(datasets))}")
        config = replace(config, dataset=datasets.pop())
    for path, values in metadata.items():
        if values.get("dataset", config.dataset) != config.dataset:
            message = "%s was trained on %s, not on %s; its accuracy is valid only if the classes and their order agree"
            logger.warning(message, path, values["dataset"], config.dataset)
        elif config.dataset in ("Folder", "Digits") and "image_size" in values:
            sizes.add(values["image_size"])
    trained = ", ".join(map(str, sorted(sizes)))
    if config.image_size is None and len(sizes) > 1:
        raise UserError(f"--image_size: required; the checkpoints were trained at {trained}")
    if config.image_size and sizes - {config.image_size}:
        logger.warning("--image_size %d: the checkpoints were trained at %s", config.image_size, trained)
    return config if config.image_size or not sizes else replace(config, image_size=sizes.pop())


def warn_of_epsilon(paths: Iterable[Path], eps: float) -> None:
    """Warn of checkpoints whose config.json says they were trained at another epsilon than ``eps``, in [0, 1]."""
    for path in paths:
        try:
            config = read_json(path.with_name("config.json"))
            trained, attacked = float(config["epsilon"]), config["method"] not in WITHOUT_ATTACK
        except (OSError, ValueError, KeyError, TypeError):
            continue  # unknown
        if attacked and not math.isclose(trained, 255 * eps, rel_tol=1e-6):
            message = "%s was trained at epsilon %g/255 but is attacked at %g/255 (--eps)"
            logger.warning(message, path, trained, 255 * eps)


def load_other_network(
    path: str, model: str | None, flag: str, config: EvalConfig, splits: Splits, device: torch.device
) -> nn.Module | None:
    """Load the surrogate or the naturally trained network on the device; None for an empty path."""
    if not path:
        return None
    return EvalTarget(Path(path), network_in(path, model, flag)).load(config, splits).to(device)


def _metadata(path: Path) -> dict:
    return read_metadata(path) if path.exists() else {}


def _checkpoints(arguments: tuple[str, ...]) -> list[Path]:
    """The files that ``--model_path`` names; of a folder the best and last checkpoints of its runs."""
    paths = []
    for path in map(Path, arguments):
        if path.is_dir():
            files = sorted(path.rglob(BEST_PGD10)) + sorted(path.rglob(LAST))
            files = sorted(files, key=lambda file: file.parent)  # of each run the best, then the last
            files = files or sorted(file for file in path.iterdir() if file.suffix in SUFFIXES)
            if not files:
                raise UserError(f"--model_path {path}: no checkpoint in that folder ({', '.join(SUFFIXES)})")
            paths += files
        else:
            paths.append(path)
    return list(dict.fromkeys(paths))
