"""Whether a sweep's commands have good names and flags, before the first begins: scripts/sweep.sh asks.

Reads from standard input, for each command, the number of its words and the words, each ended by a zero byte. The first
command that would be refused for its words is told in one line, with exit status 2; files and data are not looked at.
"""

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # this file is run from its folder

from utils.cli import run_command
from utils.config import EvalConfig, TinyEvalConfig, TinyTrainConfig, TrainConfig
from utils.errors import UserError
from utils.flags import parse

TRAINING = {"main.py": TrainConfig, "main_tiny.py": TinyTrainConfig}
EVALUATION = {"main_eval.py": EvalConfig, "main_eval_tinyimagenet.py": TinyEvalConfig}


def check(content: bytes) -> None:
    """Raises UserError for the first command that would be refused."""
    from engine.evaluation.run import select_attacks  # here, so that a missing package is told in one line
    from engine.training.settings import resolve

    trained = []
    words = iter(map(os.fsdecode, content.split(b"\0")[:-1]))
    for count in words:
        _, script, *flags = (next(words) for _ in range(int(count)))
        name = Path(script).name
        parsed = parse((TRAINING | EVALUATION)[name], flags, description="", choices={})
        if name in TRAINING:
            config, _ = resolve(*parsed)
            if config in trained:
                what = f"--method {config.method} --model {config.model} --dataset {config.dataset}"
                raise UserError(f"{what}: there twice, by two of its names; leave one out")
            trained.append(config)
        else:
            select_attacks(parsed.config)


if __name__ == "__main__":
    run_command(lambda: check(sys.stdin.buffer.read()))
