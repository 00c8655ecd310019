"""What a training costs, counted before it begins: python scripts/cost.py [flags]

A step is carried out on tensors that have a shape and no content, and its multiplications and additions are counted, as
scripts/benchmark.py counts them. Hours are that count over --rate: no speed is assumed.
"""

import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # this file is run from its folder

from data import dataset_name
from engine.choices import CHOICES
from engine.export.robustbench import KNOWN
from engine.training.trainer import Trainer
from methods import ALIASES, METHODS, WITH_TWO_TEACHERS, WITHOUT_TEACHER
from models import build
from scripts.measure import gflop, passes
from utils.cli import run_command
from utils.config import TrainConfig
from utils.errors import UserError
from utils.flags import above, at_least, between, check_values, flag, parse
from utils.log import logger
from utils.names import canonical

TRAIN_IMAGES = {"CIFAR10": 50_000, "CIFAR100": 50_000, "Tiny_Image": 100_000, "Digits": 1437}
IMAGES = 2  # counted on, since BatchNorm in train mode takes no single one everywhere
# Of an image that is scored after an epoch and that nothing fools: a clean pass, ten steps of two, and what they found
# on both copies of the network.
JUDGING_PASSES = 23
EPSILON, STEP_SIZE = 8 / 255, 2 / 255  # no count depends on them
TRAINING, DATA, SPEED = "training", "data", "speed"


@dataclass(frozen=True)
class Cost:
    """Whose cost is counted."""

    method: str = flag("DGAD", "training method", group=TRAINING)
    model: str = flag("resnet18", "student", group=TRAINING)
    teacher_model: str = flag("wideresnet34_10", "teacher", group=TRAINING)
    std_teacher_model: str = flag("resnet18", "second teacher of AKD2 and IAD-II", group=TRAINING)
    iad_begin: int | None = flag(
        None,
        "first epoch with introspection (the method's when not given)",
        name="IAD_begin",
        group=TRAINING,
        check=at_least(0),
    )
    num_steps: int = flag(10, "steps of the attack", group=TRAINING, check=at_least(1))
    epochs: int = flag(200, "passes over the training set", group=TRAINING, check=at_least(1))
    runs: int = flag(1, "how many such runs, of several seeds for example", group=TRAINING, check=at_least(1))
    dataset: str = flag("CIFAR10", "data set: how many images, of what size and classes", group=DATA)
    train_images: int | None = flag(
        None, "training images (the data set's when not given)", group=DATA, check=at_least(1)
    )
    test_images: int | None = flag(
        None, "images that judge an epoch (the data set's when not given)", group=DATA, check=at_least(1)
    )
    classes: int | None = flag(None, "classes (the data set's when not given)", group=DATA, check=at_least(2))
    image_size: int | None = flag(
        None, "side of the images (the data set's when not given)", group=DATA, check=between(16, 1024)
    )
    rate: float | None = flag(
        None,
        "GFLOP/s that training reaches on your hardware, as scripts/benchmark.py step prints it",
        group=SPEED,
        check=above(0),
    )

    def __post_init__(self):
        check_values(self)


class Counted(NamedTuple):
    """One training step: passes through each network, and arithmetic in GFLOP an image."""

    passes: dict[str, int]
    gflop: float


def cost(config: Cost) -> None:
    """Log the count of a step, of an epoch's scores and of the whole training, and the hours where a rate is given.

    Raises UserError for an unknown name, and where the size of the data is not known.
    """
    config = _resolved(config)
    for name in _names(config):
        logger.info("%s, one forward pass of an image: %.4g GFLOP", name, count_forward(config, name))
    first, later, begin = count_training(config)
    judged = JUDGING_PASSES * count_forward(config, config.model)
    trained = begin * first.gflop + (config.epochs - begin) * later.gflop
    total = config.runs * (config.train_images * trained + config.test_images * config.epochs * judged)
    _tell_step("a training image", first)
    if later != first:
        _tell_step(f"from epoch {begin} on", later)
    logger.info("a judged image, at most: %.4g GFLOP", judged)
    data = f"{config.train_images:,} training and {config.test_images:,} judged images"
    logger.info("%d run(s) of %d epochs, %s: at most %.4g GFLOP", config.runs, config.epochs, data, total)
    if config.rate:
        logger.info("at %g GFLOP/s: %.4g hours", config.rate, total / config.rate / 3600)
    else:
        logger.info("--rate turns this into hours; scripts/benchmark.py step prints what your hardware reaches")


def count_forward(config: Cost, name: str) -> float:
    """GFLOP of a network's forward pass for one image; its gradient to the image costs as much again."""
    with torch.device("meta"), torch.no_grad():
        network = build(name, config.classes, config.image_size).eval()
        return gflop(lambda: network(_images(config))) / IMAGES


def count_training(config: Cost) -> tuple[Counted, Counted, int]:
    """A step before and from the epoch at which introspection begins, and how many epochs of the run lie before it.

    Both are equal, and all epochs lie before it, for a method without introspection.
    """
    with torch.device("meta"):
        trainer = _trainer(config)
        begin = getattr(trainer.method, "keywords", {}).get("begin", config.epochs)
        first, later = (_counted(trainer, config, epoch) for epoch in (0, begin))
    return first, later, min(begin, config.epochs)


def _resolved(config: Cost) -> Cost:
    config = replace(
        config,
        method=canonical(config.method, METHODS, ALIASES, "--method"),
        dataset=dataset_name(config.dataset),
    )
    known = KNOWN.get(config.dataset)
    sizes = {"train_images": TRAIN_IMAGES.get(config.dataset)}
    for name in ("test_images", "classes", "image_size"):
        sizes[name] = getattr(known, name, None)
    sizes = {name: getattr(config, name) or size for name, size in sizes.items()}
    missing = [f"--{name}" for name, size in sizes.items() if size is None]
    if missing:
        raise UserError(f"--dataset {config.dataset}: has no size of its own; give {' '.join(missing)}")
    return replace(config, **sizes)


def _names(config: Cost) -> list[str]:
    """The networks of a step: the student, then its teachers."""
    names = [config.model, config.teacher_model, config.std_teacher_model]
    return names[: 1 if config.method in WITHOUT_TEACHER else 3 if config.method in WITH_TWO_TEACHERS else 2]


def _trainer(config: Cost) -> Trainer:
    student, *teachers = (build(name, config.classes, config.image_size) for name in _names(config))
    teachers = [teacher.eval().requires_grad_(False) for teacher in teachers]
    method = METHODS[config.method](TrainConfig(iad_begin=config.iad_begin))
    optimizer = torch.optim.SGD(student.parameters(), lr=1e-3)
    return Trainer(student, teachers, method, optimizer, epsilon=EPSILON, step_size=STEP_SIZE, steps=config.num_steps)


def _counted(trainer: Trainer, config: Cost, epoch: int) -> Counted:
    guides = {f"teacher {k}": view for k, view in enumerate(trainer.teachers)}
    networks = {"student": trainer.student, "student's view": trainer.student_eval, **guides}
    x, y = _images(config), torch.randint(config.classes, (IMAGES,))
    counts = {}
    work = gflop(lambda: counts.update(passes(networks, lambda: trainer.step(x, y, epoch))))
    return Counted(counts, work / IMAGES)


def _images(config: Cost) -> torch.Tensor:
    return torch.rand(IMAGES, 3, config.image_size, config.image_size)


def _tell_step(title: str, step: Counted) -> None:
    shown = ", ".join(f"{name} {count}" for name, count in step.passes.items())
    logger.info("%s: %s; %.4g GFLOP", title, shown, step.gflop)


if __name__ == "__main__":
    run_command(lambda: cost(parse(Cost, description=__doc__, choices=CHOICES).config))
