"""What made a figure: the versions of the libraries and of this code."""

import platform
import subprocess
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

LIBRARIES = ("torchvision", "numpy", "pyautoattack", "autoattack", "advertorch", "robustbench")


@cache
def versions() -> dict[str, str | None]:
    """Python, the libraries that figures depend on, and the git revision of this code; None for what is absent."""
    libraries = {name: _version(name) for name in LIBRARIES}
    return {"python": platform.python_version(), "torch": torch.__version__, **libraries, "git": _revision()}


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _revision() -> str | None:
    """Commit of the working tree, with ``-dirty`` where tracked files were changed after it."""
    try:
        described = subprocess.run(
            ["git", "describe", "--always", "--abbrev=40", "--exclude=*", "--dirty"],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            check=True,
            timeout=10,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return described.stdout.strip()
