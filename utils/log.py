"""Lines for people: on the terminal, in the run's log file, and a progress bar where there is a terminal."""

import logging
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

from tqdm import tqdm

from utils.errors import UserError

LINE_EVERY_SECONDS = 60  # without a terminal: often enough to see life, too rare to fill a log

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


class Bar:
    """How far a piece of work is: a bar on a terminal, else a line every minute. ``note`` is shown behind it."""

    def __init__(self, total: int, title: str, done: int = 0):
        self.total, self.title, self.note, self.done = total, title, "", done
        self.began = self.last = time.monotonic()
        self.behind = done
        speaking = logging.getLogger().level <= logging.INFO  # of the processes of a torchrun only the first
        style = {"leave": False, "dynamic_ncols": True, "disable": not (sys.stderr.isatty() and speaking)}
        self.bar = tqdm(total=total, desc=title, initial=done, **style)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.bar.close()

    def advance(self) -> None:
        """One more piece is done."""
        self.done += 1
        self.bar.set_postfix_str(self.note, refresh=False)
        self.bar.update()
        if self.bar.disable and time.monotonic() - self.last > LINE_EVERY_SECONDS:
            self.last = time.monotonic()
            left = (self.last - self.began) / (self.done - self.behind) * (self.total - self.done)
            note = f"{left / 60:.0f} min left" + (self.note and f", {self.note}")
            logger.info("%s: %d of %d, %s", self.title, self.done, self.total, note)


def progress(batches: Iterable, title: str, total: int, done: int = 0) -> Iterator:
    """Yield ``batches``, the last of ``total`` of which ``done`` are behind, showing how far it is."""
    with Bar(total, title, done) as bar:
        for batch in batches:
            yield batch
            bar.advance()
