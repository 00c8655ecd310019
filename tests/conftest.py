"""Fixtures and helpers that several test files share; the reader of the values recorded from the official codes."""

import json
import logging
import os
import shlex
from pathlib import Path

import numpy as np
import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
GOLDEN = Path(os.environ.get("GOLDEN_DIR", ROOT / "tests" / "recorded"))


def golden_rows(**fields) -> list[dict]:
    """Rows of the index of recorded values whose fields equal ``fields``."""
    rows = json.loads((GOLDEN / "INDEX.json").read_text(encoding="utf-8"))
    return [row for row in rows if all(row.get(key) == value for key, value in fields.items())]


def golden_arrays(row: dict) -> dict[str, torch.Tensor]:
    """The arrays of one row, by name."""
    with np.load(GOLDEN / row["file"]) as file:
        prefix = row["key"] + "."
        return {
            key.removeprefix(prefix): torch.from_numpy(np.asarray(file[key]))
            for key in file.files
            if key.startswith(prefix) and file[key].dtype.kind in "fiu"
        }


@pytest.fixture(scope="session")
def fork_server():
    """Runs scripts in new processes that need not import the packages again."""
    from commands import ForkServer  # which imports this file

    fork_server = ForkServer()
    yield fork_server
    fork_server.close()


@pytest.fixture
def train(monkeypatch, tmp_path, caplog):
    """``train(args)`` does what ``python main.py ARGS`` does, in an empty folder, and returns the log.

    With ``error``, it must raise a UserError whose single line matches.
    """
    import engine.training.run
    from utils.config import TrainConfig
    from utils.errors import UserError
    from utils.flags import parse

    monkeypatch.chdir(tmp_path)
    caplog.set_level("INFO")

    def start(args: str, error: str | None = None) -> str:
        caplog.clear()
        handlers = logging.getLogger().handlers[:]
        parsed = parse(TrainConfig, shlex.split(args), description="", choices={})
        try:
            if error is None:
                engine.training.run.train(*parsed)
            else:
                with pytest.raises(UserError, match=error) as raised:
                    engine.training.run.train(*parsed)
                assert "\n" not in str(raised.value)
        finally:
            logging.getLogger().handlers[:] = handlers  # without the run's log file
        return "\n".join(caplog.messages)

    return start
