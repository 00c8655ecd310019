"""What listed trainings cost: bash scripts/reproduce/TABLE.sh --list | python scripts/reproduce/count.py

Reads commands of main.py and main_tiny.py from standard input, one a line, and adds up the arithmetic that
scripts/cost.py counts for each: at most, since images that are fooled early cost less. Other lines count nothing.
"""

import re
import shlex
import sys
from collections.abc import Iterable
from functools import cache
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # this file is run from its folder

from engine.export.robustbench import KNOWN
from engine.training.settings import resolve
from models.teachers import architecture_of
from scripts.check_commands import TRAINING
from scripts.cost import JUDGING_PASSES, TRAIN_IMAGES, Cost, count_forward, count_training
from utils.cli import run_command
from utils.errors import UserError
from utils.flags import parse
from utils.log import logger

COMMAND = re.compile(r"\S*python\S* (\S*/)?main(_tiny)?\.py ")


def count(lines: Iterable[str]) -> None:
    """Log how many trainings the lines hold and their GFLOP. Raises UserError where there are none."""
    counts = [gflop_of(shlex.split(line)) for line in lines if COMMAND.match(line)]
    if not counts:
        raise UserError("standard input: no command of main.py or main_tiny.py; --list of a script prints some")
    logger.info("%d trainings: at most %.3g GFLOP", len(counts), sum(counts))


def gflop_of(words: list[str]) -> float:
    """GFLOP of one command, at most; raises UserError for what the command line does not take."""
    config, given = parse(TRAINING[Path(words[1]).name], words[2:], description="", choices={})
    config, _ = resolve(config, given)
    if config.dataset not in TRAIN_IMAGES:
        raise UserError(f"--dataset {config.dataset}: its size is not known before it is read")
    names = (architecture_of(name, config.dataset) for name in (config.teacher_model, config.std_teacher_model))
    length = (config.num_steps, config.epochs, config.iad_begin)
    trained, judged = passes_of(config.dataset, config.method, config.model, *names, *length)
    images = min(config.limit_train or TRAIN_IMAGES[config.dataset], TRAIN_IMAGES[config.dataset])
    test = min(config.limit_test or KNOWN[config.dataset].test_images, KNOWN[config.dataset].test_images)
    return images * trained + test * config.epochs * judged


@cache
def passes_of(
    dataset: str, method: str, model: str, teacher: str, second: str, num_steps: int, epochs: int, iad_begin: int | None
) -> tuple[float, float]:
    """GFLOP of one training image over all epochs, and of one image that judges an epoch."""
    known = KNOWN[dataset]
    shape = {"classes": known.classes, "image_size": known.image_size}
    networks = {"model": model, "teacher_model": teacher, "std_teacher_model": second}
    length = {"num_steps": num_steps, "epochs": epochs, "iad_begin": iad_begin}
    config = Cost(dataset=dataset, method=method, **length, **networks, **shape)
    first, later, begin = count_training(config)
    trained = begin * first.gflop + (epochs - begin) * later.gflop
    return trained, JUDGING_PASSES * count_forward(config, model)


if __name__ == "__main__":
    run_command(lambda: count(sys.stdin))
