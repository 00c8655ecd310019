"""Where the row of an epoch goes beside results.csv: TensorBoard, and Weights & Biases, through their own packages.

A service is an echo of the run: whatever happens to it is a warning, and never ends or changes the run.
"""

import os
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

from utils.config import TrainConfig
from utils.errors import UserError
from utils.files import write_text
from utils.log import logger

Add = Callable[[dict], None]  # takes the row of an epoch

PROJECT = "robust-distillation"  # of Weights & Biases, where WANDB_PROJECT names no other
WANDB_ID = "wandb_id.txt"


def tensorboard(package: ModuleType, folder: Path, config: TrainConfig, rows: Sequence[dict]) -> Add:
    """Scalars by epoch in ``folder``/tensorboard.

    A resumed run writes its rows anew and hides all that an earlier process wrote, so that no point is doubled or lost.
    """
    writer = package.SummaryWriter(str(folder / "tensorboard"), purge_step=0)

    def add(row: dict) -> None:
        for name, value in _values(row).items():
            writer.add_scalar(name, value, _step(row))
        writer.flush()

    for row in rows:
        add(row)
    return add


def wandb(package: ModuleType, folder: Path, config: TrainConfig, rows: Sequence[dict]) -> Add:
    """One run of Weights & Biases, which a resumed run continues; kept in ``folder``/wandb where nothing can be sent.

    An epoch is a step, and a step that is there already is not taken twice. The package ends its run by itself when
    the process ends. It heeds WANDB_MODE, WANDB_PROJECT and its other variables.
    """
    place = folder / WANDB_ID
    continued = place.exists()
    if not continued:
        write_text(place, uuid.uuid4().hex[:8])
    about = {"id": place.read_text(encoding="utf-8").strip(), "resume": "allow", "dir": str(folder)}
    about |= {"project": os.environ.get("WANDB_PROJECT", PROJECT), "name": folder.name, "config": asdict(config)}
    try:
        run = package.init(**about)
    except Exception as error:  # no network, no login, a service that does not answer: each raises its own kind
        logger.warning("--wandb: %s; kept in %s, from where wandb sync sends it", _line(error), folder / "wandb")
        package.teardown()  # else its service holds the run's id to be in use
        run = package.init(**about, mode="offline")

    def add(row: dict) -> None:
        run.log(_values(row), step=_step(row), commit=True)

    for row in () if continued else rows:
        add(row)
    return add


class Sink(NamedTuple):
    """How a service is opened, ``open(package, folder, config, rows)``, from which module, and what brings it."""

    open: Callable[[ModuleType, Path, TrainConfig, Sequence[dict]], Add]
    module: str
    install: str


# Field of the config that asks for it -> the service.
SINKS = {
    "tensorboard": Sink(tensorboard, "torch.utils.tensorboard", "tensorboard"),
    "wandb": Sink(wandb, "wandb", "wandb"),
}


class Loggers:
    """The loggers that a config asks for; raises UserError where a package is missing."""

    def __init__(self, config: TrainConfig):
        self.config = config
        self.packages = {flag: _package(flag) for flag in SINKS if getattr(config, flag)}
        self.opened: dict[str, Add] = {}

    def open(self, folder: Path, rows: Sequence[dict]) -> None:
        """Begin, or continue after ``rows``, what belongs to a run's folder."""
        for flag, package in self.packages.items():
            with _echoing(flag):
                if (folder / flag).is_symlink():
                    raise UserError(f"{folder / flag} is a link, and would be written where it points")
                self.opened[flag] = SINKS[flag].open(package, folder, self.config, rows)

    def add(self, row: dict) -> None:
        """Send one epoch to each; one that fails is left out from then on."""
        opened, self.opened = self.opened, {}
        for flag, add in opened.items():
            with _echoing(flag):
                add(row)
                self.opened[flag] = add


@contextmanager
def _echoing(flag: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # of packages that are not ours
        logger.warning("--%s: %s; the run goes on without", flag, _line(error))


def _package(flag: str) -> ModuleType:
    service = SINKS[flag]
    try:
        return import_module(service.module)
    except ImportError as error:
        raise UserError(f"--{flag}: needs a package: pip install {service.install}") from error
    except Exception as error:  # a version that does not fit the others fails in several ways
        raise UserError(f"--{flag}: cannot be loaded ({_line(error)}): pip install -U {service.install}") from error


def _values(row: dict) -> dict[str, float]:
    return {name: value for name, value in row.items() if name != "epoch" and value is not None}


def _step(row: dict) -> int:
    return row["epoch"] + 1  # as the log and the curves count


def _line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]
