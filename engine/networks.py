"""Student and teachers of a run, from the names and files in its config."""

import math
import zlib
from pathlib import Path

import torch
from torch import nn

from data import TEST_SUBSET_SEED, Splits, decode_files, subset
from data.loader import Batches
from engine.accuracy import CAUSES_OF_CHANCE_LEVEL, evaluate, minimum_accuracy
from engine.checkpoint import best_checkpoint
from methods import WITH_TWO_TEACHERS, WITHOUT_TEACHER
from models import ALIASES, MODELS, build
from models.robustbench import PREFIX
from models.teachers import find_teacher, load_robustbench, load_teacher, training_command
from models.weights import identify_architecture, load_network, read_metadata
from utils.config import TrainConfig
from utils.errors import UserError
from utils.log import logger
from utils.names import canonical

TEACHER_CHECK_IMAGES = 256


def network_name(name: str) -> str:
    """Return our name of a network; ``robustbench:<Name>`` is unchanged. Raises UserError with the nearest names."""
    return name if name.startswith(PREFIX) else canonical(name, MODELS, ALIASES, "--model")


def network_in(path: str | Path, requested: str | None, flag: str = "--model") -> str:
    """Return the name of the network in a checkpoint: ``requested``, else from its metadata, else from its weights.

    Raises UserError, naming ``flag``, if the file contradicts ``requested`` or the network is unknown.
    """
    stored = read_metadata(path).get("model")
    if requested is None:
        name = stored or identify_architecture(path)
        if name is None:
            raise UserError(f"{flag}: required: {path} does not name its network, and no known network has its weights")
        return name
    name = network_name(requested)
    if stored not in (None, name):
        raise UserError(f"{flag} {requested}: {path} contains a {stored}; leave the flag out, or use {flag} {stored}")
    return name


def make_network(name: str, path: str, dataset: str, splits: Splits) -> nn.Module:
    """Build a network for the dataset, with the weights of ``path`` unless it is empty."""
    classes = len(splits.classes)
    if name.startswith(PREFIX):
        return load_robustbench(name, dataset, classes, path)
    if path:
        return load_network(name, classes, path, splits.image_size)
    return build(name, classes, splits.image_size)


def find_teachers(config: TrainConfig) -> list[tuple[str, Path | None]]:
    """Return name and file of the robust teacher, then of the standard one of a method with two; none without teacher.

    Raises UserError if one is missing, before any dataset is read.
    """
    if config.method in WITHOUT_TEACHER:
        return []
    data_flags = f" --data_root {config.data_root}" * bool(config.data_root)
    data_flags += f" --image_size {config.image_size}" * bool(config.image_size)
    file = find_teacher(config.teacher_model, config.dataset, config.teacher_path, data_flags=data_flags)
    teachers = [(config.teacher_model, file)]
    if config.method in WITH_TWO_TEACHERS:
        if not config.std_teacher_path:
            command = training_command("Natural", config.std_teacher_model, config.dataset, data_flags)
            raise UserError(
                f"--std_teacher_path: {config.method} needs a naturally trained teacher; train one: {command} "
                f"(then --std_teacher_path .../{best_checkpoint('Natural')})"
            )
        file = find_teacher(config.std_teacher_model, config.dataset, config.std_teacher_path)
        teachers.append((config.std_teacher_model, file))
    return teachers


def make_teachers(config: TrainConfig, files: list, splits: Splits, device: torch.device) -> list[nn.Module]:
    """Load the teachers that :func:`find_teachers` found, and check their accuracy."""
    teachers = []
    for kind, (name, path) in zip(("robust", "standard"), files, strict=False):
        image_size = read_metadata(path).get("image_size") if path else None
        if image_size not in (None, splits.image_size):
            logger.warning("%s was trained at --image_size %d, not %d", path, image_size, splits.image_size)
        teacher = load_teacher(name, config.dataset, len(splits.classes), path, splits.image_size).to(device)
        _check(teacher, kind, name, splits, config, device)
        teachers.append(teacher)
    return teachers


def checksum(network: nn.Module) -> int:
    """Return a CRC-32 of the network's weights."""
    total = 0
    for value in network.state_dict().values():
        total = zlib.crc32(value.detach().cpu().contiguous().numpy(), total)
    return total


def _check(teacher: nn.Module, kind: str, name: str, splits: Splits, config: TrainConfig, device: torch.device) -> None:
    """Log the teacher's accuracy on clean test images; raise UserError if it is close to chance level."""
    (images,) = decode_files(subset(splits.test, TEACHER_CHECK_IMAGES, TEST_SUBSET_SEED))
    score = evaluate(teacher, Batches(images, config.bs, device=device))
    logger.info("%s teacher %s: %.2f %% of %d clean test images", kind, name, score.accuracy, score.n)
    if not math.isfinite(score.loss):
        raise UserError(f"--teacher_model {name}: its logits are nan or inf on clean test images: the file is damaged")
    classes = len(splits.classes)
    if score.accuracy < minimum_accuracy(classes) and not config.no_teacher_check:
        raise UserError(
            f"--teacher_model {name}: classifies only {score.accuracy:.1f} % of {score.n} clean test images correctly "
            f"(chance level {100 / classes:.1f} %): {CAUSES_OF_CHANCE_LEVEL}; --no_teacher_check accepts it"
        )
