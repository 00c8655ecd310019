"""Count what trainings cost before they start: python scripts/cost.py [flags of main.py] [--rate R]
With - it reads commands of main.py and main_tiny.py from standard input, one per line, and ignores other lines:
  bash scripts/sweep.sh --list OPTIONS | python scripts/cost.py - [--rate R]

It executes a training step on tensors without content and counts multiplications and additions. The result is an upper
bound: validation costs less for images that are fooled early. Hours are this count divided by --rate.
"""

import math
import re
import shlex
import sys
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # this file is run from its folder

from engine.choices import CHOICES
from engine.export.robustbench import KNOWN
from engine.training.settings import resolve
from engine.training.trainer import Trainer
from methods import METHODS, WITH_TWO_TEACHERS, WITHOUT_TEACHER
from models import build
from models.teachers import architecture_of
from scripts.benchmark.measure import gflop
from utils.cli import run_command
from utils.config import ATTACK, METHOD, NETWORKS, TinyTrainConfig, TrainConfig
from utils.errors import UserError
from utils.flags import above, at_least, flag, parse
from utils.log import logger

TRAIN_IMAGES = {"CIFAR10": 50_000, "CIFAR100": 50_000, "Tiny_Image": 100_000, "Digits": 1437}
IMAGES = 2  # in the counted step; BatchNorm in train mode needs more than one
VALIDATION_PASSES = 23  # a clean forward, ten PGD steps of two passes, and a forward of the network and of its copy
COMMAND = re.compile(r"\S*python\S* (?:\S*/)?main(_tiny)?\.py ")


@dataclass(frozen=True)
class CostConfig(TrainConfig):
    """A training, and what main.py does not need to know of it."""

    classes: int | None = flag(None, "number of classes; default: the dataset's", group="cost", check=at_least(2))
    rate: float | None = flag(
        None, "GFLOP/s of training, as scripts/benchmark step prints", group="cost", check=above(0)
    )


def training_cost(config: TrainConfig, classes: int | None = None) -> float:
    """Return GFLOP of a training with resolved names; raises UserError if the size of the data is unknown."""
    known = KNOWN.get(config.dataset)
    available = TRAIN_IMAGES.get(config.dataset, math.inf) - config.val_size
    sizes = {
        "--limit_train": min(config.limit_train or math.inf, available),
        "--limit_test": config.val_size or min(config.limit_test or math.inf, known.test_images if known else math.inf),
        "--image_size": config.image_size or (known.image_size if known else math.inf),
        "--classes": classes or (known.classes if known else math.inf),
    }
    if missing := " ".join(name for name, size in sizes.items() if size == math.inf):
        raise UserError(f"--dataset {config.dataset}: its size is unknown before it is read; give {missing}")
    images, validation_images, image_size, classes = sizes.values()
    # Only these fields decide the count, so that runs which differ in others are counted once.
    counted = {spec.name for spec in fields(TrainConfig) if spec.metadata["group"] in (NETWORKS, METHOD, ATTACK)}
    values = {name: getattr(config, name) for name in counted if not name.endswith("path")}
    forward, first, later, begin = count_step(TrainConfig(dataset=config.dataset, **values), classes, image_size)
    validation = VALIDATION_PASSES * forward
    message = "%s: GFLOP per image: training step %.4g, with introspection %.4g, validation at most %.4g"
    logger.info(message, config.method, first, later, validation)
    begin = min(begin, config.epochs)
    steps = begin * first + (config.epochs - begin) * later
    return images * steps + validation_images * math.ceil(config.epochs / config.eval_every) * validation


@cache
def count_step(config: TrainConfig, classes: int, image_size: int) -> tuple[float, float, float, float]:
    """Count a forward pass of the student and a training step, on tensors without content.

    Returns GFLOP per image of the forward pass and of a step before and with introspection, and the epoch, from 0, at
    which introspection begins: infinite for a method without it.
    """
    teachers = 0 if config.method in WITHOUT_TEACHER else 2 if config.method in WITH_TWO_TEACHERS else 1
    names = (config.teacher_model, config.std_teacher_model)[:teachers]
    with torch.device("meta"):
        student = build(config.model, classes, image_size)
        architectures = [architecture_of(name) for name in names]
        teachers = [build(name, classes, image_size).eval().requires_grad_(False) for name in architectures]
        method, optimizer = METHODS[config.method](config), torch.optim.SGD(student.parameters(), lr=1e-3)
        attack = {"epsilon": 8 / 255, "step_size": 2 / 255, "steps": config.num_steps, "attack_bn": config.attack_bn}
        trainer = Trainer(student, teachers, method, optimizer, **attack)
        x, y = torch.rand(IMAGES, 3, image_size, image_size), torch.randint(classes, (IMAGES,))
        begin = getattr(method, "keywords", {}).get("begin", math.inf)
        first, later = (gflop(lambda epoch=epoch: trainer.step(x, y, epoch)) / IMAGES for epoch in (0, begin))
        return gflop(lambda: student.eval()(x)) / IMAGES, first, later, begin


def cost(argv: list[str]) -> None:
    """Count the training of the flags in ``argv``, or with - those of the commands in standard input."""
    config, given = parse(CostConfig, [arg for arg in argv if arg != "-"], description=__doc__, choices=CHOICES)
    trainings = [(config, given)]
    if "-" in argv:
        matches = [match for line in sys.stdin if (match := COMMAND.match(line))]
        commands = [(match[1], shlex.split(match.string[match.end() :])) for match in matches]
        configs = {None: TrainConfig, "_tiny": TinyTrainConfig}
        trainings = [parse(configs[tiny], flags, description="", choices={}) for tiny, flags in commands]
    if not trainings:
        raise UserError("standard input: has no command of main.py or main_tiny.py; --list of a script prints commands")
    total = sum(training_cost(resolve(*each)[0], config.classes) for each in trainings)
    logger.info("%d training%s: at most %.4g GFLOP", len(trainings), "s" * (len(trainings) > 1), total)
    if config.rate:
        logger.info("at %g GFLOP/s: %.4g hours", config.rate, total / config.rate / 3600)


if __name__ == "__main__":
    run_command(lambda: cost(sys.argv[1:]))
