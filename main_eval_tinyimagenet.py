"""Evaluate saved checkpoints under attack on Tiny-ImageNet."""

from main_eval import main
from utils.cli import run_command
from utils.config import TinyEvalConfig

if __name__ == "__main__":
    run_command(lambda: main(TinyEvalConfig, __doc__))
