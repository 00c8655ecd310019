"""Time this code against a plain reference, alternately in one process: python scripts/benchmark NAME [flags]

NAME is one of: step, data, validation, evaluation, scale; each has --help. A ratio is the median over pairs of
(reference, ours), its spread their quartiles.
"""

import json
import os
import sys
from dataclasses import asdict
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # this folder is run as a script

from engine.device import use_full_precision
from scripts.benchmark.evaluation import Evaluation, Validation, time_evaluation, time_validation
from scripts.benchmark.step import Data, Scale, Step, time_data, time_scaling, time_step
from utils.cli import run_command
from utils.errors import UserError
from utils.files import require_writable, write_text
from utils.flags import parse
from utils.seed import seed_everything
from utils.versions import versions

BENCHMARKS = {
    "step": (Step, time_step),
    "data": (Data, time_data),
    "validation": (Validation, time_validation),
    "evaluation": (Evaluation, time_evaluation),
    "scale": (Scale, time_scaling),
}


def benchmark(argv: list[str]) -> None:
    """Run the benchmark that the first argument names; raises UserError for an unknown name."""
    if not argv or argv[0] not in BENCHMARKS:
        raise UserError(f"usage: python scripts/benchmark NAME [flags]; NAME is one of {', '.join(BENCHMARKS)}")
    config_class, run = BENCHMARKS[argv[0]]
    config = parse(config_class, argv[1:], description=run.__doc__, choices={}).config
    if config.json:
        require_writable(Path(config.json).parent)
    use_full_precision()
    seed_everything(0)
    flags = {key: value for key, value in asdict(config).items() if key not in ("json", "profile")}
    result = {"benchmark": argv[0], "config": flags, "versions": versions(), **run(config)}
    if config.json and os.environ.get("RANK", "0") == "0":
        write_text(Path(config.json), json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    run_command(lambda: benchmark(sys.argv[1:]))
