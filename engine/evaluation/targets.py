"""The networks to evaluate: found by the flags, checked against the dataset, loaded."""

import math
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn

from data import Splits
from engine.checkpoint import BEST, BEST_PGD10, LAST, best_checkpoint
from engine.networks import class_difference, make_network, network_in, network_name
from methods import WITHOUT_ATTACK
from models.robustbench import PREFIX
from models.weights import Checkpoint
from utils.config import EvalConfig
from utils.errors import UserError
from utils.files import read_json
from utils.log import logger

SUFFIXES = (".pth", ".pt", ".safetensors", ".ckpt", ".tar", ".bin")


class EvalTarget(NamedTuple):
    """A network to evaluate: ``name`` in MODELS and a file, or ``robustbench:NAME`` and a path that does not exist.

    The file has been read: hash, metadata and weights belong to the same bytes, even if it changes later.
    """

    path: Path
    name: str
    checkpoint: Checkpoint | None = None

    @property
    def metadata(self) -> dict:
        """The metadata of a checkpoint of this project, otherwise {}."""
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
        raise UserError("--model_path: is empty; give a checkpoint or a folder")
    if config.model_path:
        files = _read_checkpoints(config)
        return [EvalTarget(file.path, network_in(file, config.model), file) for file in files]
    if (config.model or "").startswith(PREFIX):
        name = network_name(config.model, config.dataset or "CIFAR10")
        return [EvalTarget(Path(name.replace(":", "-")), name)]
    raise UserError("--model_path: required; give the checkpoint, for example .../best_PGD10_acc_model.pth")


def infer_dataset(config: EvalConfig, targets: list[EvalTarget]) -> EvalConfig:
    """Fill in dataset and image size from the metadata of our checkpoints; warn if those differ from the flags.

    Raises UserError if there is no flag and the checkpoints were trained on several datasets or at several sizes.
    """
    trained_on = {target.path: target.metadata["dataset"] for target in targets if target.metadata.get("dataset")}
    dataset = config.dataset or _only_one("--dataset", "on", trained_on.values()) or "CIFAR10"
    for path, other in trained_on.items():
        if other != dataset:
            message = "%s was trained on %s, not on %s; its accuracy is valid only if the classes and their order agree"
            logger.warning(message, path, other, dataset)
    same = (target.metadata for target in targets if trained_on.get(target.path, dataset) == dataset)
    sizes = {each["image_size"] for each in same if "image_size" in each and dataset in ("Folder", "Digits")}
    if config.image_size and sizes - {config.image_size}:
        trained = ", ".join(map(str, sorted(sizes)))
        logger.warning("--image_size %d: the checkpoints were trained at %s", config.image_size, trained)
    return replace(config, dataset=dataset, image_size=config.image_size or _only_one("--image_size", "at", sizes))


def _only_one(flag: str, preposition: str, trained: Iterable) -> str | int | None:
    """Return the dataset or size of all checkpoints, None if unknown; raise UserError for several."""
    values = sorted(set(trained))
    if len(values) > 1:
        raise UserError(f"{flag}: required; the checkpoints were trained {preposition} {', '.join(map(str, values))}")
    return values[0] if values else None


def warn_of_epsilon(targets: Iterable[EvalTarget], eps: float) -> None:
    """Warn about checkpoints that were trained, by their config.json, at another epsilon than ``eps``, in [0, 1]."""
    for path in (target.path for target in targets):
        settings = _settings(path.parent)
        trained, method = settings.get("epsilon"), settings.get("method")
        known = isinstance(trained, int | float) and isinstance(method, str) and method not in WITHOUT_ATTACK
        if known and not math.isclose(trained, 255 * eps, rel_tol=1e-6):
            message = "%s was trained at epsilon %g/255 but is attacked at %g/255 (--eps)"
            logger.warning(message, path, trained, 255 * eps)


def with_missing_classes(splits: Splits, targets: Iterable[EvalTarget], dataset: str) -> Splits:
    """Return splits with the classes of the checkpoints, by name, if the test set has only some of these classes."""
    trained = {tuple(each.metadata.get("classes", ())) for each in targets if each.metadata.get("dataset") == dataset}
    classes = trained.pop() if len(trained) == 1 else ()
    if not {*splits.classes} < {*classes}:
        return splits
    logger.warning("WARNING: %d of the checkpoint's %d classes have test images", len(splits.classes), len(classes))
    labels = torch.tensor([classes.index(name) for name in splits.classes])[splits.test.labels]
    return splits._replace(test=splits.test._replace(labels=labels), classes=classes)


def _settings(run: Path) -> dict:
    """Return a run's config.json; {} if it is missing or damaged."""
    try:
        settings = read_json(run / "config.json")
    except (OSError, ValueError):
        return {}
    return settings if isinstance(settings, dict) else {}


def load_other_network(
    path: str, model: str | None, flag: str, config: EvalConfig, splits: Splits, device: torch.device
) -> nn.Module | None:
    """Load the surrogate or the naturally trained network on the device; None for an empty path."""
    if not path:
        return None
    checkpoint = Checkpoint(path, config.weights, config.normalize)
    target = EvalTarget(checkpoint.path, network_in(checkpoint, model, flag), checkpoint)
    return target.load(config, splits).to(device)


def _find_files(folder: Path) -> list[Path]:
    """Return the best and the last checkpoint of each run in a folder; without runs, the checkpoint files in it."""
    runs = sorted({file.parent for name in (BEST_PGD10, LAST) for file in folder.rglob(name)})
    names = {run: (best_checkpoint(str(_settings(run).get("method"))), LAST) for run in runs}
    files = [run / name for run in runs for name in names[run] if (run / name).exists()]
    files = files or sorted(file for file in folder.iterdir() if file.name.lower().endswith(SUFFIXES))
    if not files:
        raise UserError(f"--model_path {folder}: contains no checkpoint ({', '.join(SUFFIXES)}); give the file")
    return files


def _read_checkpoints(config: EvalConfig) -> list[Checkpoint]:
    """Read the checkpoints of ``--model_path``, each once; files in a folder that are no checkpoints are skipped."""
    folders = {}  # file -> the folder of --model_path that contains it, None if --model_path gives the file itself
    for path in map(Path, config.model_path):
        folders |= dict.fromkeys(_find_files(path), path) if path.is_dir() else {path: None}
    checkpoints, skipped = [], []
    for path, folder in folders.items():
        try:
            checkpoints.append(Checkpoint(path, config.weights, config.normalize))
        except UserError as error:
            if folder is None or path.name in (*BEST, LAST):
                raise
            skipped.append(str(error))
    if skipped and not checkpoints:
        raise UserError("; ".join(dict.fromkeys(skipped)))
    if skipped:
        logger.warning("WARNING: skipped: %s", "; ".join(skipped))
    return checkpoints
