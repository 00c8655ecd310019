"""What an evaluation is about: the checkpoints that its flags name, and the networks in them."""

import math
from collections.abc import Callable, Iterable
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
    """A network to evaluate: its file, or a name of RobustBench's zoo in the place of one; ``load`` reads it."""

    path: Path
    name: str
    load: Callable[[], nn.Module]


def find_targets(config: EvalConfig) -> dict[Path, str]:
    """The networks that ``--model_path`` and ``--model`` name, by the files they lie in.

    Raises UserError where a file is missing, holds an unknown network or another one than was asked for.
    """
    paths = _checkpoints(config.model_path)
    if paths:
        return {path: network_in(path, config.model) for path in paths}
    if (config.model or "").startswith(PREFIX):
        return {Path(config.model.replace(":", "-")): network_name(config.model)}
    raise UserError("--model_path: needed; name the checkpoint, for example .../best_PGD10_acc_model.pth")


def infer_dataset(config: EvalConfig, paths: list[Path]) -> EvalConfig:
    """Take data set and image size from what our own checkpoints say of themselves; say where they come from others."""
    sizes = set()
    told = {path: read_metadata(path) if path.exists() else {} for path in paths}
    if config.dataset is None:
        datasets = {metadata["dataset"] for metadata in told.values() if "dataset" in metadata} or {"CIFAR10"}
        if len(datasets) > 1:
            raise UserError(f"--dataset: needed; the checkpoints were trained on {', '.join(sorted(datasets))}")
        config = replace(config, dataset=datasets.pop())
    for path, metadata in told.items():
        if metadata.get("dataset", config.dataset) != config.dataset:
            words = (
                "%s was trained on %s, not on %s: figures make sense only where the classes are the same, in this order"
            )
            logger.warning(words, path, metadata["dataset"], config.dataset)
        elif config.dataset in ("Folder", "Digits") and "image_size" in metadata:
            sizes.add(metadata["image_size"])
    if config.image_size is None and len(sizes) > 1:
        raise UserError(f"--image_size: needed; the checkpoints were trained at {', '.join(map(str, sorted(sizes)))}")
    if config.image_size and sizes - {config.image_size}:
        logger.warning("--image_size %d: trained at %s", config.image_size, ", ".join(map(str, sorted(sizes))))
    return config if config.image_size or not sizes else replace(config, image_size=sizes.pop())


def warn_of_epsilon(paths: Iterable[Path], eps: float) -> None:
    """Say which checkpoints were trained at another epsilon than ``eps``, in [0, 1], as their config.json has it."""
    for path in paths:
        try:
            config = read_json(path.with_name("config.json"))
            trained, attacked = float(config["epsilon"]), config["method"] not in WITHOUT_ATTACK
        except (OSError, ValueError, KeyError, TypeError):
            continue  # nothing is known of it
        here = 255 * eps
        if attacked and not math.isclose(trained, here, rel_tol=1e-6):
            logger.warning("%s was trained at epsilon %g/255 and is attacked at %g/255 (--eps)", path, trained, here)


def load_target(path: Path, name: str, config: EvalConfig, splits: Splits) -> nn.Module:
    """The network of a file or of the zoo for these data, in eval mode, its parameters frozen.

    Raises UserError where the file is unfit, or was trained on the same kind of data with other classes.
    """
    metadata = read_metadata(path) if path.exists() else {}
    classes = metadata.get("classes", list(splits.classes))
    if metadata.get("dataset") == config.dataset and classes != list(splits.classes):
        raise UserError(
            f"{path}: trained on other classes ({', '.join(classes[:3])}, ...), not on those of --data_root "
            f"({', '.join(splits.classes[:3])}, ...)"
        )
    network = make_network(name, str(path) if path.exists() else "", config.dataset, splits)
    return network.eval().requires_grad_(False)


def load_other_network(
    path: str, asked: str | None, flag: str, config: EvalConfig, splits: Splits, device: torch.device
):
    """The network of another checkpoint, a surrogate's or a natural one's, on the device; None without a path."""
    if not path:
        return None
    return load_target(Path(path), network_in(path, asked, flag), config, splits).to(device)


def _checkpoints(words: tuple[str, ...]) -> list[Path]:
    """The files that the words name, a folder's runs by their best and last checkpoint."""
    found = []
    for word in words:
        if not word.strip():
            raise UserError("--model_path: an empty name; name the checkpoint or its folder")
        path = Path(word)
        found += _inside(path) if path.is_dir() else [path]
    return list(dict.fromkeys(found))


def _inside(folder: Path) -> list[Path]:
    runs = sorted({file.parent for name in (BEST_PGD10, LAST) for file in folder.rglob(name)})
    files = [run / name for run in runs for name in (BEST_PGD10, LAST) if (run / name).exists()]
    files = files or sorted(file for file in folder.iterdir() if file.suffix in SUFFIXES)
    if not files:
        raise UserError(f"--model_path {folder}: no checkpoint in that folder ({', '.join(SUFFIXES)})")
    return files
