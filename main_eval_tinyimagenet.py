"""Evaluate a saved checkpoint under attack, on Tiny-ImageNet."""

from engine.names import CHOICES
from engine.run_eval import run_evaluation
from utils.command import run_command
from utils.config import TinyEvalConfig
from utils.flags import parse

if __name__ == "__main__":
    run_command(lambda: run_evaluation(parse(TinyEvalConfig, description=__doc__, choices=CHOICES).config))
