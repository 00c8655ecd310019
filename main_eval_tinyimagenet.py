"""Evaluate saved checkpoints under attack on Tiny-ImageNet."""

from utils.cli import run_command
from utils.config import TinyEvalConfig
from utils.flags import parse


def main() -> None:
    """Run what the command line describes."""
    from engine.choices import CHOICES  # here, so that a missing package is one error line
    from engine.evaluation.run import run_evaluation

    run_evaluation(parse(TinyEvalConfig, description=__doc__, choices=CHOICES).config)


if __name__ == "__main__":
    run_command(main)
