"""Check whether this interpreter can run the project; if it cannot, print the reason in one line.

Exit status: 0 it can, 1 pip can fix it. Needs only the standard library.
"""

from __future__ import annotations

import importlib.metadata
import re
import sys
from pathlib import Path

REQUIREMENTS = Path(__file__).resolve().parents[1] / "requirements.txt"


def numbers(version: str) -> tuple[int, ...]:
    """The leading numbers of a version: 2.6.0+cu124 -> (2, 6, 0)."""
    return tuple(int(part) for part in re.match(r"[\d.]+", version)[0].strip(".").split("."))


def problem() -> str | None:
    """The first problem of this environment, or None."""
    for line in REQUIREMENTS.read_text(encoding="utf-8").split():
        name, minimum = line.split(">=")
        try:
            installed = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            return f"{name} is not installed"
        if numbers(installed) < numbers(minimum):
            return f"{name} {installed} is installed, but {minimum} or later is required"
    try:
        import torch  # noqa: F401
        import torchvision  # noqa: F401
    except Exception as error:  # a torchvision built for another torch fails in several ways
        pair = " and ".join(f"{name} {importlib.metadata.version(name)}" for name in ("torch", "torchvision"))
        return f"{pair} do not match ({str(error).splitlines()[0]}): pip install --upgrade torch torchvision"
    return None


if __name__ == "__main__":
    sys.exit(problem())  # a text goes to stderr, with status 1
