"""Logging to the terminal and to a run's log file."""

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from utils.errors import UserError

logger = logging.getLogger("run")


def log_to_terminal() -> None:
    """Log plain messages to standard output; a stream that the shell has closed (``>&-``) becomes the null device."""
    sys.stdout, sys.stderr = (stream or open(os.devnull, "w") for stream in (sys.stdout, sys.stderr))  # noqa: SIM115
    if hasattr(sys.stdout, "reconfigure"):  # the terminal's encoding may not have all characters of a file name
        sys.stdout.reconfigure(errors="backslashreplace")
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(logging.Formatter("%(message)s"))
    handler.handleError = lambda record: None  # standard output may be a file on a full disk
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.INFO)
    for library, level in {"matplotlib": logging.ERROR, "PIL": logging.WARNING, "auto-attack": logging.WARNING}.items():
        logging.getLogger(library).setLevel(level)  # Matplotlib warns of a home folder that it cannot write to


@contextmanager
def log_to_file(path: Path) -> Iterator[None]:
    """Inside the context, also append messages, with their time, to ``path``.

    Raises UserError if it is a symbolic link.
    """
    if path.is_symlink():  # in a folder from elsewhere, it could point at any file
        raise UserError(f"{path}: is a symbolic link, and the log would be written to its target; remove it")
    handler = logging.FileHandler(path, encoding="utf-8", errors="backslashreplace")
    handler.handleError = lambda record: None  # a full disk is reported once, when a checkpoint is saved
    handler.setFormatter(logging.Formatter("%(asctime)s  %(message)s"))
    root = logging.getLogger()
    root.addHandler(handler)
    try:
        yield
    finally:
        root.removeHandler(handler)
        with suppress(OSError):  # the disk is still full
            handler.close()
