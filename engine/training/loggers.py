"""TensorBoard and Weights & Biases, which receive every row of results.csv.

A logger never ends or changes a run: its errors become warnings.
"""

import os
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from importlib import import_module
from pathlib import Path
from types import ModuleType

from utils.config import TrainConfig
from utils.errors import UserError, first_line
from utils.files import write_text
from utils.log import logger

Log = Callable[[dict], None]  # receives one row of results.csv

WANDB_PROJECT = "robust-distillation"  # unless the environment variable WANDB_PROJECT names another
WANDB_INIT_SECONDS = 20  # wandb itself waits 90 s for a server that does not answer
WANDB_ID = "wandb_id.txt"


def tensorboard(package: ModuleType, folder: Path, config: TrainConfig, rows: Sequence[dict]) -> Log:
    """Write scalars by epoch to ``folder``/tensorboard.

    A resumed run writes all its rows again and hides those of earlier processes, so that each appears once.
    """
    writer = package.SummaryWriter(str(folder / "tensorboard"), purge_step=0)

    def log(row: dict) -> None:
        for name, value in _metrics(row).items():
            writer.add_scalar(name, value, row["epoch"])
        writer.flush()

    for row in rows:
        log(row)
    return log


def wandb(package: ModuleType, folder: Path, config: TrainConfig, rows: Sequence[dict]) -> Log:
    """Log to one run of Weights & Biases, which a resumed run continues.

    The epoch is the step; wandb ignores steps that it already has. It finishes the run when the process exits, and
    respects its environment variables, such as WANDB_MODE=offline and WANDB_PROJECT.
    """
    path = folder / WANDB_ID
    continued = path.exists()
    run_id = path.read_text(encoding="utf-8").strip() if continued else uuid.uuid4().hex[:8]
    run = package.init(
        id=run_id,
        resume="allow",
        dir=str(folder),
        project=os.environ.get("WANDB_PROJECT", WANDB_PROJECT),
        name=folder.name,
        config=asdict(config),
        settings=package.Settings(init_timeout=float(os.environ.get("WANDB_INIT_TIMEOUT", WANDB_INIT_SECONDS))),
    )

    def log(row: dict) -> None:
        run.log(_metrics(row), step=row["epoch"], commit=True)

    if not continued:
        write_text(path, run_id)
        for row in rows:
            log(row)
    return log


# Field of the config, which is also the name of the package -> function that starts the logger, module to import.
SERVICES = {"tensorboard": (tensorboard, "torch.utils.tensorboard"), "wandb": (wandb, "wandb")}


class Loggers:
    """The loggers that a config enables. Raises UserError if a package is missing."""

    def __init__(self, config: TrainConfig):
        self.config = config
        self.packages = {flag: _import(flag) for flag in SERVICES if getattr(config, flag)}
        self.active: dict[str, Log] = {}

    def open(self, folder: Path, rows: Sequence[dict]) -> None:
        """Start logging to a run's folder, or continue after ``rows``."""
        for flag, package in self.packages.items():
            with _errors_as_warnings(flag):
                start, _ = SERVICES[flag]
                self.active[flag] = start(package, folder, self.config, rows)

    def add(self, row: dict) -> None:
        """Send one epoch to each logger; one that fails receives no more."""
        for flag in list(self.active):
            log = self.active.pop(flag)
            with _errors_as_warnings(flag):
                log(row)
                self.active[flag] = log


@contextmanager
def _errors_as_warnings(flag: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # of a third-party package
        logger.warning("--%s: %s; the run continues without it", flag, first_line(error))


def _import(flag: str) -> ModuleType:
    _, module = SERVICES[flag]
    try:
        return import_module(module)
    except ImportError as error:
        raise UserError(f"--{flag}: requires a package: pip install {flag}") from error
    except Exception as error:  # incompatible versions fail in several ways
        raise UserError(f"--{flag}: cannot be imported ({first_line(error)}): pip install -U {flag}") from error


def _metrics(row: dict) -> dict[str, float]:
    return {name: value for name, value in row.items() if name != "epoch" and value is not None}
