"""Says whether this interpreter can run the project: exit status 0, else one line that says what is wrong.

Status 1 is something that pip can mend, status 2 an interpreter too old. Needs nothing but the standard library.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import re
import sys
from pathlib import Path

REQUIREMENTS = Path(__file__).resolve().parents[1] / "requirements.txt"


def numbers(version: str) -> tuple[int, ...]:
    """The leading numbers of a version: 2.6.0+cu124 -> (2, 6, 0)."""
    return tuple(int(part) for part in re.match(r"[\d.]+", version)[0].strip(".").split("."))


def complaint() -> str | None:
    """What is wrong with this environment, or None."""
    for line in REQUIREMENTS.read_text(encoding="utf-8").split():
        name, least = line.split(">=")
        try:
            found = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            return f"{name} is not installed"
        if numbers(found) < numbers(least):
            return f"{name} {found} is installed, {least} or later is needed"
    return mismatch()


def mismatch() -> str | None:
    """What importing torch and torchvision together says."""
    try:
        importlib.import_module("torch")
        importlib.import_module("torchvision")
    except Exception as error:  # a torchvision built for another torch fails in several ways
        versions = " and ".join(f"{name} {importlib.metadata.version(name)}" for name in ("torch", "torchvision"))
        reason = str(error).splitlines()[0]
        return f"{versions} do not match ({reason}): pip install --upgrade torch torchvision brings a matching pair"
    return None


if __name__ == "__main__":
    if sys.version_info < (3, 10):  # noqa: UP036  (any interpreter may run this file)
        print(f"Python {sys.version.split()[0]} is too old: 3.10 is needed; PYTHON=... names another", file=sys.stderr)
        sys.exit(2)
    wrong = complaint()
    if wrong:
        print(wrong, file=sys.stderr)
        sys.exit(1)
