"""Whether trainings have good names and flags, before the first begins: ... | python scripts/check_commands.py

Reads commands of main.py and main_tiny.py from standard input, one a line, as scripts/sweep.sh --list prints them. The
first that would be refused for its words is told in one line, with exit status 2; files and data are not looked at.
"""

import shlex
import sys
from collections.abc import Iterable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # this file is run from its folder

from utils.command import run_command
from utils.config import TinyTrainConfig, TrainConfig
from utils.flags import parse

CONFIGS = {"main.py": TrainConfig, "main_tiny.py": TinyTrainConfig}


def check(lines: Iterable[str]) -> None:
    """Raises UserError for the first command that would be refused."""
    from engine.settings import resolve  # here, so that a missing package is told in one line

    for line in lines:
        _, script, *words = shlex.split(line)
        resolve(*parse(CONFIGS[Path(script).name], words, description="", choices={}))


if __name__ == "__main__":
    run_command(lambda: check(sys.stdin))
