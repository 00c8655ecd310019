"""Student and teachers of a run, from the names and files that its config gives."""

import math
import zlib
from pathlib import Path

import torch
from torch import nn

from data import Splits, subset
from data.loader import Batches
from engine.accuracy import evaluate
from methods import WITH_TWO_TEACHERS, WITHOUT_TEACHER
from models import ALIASES, MODELS, build
from models.robustbench import PREFIX
from models.teachers import find_teacher, load_robustbench, load_teacher, training_command
from models.weights import identify_architecture, load_network, read_metadata
from utils.config import TrainConfig
from utils.errors import UserError
from utils.log import logger
from utils.names import canonical

CHECKED_IMAGES = 256


def network_name(name: str) -> str:
    """Our name of a network, or ``robustbench:<Name>`` as it is; raises UserError with the nearest names."""
    return name if name.startswith(PREFIX) else canonical(name, MODELS, ALIASES, "--model")


def network_in(path: str | Path, asked: str | None, flag: str = "--model") -> str:
    """Name of the network in a checkpoint: what ``asked`` says, else the file itself, else its keys and shapes.

    Raises UserError, naming ``flag``, where the file contradicts what was asked or nothing tells.
    """
    told = read_metadata(path).get("model")
    if asked is None:
        name = told or identify_architecture(path)
        if name is None:
            raise UserError(
                f"{flag}: needed: {path} does not say which network it holds, and none of ours has its keys"
            )
        return name
    name = network_name(asked)
    if told not in (None, name):
        raise UserError(f"{flag} {asked}: {path} holds a {told}; leave the flag out, or say {flag} {told}")
    return name


def make_network(name: str, path: str, dataset: str, splits: Splits) -> nn.Module:
    """Build a network for the data; with the weights of ``path`` where that is not empty."""
    classes = len(splits.classes)
    if name.startswith(PREFIX):
        return load_robustbench(name, dataset, classes, path)
    if path:
        return load_network(name, classes, path, splits.image_size)
    return build(name, classes, splits.image_size)


def find_teachers(config: TrainConfig) -> list[tuple[str, Path | None]]:
    """Name and file of the robust teacher of a distillation, then of the standard one where the method has two.

    Raises UserError where one is missing, before any data are read.
    """
    if config.method in WITHOUT_TEACHER:
        return []
    data_flags = f" --data_root {config.data_root}" * bool(config.data_root)
    data_flags += f" --image_size {config.image_size}" * bool(config.image_size)
    file = find_teacher(config.teacher_model, config.dataset, config.teacher_path, data_flags=data_flags)
    found = [(config.teacher_model, file)]
    if config.method in WITH_TWO_TEACHERS:
        if not config.std_teacher_path:
            command = training_command("Natural", config.std_teacher_model, config.dataset, data_flags)
            raise UserError(
                f"--std_teacher_path: {config.method} needs a naturally trained teacher; train one: {command}"
            )
        file = find_teacher(config.std_teacher_model, config.dataset, config.std_teacher_path)
        found.append((config.std_teacher_model, file))
    return found


def make_teachers(config: TrainConfig, found: list, splits: Splits, device: torch.device) -> list[nn.Module]:
    """Load what :func:`find_teachers` found, and check each once."""
    teachers = []
    for kind, (name, path) in zip(("robust", "standard"), found, strict=False):
        trained = read_metadata(path).get("image_size") if path else None
        if trained not in (None, splits.image_size):
            logger.warning("%s was trained at --image_size %d, these are %d", path, trained, splits.image_size)
        teacher = load_teacher(name, config.dataset, len(splits.classes), path, splits.image_size).to(device)
        _check(teacher, kind, name, splits, config, device)
        teachers.append(teacher)
    return teachers


def checksum(network: nn.Module) -> int:
    """A number that tells one network's weights from another's."""
    total = 0
    for value in network.state_dict().values():
        total = zlib.crc32(value.detach().cpu().contiguous().numpy(), total)
    return total


def _check(teacher: nn.Module, kind: str, name: str, splits: Splits, config: TrainConfig, device: torch.device) -> None:
    """Say how accurate the teacher is on clean test images; raise UserError where it is hardly better than chance."""
    score = evaluate(teacher, Batches(subset(splits.test, CHECKED_IMAGES, seed=0), config.bs, device=device))
    logger.info("%s teacher %s: %.2f %% of %d clean test images", kind, name, score.accuracy, score.n)
    if not math.isfinite(score.loss):
        raise UserError(f"--teacher_model {name}: its logits are nan or inf on clean test images: the file is damaged")
    chance = 100 / len(splits.classes)
    too_low = min(2 * chance, (100 + chance) / 2)  # of two classes, twice chance is everything
    if score.accuracy < too_low and not config.no_teacher_check:
        raise UserError(
            f"--teacher_model {name}: classifies only {score.accuracy:.1f} % of {score.n} clean test images correctly "
            f"(chance is {chance:.1f} %): hardly trained, or on other classes, in another order, or on images "
            "normalised outside the network; --no_teacher_check goes on with it"
        )
