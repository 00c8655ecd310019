"""Train or distil a classifier that withstands adversarial examples, on CIFAR-10, CIFAR-100 or your own images."""

from utils.cli import run_command
from utils.config import TrainConfig
from utils.flags import parse


def main() -> None:
    """What the command line asks for."""
    from engine.choices import CHOICES  # here, so that a missing package is told in one line
    from engine.training.run import train

    train(*parse(TrainConfig, description=__doc__, choices=CHOICES))


if __name__ == "__main__":
    run_command(main)
