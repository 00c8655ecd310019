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
from collections.abc import Iterable
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
COST = "cost"


@dataclass(frozen=True)
class CostConfig(TrainConfig):
    """A training, and what main.py does not need to know of it."""

    classes: int | None = flag(None, "number of classes; default: the dataset's", group=COST, check=at_least(2))
    rate: float | None = flag(None, "GFLOP/s of training, as scripts/benchmark step prints", group=COST, check=above(0))


class Cost:
    """GFLOP of a training with resolved names; raises UserError if the size of the data is unknown."""

    def __init__(self, config: TrainConfig, classes: int | None = None):
        known = KNOWN.get(config.dataset)
        available = TRAIN_IMAGES.get(config.dataset, math.inf) - config.val_size
        tested = min(config.limit_test or math.inf, known.test_images if known else math.inf)
        sizes = {
            "--limit_train": min(config.limit_train or math.inf, available),
            "--limit_test": config.val_size or tested,
            "--image_size": config.image_size or (known and known.image_size) or math.inf,
            "--classes": classes or (known and known.classes) or math.inf,
        }
        if missing := " ".join(name for name, size in sizes.items() if size == math.inf):
            raise UserError(f"--dataset {config.dataset}: its size is unknown before it is read; give {missing}")
        self.images, self.validation_images, image_size, classes = sizes.values()
        self.epochs, self.validations = config.epochs, math.ceil(config.epochs / config.eval_every)
        teachers = 0 if config.method in WITHOUT_TEACHER else 2 if config.method in WITH_TWO_TEACHERS else 1
        teachers = (config.teacher_model, config.std_teacher_model)[:teachers]
        names = (config.model, *(architecture_of(name) for name in teachers))
        self.forward = {name: count_forward(name, classes, image_size) for name in names}
        self.validation = VALIDATION_PASSES * self.forward[config.model]
        # Only these fields decide the count, so that runs which differ in others are counted once.
        counted = {spec.name for spec in fields(TrainConfig) if spec.metadata["group"] in (NETWORKS, METHOD, ATTACK)}
        values = {name: getattr(config, name) for name in counted if not name.endswith("path")}
        self.begin, self.first, self.later = count_steps(TrainConfig(**values), names, classes, image_size)

    @property
    def total(self) -> float:
        """GFLOP of the whole training."""
        begin = min(self.begin, self.epochs)
        steps = begin * self.first + (self.epochs - begin) * self.later
        return self.images * steps + self.validation_images * self.validations * self.validation

    def log(self) -> None:
        """Log the parts."""
        for name, work in self.forward.items():
            logger.info("%s, one forward pass of an image: %.4g GFLOP", name, work)
        logger.info("training step, per image: %.4g GFLOP", self.first)
        if self.later != self.first:
            logger.info("training step from epoch %d on, per image: %.4g GFLOP", self.begin + 1, self.later)
        logger.info("validation, per image: at most %.4g GFLOP", self.validation)
        images = f"{self.images:,} training and {self.validation_images:,} validation images"
        logger.info("%d epochs, %s", self.epochs, images)


@cache
def count_forward(name: str, classes: int, image_size: int) -> float:
    """GFLOP of a network's forward pass per image; its gradient to the image costs as much again."""
    with torch.device("meta"), torch.no_grad():
        network = build(name, classes, image_size).eval()
        return gflop(lambda: network(torch.rand(IMAGES, 3, image_size, image_size))) / IMAGES


@cache
def count_steps(config: TrainConfig, names: tuple[str, ...], classes: int, image_size: int) -> tuple:
    """The epoch, from 0, at which introspection begins, and GFLOP of a training step per image before and from it.

    For a method without introspection the epoch is infinite.
    """
    with torch.device("meta"):
        student, *teachers = (build(name, classes, image_size) for name in names)
        teachers = [teacher.eval().requires_grad_(False) for teacher in teachers]
        method, optimizer = METHODS[config.method](config), torch.optim.SGD(student.parameters(), lr=1e-3)
        attack = {"epsilon": 8 / 255, "step_size": 2 / 255, "steps": config.num_steps, "attack_bn": config.attack_bn}
        trainer = Trainer(student, teachers, method, optimizer, **attack)
        x, y = torch.rand(IMAGES, 3, image_size, image_size), torch.randint(classes, (IMAGES,))
        begin = getattr(method, "keywords", {}).get("begin", math.inf)
        return begin, *(gflop(lambda epoch=epoch: trainer.step(x, y, epoch)) / IMAGES for epoch in (0, begin))


def listed(lines: Iterable[str]) -> list[Cost]:
    """Costs of the commands of main.py and main_tiny.py among the lines; raises UserError if there are none."""
    matches = [match for line in lines if (match := COMMAND.match(line))]
    if not matches:
        raise UserError("standard input: has no command of main.py or main_tiny.py; --list of a script prints commands")
    configs = {None: TrainConfig, "_tiny": TinyTrainConfig}
    commands = [(configs[match[1]], shlex.split(match.string[match.end() :])) for match in matches]
    return [Cost(resolve(*parse(kind, flags, description="", choices={}))[0]) for kind, flags in commands]


def cost(argv: list[str]) -> None:
    """Count the training of the flags in ``argv``, or with - those of standard input."""
    config, given = parse(CostConfig, [arg for arg in argv if arg != "-"], description=__doc__, choices=CHOICES)
    costs = listed(sys.stdin) if "-" in argv else [Cost(resolve(config, given)[0], config.classes)]
    if "-" not in argv:
        costs[0].log()
    total = sum(each.total for each in costs)
    logger.info("%d training%s: at most %.4g GFLOP", len(costs), "s"[: len(costs) - 1], total)
    if config.rate:
        logger.info("at %g GFLOP/s: %.4g hours", config.rate, total / config.rate / 3600)


if __name__ == "__main__":
    run_command(lambda: cost(sys.argv[1:]))
