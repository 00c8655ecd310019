"""Evaluate saved checkpoints under attack on CIFAR-10, CIFAR-100 or your own images."""

from utils.cli import run_command
from utils.config import EvalConfig
from utils.flags import parse


def main(config_class: type[EvalConfig], description: str) -> None:
    """Evaluate what the command line describes."""
    from engine.choices import CHOICES  # here, so that a missing package is one error line
    from engine.evaluation.run import run_evaluation

    run_evaluation(parse(config_class, description=description, choices=CHOICES).config)


if __name__ == "__main__":
    run_command(lambda: main(EvalConfig, __doc__))
