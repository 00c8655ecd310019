"""Train or distil a classifier that withstands adversarial examples, on CIFAR-10, CIFAR-100 or your own images."""

from engine.names import CHOICES
from engine.run import train
from utils.command import run_command
from utils.config import TrainConfig
from utils.flags import parse

if __name__ == "__main__":
    run_command(lambda: train(*parse(TrainConfig, description=__doc__, choices=CHOICES)))
