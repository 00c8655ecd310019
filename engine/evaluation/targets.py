"""The networks to evaluate, as the flags name them: checked against the dataset, loaded."""

import math
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn

from data import Splits
from engine.checkpoint import BEST_PGD10, LAST, best_checkpoint
from engine.networks import class_difference, make_network, network_in, network_name
from methods import WITHOUT_ATTACK
from models.robustbench import PREFIX
from models.weights import Checkpoint, NoWeights
from utils.config import EvalConfig
from utils.errors import UserError
from utils.files import read_json
from utils.log import logger

SUFFIXES = (".pth", ".pt", ".safetensors", ".ckpt", ".tar", ".bin")


class EvalTarget(NamedTuple):
    """A network to evaluate: ``name`` in MODELS and a file, or ``robustbench:NAME`` and a path that does not exist.

    The file has been read: hash, metadata and weights are of the same bytes, whatever happens to it later.
    """

    path: Path
    name: str
    checkpoint: Checkpoint | None = None

    @property
    def metadata(self) -> dict:
        """Metadata of our own checkpoints."""
        return self.checkpoint.metadata if self.checkpoint else {}

    def load(self, config: EvalConfig, splits: Splits) -> nn.Module:
        """Load the network in eval mode with constant parameters.

        Raises UserError if the file does not fit, or was trained on other classes of the same kind of dataset.
        """
        trained = self.metadata.get("classes", splits.classes)
        difference = class_difference(trained, splits.classes)
        if difference and self.metadata.get("dataset") == config.dataset:
            raise UserError(f"{self.path}: trained on other classes than those of --data_root ({difference})")
        return make_network(self.name, self.checkpoint, config.dataset, splits).eval().requires_grad_(False)


def find_targets(config: EvalConfig) -> list[EvalTarget]:
    """Return the networks that ``--model_path`` and ``--model`` name.

    Raises UserError if a file is missing, or holds an unknown network or another one than requested.
    """
    if not all(map(str.strip, config.model_path)):
        raise UserError("--model_path: an empty name; give a checkpoint or a folder")
    checkpoints = list(_checkpoints(config))
    if checkpoints:
        return [EvalTarget(file.path, network_in(file, config.model), file) for file in checkpoints]
    if (config.model or "").startswith(PREFIX):
        name = network_name(config.model, config.dataset or "CIFAR10")
        return [EvalTarget(Path(name.replace(":", "-")), name)]
    raise UserError("--model_path: required; give the checkpoint, for example .../best_PGD10_acc_model.pth")


def infer_dataset(config: EvalConfig, targets: list[EvalTarget]) -> EvalConfig:
    """Fill in dataset and image size from the metadata of our checkpoints; warn if those differ from the flags."""
    metadata, sizes = {target.path: target.metadata for target in targets}, set()
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
    if not path.strip():
        raise UserError(f"{flag}: an empty name; give a checkpoint")
    checkpoint = Checkpoint(path, config.weights, config.normalize)
    target = EvalTarget(checkpoint.path, network_in(checkpoint, model, flag), checkpoint)
    return target.load(config, splits).to(device)


def _best(run: Path) -> str:
    """Return the name of a run's best checkpoint."""
    try:
        name = best_checkpoint(read_json(run / "config.json")["method"])
    except (OSError, ValueError, KeyError, TypeError):
        return BEST_PGD10
    return name if (run / name).exists() else BEST_PGD10


def _checkpoints(config: EvalConfig) -> Iterator[Checkpoint]:
    """Read the files that ``--model_path`` names; of a folder the best and last checkpoints of its runs."""
    paths = {}  # of each file, whether a folder contained it
    for path in map(Path, config.model_path):
        if path.is_dir():
            runs = sorted({file.parent for name in (BEST_PGD10, LAST) for file in path.rglob(name)})
            files = [run / name for run in runs for name in (_best(run), LAST) if (run / name).exists()]
            files = files or sorted(file for file in path.iterdir() if file.name.lower().endswith(SUFFIXES))
            if not files:
                raise UserError(f"--model_path {path}: no checkpoint in that folder ({', '.join(SUFFIXES)})")
            paths |= dict.fromkeys(files, path)
        else:
            paths[path] = None
    passed_over = []
    for path, folder in paths.items():
        try:
            yield Checkpoint(path, config.weights, config.normalize)
        except NoWeights as error:
            if folder is None:
                raise
            passed_over.append(str(path))
            if len(passed_over) == len(paths):
                raise UserError(f"--model_path {folder}: no file in it has weights") from error
    if passed_over:
        logger.warning("WARNING: passed over, no weights: %s", ", ".join(passed_over))
