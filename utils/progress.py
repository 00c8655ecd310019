"""Progress: a bar on a terminal, otherwise a log line every minute."""

import logging
import sys
import time
from collections.abc import Iterable, Iterator

from tqdm import tqdm

from utils.log import logger

SECONDS_PER_LINE = 60  # without a terminal


class Bar:
    """Progress of ``total`` items, ``done`` of which are finished at the start; ``note`` is shown after it."""

    def __init__(self, total: int, title: str, done: int = 0):
        self.total, self.title, self.note, self.done = total, title, "", done
        self.start = self.last = time.monotonic()
        self.initial = done
        is_rank0 = logging.getLogger().level <= logging.INFO  # other ranks log errors only
        style = {"leave": False, "dynamic_ncols": True, "disable": not (sys.stderr.isatty() and is_rank0)}
        self.bar = tqdm(total=total, desc=title, initial=done, **style)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.bar.close()

    def advance(self) -> None:
        """Count one more finished item."""
        self.done += 1
        self.bar.set_postfix_str(self.note, refresh=False)
        self.bar.update()
        if self.bar.disable and time.monotonic() - self.last > SECONDS_PER_LINE:
            self.last = time.monotonic()
            seconds_left = (self.last - self.start) / (self.done - self.initial) * (self.total - self.done)
            note = f"{seconds_left / 60:.0f} min left" + (self.note and f", {self.note}")
            logger.info("%s: %d of %d, %s", self.title, self.done, self.total, note)


def progress(batches: Iterable, title: str, total: int, done: int = 0) -> Iterator:
    """Yield ``batches`` and show the progress; ``done`` of ``total`` batches were finished earlier."""
    with Bar(total, title, done) as bar:
        for batch in batches:
            yield batch
            bar.advance()
