"""Time this code against the plain reference, alternately in one process: python scripts/benchmark.py WHAT [flags]

WHAT is one of: step epoch watching memory views data judging evaluate reach scale; each has --help. A ratio is the
median over pairs of (reference, ours), its spread their quartiles.
"""

import json
import os
import sys
from dataclasses import asdict
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # this file is run from its folder

from engine.device import use_full_precision
from scripts.bench_evaluation import Evaluate, Judging, Reach, measure_reach, time_evaluation, time_judging
from scripts.bench_scaling import Scale, time_scaling
from scripts.bench_training import (
    Data,
    Epoch,
    Memory,
    Step,
    Views,
    Watching,
    measure_memory,
    time_data,
    time_epoch,
    time_step,
    time_views,
    time_watching,
)
from utils.cli import run_command
from utils.errors import UserError
from utils.files import require_writable, write_text
from utils.flags import parse
from utils.seed import seed_everything
from utils.versions import versions

BENCHMARKS = {
    "step": (Step, time_step),
    "epoch": (Epoch, time_epoch),
    "watching": (Watching, time_watching),
    "memory": (Memory, measure_memory),
    "views": (Views, time_views),
    "data": (Data, time_data),
    "judging": (Judging, time_judging),
    "evaluate": (Evaluate, time_evaluation),
    "reach": (Reach, measure_reach),
    "scale": (Scale, time_scaling),
}


def benchmark(words: list[str]) -> None:
    """Run the benchmark that the first word names; raises UserError for a name that is none."""
    if not words or words[0] not in BENCHMARKS:
        raise UserError(f"name a benchmark, then --help for its flags: {', '.join(BENCHMARKS)}")
    config_class, run = BENCHMARKS[words[0]]
    config = parse(config_class, words[1:], description=config_class.__doc__, choices={}).config
    if config.json:
        _require_writable(Path(config.json))
    use_full_precision()
    seed_everything(0)
    about = {key: value for key, value in asdict(config).items() if key not in ("json", "profile")}
    figures = {"benchmark": words[0], "config": about, "versions": versions(), **run(config)}
    if config.json and os.environ.get("RANK", "0") == "0":  # of the processes of a torchrun the first writes
        write_text(Path(config.json), json.dumps(figures, indent=1) + "\n")


def _require_writable(path: Path) -> None:
    try:
        require_writable(path.parent)
    except OSError as error:
        raise UserError(f"--json {path}: cannot be written ({error.strerror})") from error


if __name__ == "__main__":
    run_command(lambda: benchmark(sys.argv[1:]))
