"""Progress bars: on a terminal, otherwise a line every minute, and none for what takes less."""

import logging
import sys
from collections.abc import Iterable

from tqdm import tqdm


def progress_bar(total: int, title: str, done: int = 0, batches: Iterable | None = None) -> tqdm:
    """Return a bar for ``total`` items, ``done`` of which are finished at the start; ranks other than 0 show none.

    Iterating over it yields ``batches`` and updates it.
    """
    is_rank0 = logging.getLogger().level <= logging.INFO  # other ranks log errors only
    rare = {} if sys.stderr.isatty() else {"mininterval": 60, "maxinterval": 600, "delay": 60}
    return tqdm(batches, title, total, leave=False, initial=done, dynamic_ncols=True, disable=not is_rank0, **rare)
