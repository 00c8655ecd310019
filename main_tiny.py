"""Train or distill an adversarially robust classifier on Tiny-ImageNet."""

from main import main
from utils.cli import run_command
from utils.config import TinyTrainConfig

if __name__ == "__main__":
    run_command(lambda: main(TinyTrainConfig, __doc__))
