"""Progress bars: on a terminal, otherwise a line every minute, and none for what takes less."""

import logging
import sys
from collections.abc import Iterable, Iterator

from tqdm import tqdm


def progress_bar(total: int, title: str, done: int = 0) -> tqdm:
    """Return a bar for ``total`` items, ``done`` of which are finished at the start; ranks other than 0 show none."""
    is_rank0 = logging.getLogger().level <= logging.INFO  # other ranks log errors only
    seconds = {} if sys.stderr.isatty() else {"mininterval": 60, "maxinterval": 600, "delay": 60}
    return tqdm(total=total, desc=title, initial=done, leave=False, dynamic_ncols=True, disable=not is_rank0, **seconds)


def progress(batches: Iterable, title: str, total: int, done: int = 0) -> Iterator:
    """Yield ``batches`` and show the progress; ``done`` of ``total`` batches were finished earlier."""
    with progress_bar(total, title, done) as bar:
        for batch in batches:
            yield batch
            bar.update()
