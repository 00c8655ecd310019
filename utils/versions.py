"""Versions of this project and of the libraries that results depend on."""

import platform
import re
import subprocess
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LIBRARIES = ("torchvision", "numpy", "pyautoattack", "autoattack", "advertorch", "robustbench")


def project_version() -> str:
    """Return ``version`` of pyproject.toml."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    return re.search(r'^version = "(.+)"$', text, re.M)[1]  # Python 3.10 has no TOML reader


@cache
def versions() -> dict[str, str | None]:
    """Return the versions of this project, Python and the libraries, and the git commit; None for what is absent."""
    import torch  # here, so that project_version() needs no package

    libraries = {name: _version(name) for name in LIBRARIES}
    ours = {"project": project_version(), "git": _revision()}
    return {"python": platform.python_version(), "torch": torch.__version__, **libraries, **ours}


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _revision() -> str | None:
    """Return the commit of the working tree, with ``-dirty`` if tracked files have changed since."""
    # Of this repository, not of one around its folder.
    command = ["git", "--git-dir=.git", "describe", "--always", "--abbrev=40", "--exclude=*", "--dirty"]
    try:
        return subprocess.check_output(command, cwd=ROOT, text=True, stderr=subprocess.DEVNULL, timeout=10).strip()
    except (OSError, subprocess.SubprocessError):
        return None
