"""How far a piece of work is: a bar on a terminal, else a line now and then."""

import logging
import sys
import time
from collections.abc import Iterable, Iterator

from tqdm import tqdm

from utils.log import logger

LINE_EVERY_SECONDS = 60  # without a terminal: often enough to see life, too rare to fill a log


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
