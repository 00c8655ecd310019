"""Evaluate a saved checkpoint under attack, on CIFAR-10, CIFAR-100 or your own images."""

from engine.names import CHOICES
from engine.run_eval import run_evaluation
from utils.command import run_command
from utils.config import EvalConfig
from utils.flags import parse

if __name__ == "__main__":
    run_command(lambda: run_evaluation(parse(EvalConfig, description=__doc__, choices=CHOICES).config))
