"""Fixtures and helpers that several test files share; the reader of the values recorded from the official codes."""

import json
import os
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
def nursery():
    """What runs scripts in processes of their own without the seconds of imports."""
    from commands import Nursery  # which imports this file

    nursery = Nursery()
    yield nursery
    nursery.close()
