"""Time this code against a plain reference, alternately in one process: python scripts/benchmark NAME [flags]

NAME is one of the following; each has --help:
  step    training steps per second, memory, FLOP
  scale   several processes: torchrun --standalone --nproc_per_node=2 scripts/benchmark scale

A ratio is the median over (reference, ours) pairs; its spread is given by their quartiles.
"""

import json
import sys
from dataclasses import asdict
from errno import EISDIR
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # this folder is run as a script

from engine.device import set_tf32
from scripts.benchmark.step import Step, time_scaling, time_step
from utils.cli import run_command
from utils.errors import UserError, torchrun_rank
from utils.files import require_writable, write_text
from utils.flags import parse
from utils.names import canonical
from utils.seed import seed_everything
from utils.versions import versions

BENCHMARKS = {"step": time_step, "scale": time_scaling}


def benchmark(argv: list[str]) -> None:
    """Run the benchmark that the first argument names; raises UserError for an unknown name."""
    if not argv:
        raise UserError(f"no benchmark given ({', '.join(BENCHMARKS)}): python scripts/benchmark NAME [flags]")
    if argv[0] in ("-h", "--help"):
        print(__doc__, end="")
        return
    name = canonical(argv[0], BENCHMARKS, {}, "python scripts/benchmark")
    run = BENCHMARKS[name]
    config = parse(Step, argv[1:], description=run.__doc__, choices={}).config
    for flag, path in (("json", config.json), ("profile", config.profile)):
        if path:
            _check_writable(flag, Path(path))
    set_tf32(False)
    seed_everything(0)
    flags = {key: value for key, value in asdict(config).items() if key not in ("json", "profile")}
    result = {"benchmark": name, "config": flags, "versions": versions(), **run(config)}
    if config.json and not torchrun_rank():
        write_text(Path(config.json), json.dumps(result, indent=1) + "\n")


def _check_writable(flag: str, path: Path) -> None:
    """Create the folder of a file of results; raise UserError if the file cannot be written."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        require_writable(path.parent)
        if path.is_dir():
            raise IsADirectoryError(EISDIR, "is a folder")
    except OSError as error:
        raise UserError(f"--{flag} {path}: cannot be written ({error.strerror}); choose another file") from error


if __name__ == "__main__":
    run_command(lambda: benchmark(sys.argv[1:]))
