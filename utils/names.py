"""Look up names in a table, with aliases and suggestions; names of files as text."""

import difflib
import os
from collections.abc import Mapping, Sequence

from utils.errors import UserError


def canonical(name: str, table: Mapping, aliases: Mapping[str, str], flag: str) -> str:
    """Return the key of ``table`` for ``name``, which may be the key or an alias, in any case.

    Raises:
        UserError: Unknown name; the message has ``flag`` and the nearest known names.
    """
    known = {**{alias.lower(): key for alias, key in aliases.items()}, **{key.lower(): key for key in table}}
    if name.lower() in known:
        return known[name.lower()]
    near = difflib.get_close_matches(name.lower(), known, n=3, cutoff=0.5)
    nearest = f"; nearest: {', '.join(dict.fromkeys(known[key] for key in near))}" if near else ""
    raise UserError(f"{flag} {name}: unknown name{nearest} (all: {', '.join(table)})")


def readable(names: Sequence[str]) -> list[str]:
    """Return file names as valid text: bytes that are not UTF-8 become U+FFFD, or escapes to separate names."""
    for errors in ("replace", "backslashreplace"):
        shown = [os.fsencode(name).decode("utf-8", errors) for name in names]
        if len(set(shown)) == len(shown):
            break
    return shown
