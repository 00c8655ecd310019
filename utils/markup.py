"""HTML and SVG as text, built so that what comes from files cannot become markup."""

import html
import re

# What no HTML text may hold, whichever way it is written: control characters and halves of surrogate pairs. File
# names that are not UTF-8 arrive as such halves.
_UNFIT = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")
_VOID = {"br", "img", "meta"}  # elements without content or end tag


class Markup(str):
    """Text that is HTML already; any other text is escaped where it becomes part of an element."""


def element(name: str, /, *content, **attributes) -> Markup:
    """``<name attributes>content</name>``; content and values that are no :class:`Markup` are escaped.

    An underscore in an attribute's name stands for a hyphen, one at its end for nothing (``class_``). An attribute of
    value None is left out, content of None too.
    """
    pairs = {key.rstrip("_").replace("_", "-"): value for key, value in attributes.items() if value is not None}
    start = "".join([name, *(f' {key}="{escaped(value)}"' for key, value in pairs.items())])
    return Markup(f"<{start}>" if name in _VOID else f"<{start}>{joined(content)}</{name}>")


def joined(content) -> Markup:
    """Pieces one after the other, escaped where they are no markup; None is left out."""
    return Markup("".join(part if isinstance(part, Markup) else escaped(part) for part in content if part is not None))


def escaped(value) -> Markup:
    """``str(value)`` as text that may stand in an element or in a quoted attribute."""
    return Markup(html.escape(_UNFIT.sub("\N{REPLACEMENT CHARACTER}", str(value))))
