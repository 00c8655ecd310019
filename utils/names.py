"""Look a name up in a table of ours, and help when it is not there."""

import difflib
from collections.abc import Mapping

from utils.errors import UserError


def canonical(name: str, table: Mapping, aliases: Mapping[str, str], flag: str) -> str:
    """Return the key of ``table`` that ``name`` stands for: itself, an alias, or either in another case.

    Raises UserError that names ``flag`` and the nearest known names.
    """
    known = {**{alias.lower(): key for alias, key in aliases.items()}, **{key.lower(): key for key in table}}
    if name.lower() in known:
        return known[name.lower()]
    near = difflib.get_close_matches(name.lower(), known, n=3, cutoff=0.5)
    nearest = f"; nearest: {', '.join(dict.fromkeys(known[key] for key in near))}" if near else ""
    raise UserError(f"{flag} {name}: unknown name{nearest} (all: {', '.join(table)})")
