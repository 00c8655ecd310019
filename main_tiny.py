"""Train or distil a classifier that withstands adversarial examples, on Tiny-ImageNet."""

from engine.names import CHOICES
from engine.run import train
from utils.command import run_command
from utils.config import TinyTrainConfig
from utils.flags import parse

if __name__ == "__main__":
    run_command(lambda: train(*parse(TinyTrainConfig, description=__doc__, choices=CHOICES)))
