"""Lines for people: on the terminal, and in the run's log file."""

import logging
import sys
from pathlib import Path

from utils.errors import UserError

logger = logging.getLogger("run")


def log_to_terminal() -> None:
    """Send every line of the project to standard output, bare."""
    if hasattr(sys.stdout, "reconfigure"):  # a name may have characters that the terminal has not
        sys.stdout.reconfigure(errors="backslashreplace")
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(logging.Formatter("%(message)s"))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.INFO)
    for library in ("matplotlib", "PIL", "auto-attack"):
        logging.getLogger(library).setLevel(logging.WARNING)


def log_to_file(path: Path) -> None:
    """Append every later line to ``path`` as well, with the time. Raises UserError where that is a link."""
    if path.is_symlink():  # of a folder that came from elsewhere: its target is no log
        raise UserError(f"{path}: a link, and the log would be written where it points; remove it")
    handler = logging.FileHandler(path, encoding="utf-8")
    handler.handleError = lambda record: None  # a full disk is told once, by what has to be saved
    handler.setFormatter(logging.Formatter("%(asctime)s  %(message)s"))
    logging.getLogger().addHandler(handler)
