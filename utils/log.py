"""Lines for people: on the terminal, in the run's log file, and a progress bar where there is a terminal."""

import logging
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

from tqdm import tqdm

LINE_EVERY_SECONDS = 60  # without a terminal: often enough to see life, too rare to fill a log

logger = logging.getLogger("run")


def log_to_terminal() -> None:
    """Send every line of the project to standard output, bare."""
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(logging.Formatter("%(message)s"))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.INFO)
    for library in ("matplotlib", "PIL", "auto-attack"):
        logging.getLogger(library).setLevel(logging.WARNING)


def log_to_file(path: Path) -> None:
    """Append every later line to ``path`` as well, with the time."""
    handler = logging.FileHandler(path, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s  %(message)s"))
    logging.getLogger().addHandler(handler)


def progress(batches: Iterable, title: str) -> Iterator:
    """Yield ``batches``, showing how far it is: a bar on a terminal, else a line every minute."""
    if sys.stderr.isatty():
        yield from tqdm(batches, desc=title, leave=False, dynamic_ncols=True)
        return
    total, last = len(batches), time.monotonic()
    for done, batch in enumerate(batches):
        if time.monotonic() - last > LINE_EVERY_SECONDS:
            logger.info("%s: %d of %d batches", title, done, total)
            last = time.monotonic()
        yield batch
