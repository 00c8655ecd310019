"""The files that a training run writes."""

import csv
import io
from pathlib import Path

import torch

from engine.training.results import MEASUREMENTS


def folder_of(root: Path) -> Path:
    """The folder of the only run below ``root``."""
    (last,) = root.rglob("last_epoch_model.pth")
    return last.parent


def rows_of(root: Path, name: str = "results.csv") -> list[dict[str, str]]:
    """The rows of the only table ``name`` below ``root``."""
    (path,) = root.rglob(name)
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def state_of(root: Path) -> dict:
    """The newest resume state of the only run below ``root``."""
    return torch.load(max((folder_of(root) / "resume").glob("*.pth")), weights_only=True)


def contents(folder) -> dict[str, bytes | None]:
    """Every file's bytes and every folder, without the cache of decoded images."""
    paths = [path for path in Path(folder).rglob("*") if ".decoded" not in path.parts]
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None for path in paths}


def files_of(root: Path) -> dict[str, bytes]:
    """Name and content of all files but logs; results.csv without the measurements, which no two runs share."""
    paths = (path for path in root.rglob("*") if path.is_file() and path.name not in ("log.txt", "output.txt", ".lock"))
    files = {str(path.relative_to(root)): path.read_bytes() for path in paths}
    return {name: _stable(data) if name.endswith("results.csv") else data for name, data in files.items()}


def _stable(table: bytes) -> bytes:
    rows = csv.DictReader(io.StringIO(table.decode()))
    return repr([{key: cell for key, cell in row.items() if key not in MEASUREMENTS} for row in rows]).encode()
