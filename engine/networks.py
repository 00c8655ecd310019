"""Student and teachers of a run, from the names and files that its config gives."""

import torch
from torch import nn

from data import Splits, subset
from data.loader import Batches
from engine.evaluate import evaluate
from methods import WITH_TWO_TEACHERS, WITHOUT_TEACHER
from models import ALIASES, MODELS, build
from models.robustbench import PREFIX
from models.teachers import load_from_zoo, load_teacher
from models.weights import load_network, load_weights
from utils.config import TrainConfig
from utils.errors import UserError
from utils.log import logger
from utils.names import canonical

CHECKED_IMAGES = 256


def network_name(name: str) -> str:
    """Our name of a network, or ``robustbench:<Name>`` as it is; raises UserError with the nearest names."""
    return name if name.startswith(PREFIX) else canonical(name, MODELS, ALIASES, "--model")


def make_network(name: str, path: str, dataset: str, splits: Splits) -> nn.Module:
    """Build a network for the data; with the weights of ``path`` where that is not empty."""
    classes = len(splits.classes)
    if name.startswith(PREFIX):
        network = load_from_zoo(name, dataset, classes)
        return load_weights(network, path) if path else network
    if path:
        return load_network(name, classes, path, splits.image_size)
    return build(name, classes, splits.image_size)


def make_teachers(config: TrainConfig, splits: Splits, device: torch.device) -> list[nn.Module]:
    """The robust teacher of a distillation, then the standard one where the method has two; each is checked once."""
    wanted = []
    if config.method not in WITHOUT_TEACHER:
        wanted.append((config.teacher_model, config.teacher_path))
    if config.method in WITH_TWO_TEACHERS:
        if not config.std_teacher_path:
            raise UserError(
                f"--std_teacher_path: {config.method} needs a naturally trained teacher; train one with "
                f"--method Natural --model {config.std_teacher_model}"
            )
        wanted.append((config.std_teacher_model, config.std_teacher_path))
    teachers = []
    for name, path in wanted:
        teacher = load_teacher(name, config.dataset, len(splits.classes), path, splits.image_size).to(device)
        _check(teacher, name, splits, config, device)
        teachers.append(teacher)
    return teachers


def _check(teacher: nn.Module, name: str, splits: Splits, config: TrainConfig, device: torch.device) -> None:
    """Say how well the teacher reads clean test images; raise UserError where it hardly reads any."""
    score = evaluate(teacher, Batches(subset(splits.test, CHECKED_IMAGES, seed=0), config.bs, device=device))
    logger.info("teacher %s: %.2f %% of %d clean test images", name, score.accuracy, score.n)
    chance = 100 / len(splits.classes)
    too_low = min(2 * chance, (100 + chance) / 2)  # of two classes, twice chance is everything
    if score.accuracy < too_low and not config.no_teacher_check:
        raise UserError(
            f"--teacher_model {name}: reads only {score.accuracy:.1f} % of {score.n} clean test images (chance is "
            f"{chance:.1f} %): it was trained on other classes, in another order, or on images normalised outside the "
            "network; --no_teacher_check goes on with it"
        )
