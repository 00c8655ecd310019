"""Train or distill an adversarially robust classifier on CIFAR-10, CIFAR-100 or your own images."""

from utils.cli import run_command
from utils.config import TrainConfig
from utils.flags import parse


def main(config_class: type[TrainConfig], description: str) -> None:
    """Train what the command line describes."""
    from engine.choices import CHOICES  # here, so that a missing package is one error line
    from engine.training.run import train

    config, given = parse(config_class, description=description, choices=CHOICES)
    train(config, given)


if __name__ == "__main__":
    run_command(lambda: main(TrainConfig, __doc__))
