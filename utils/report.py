"""Tables: of text for a terminal, and the results of a run as CSV."""

import csv
import io
from collections.abc import Iterable, Sequence
from pathlib import Path

from utils.files import write_atomically


def text_table(header: Sequence[str], rows: Iterable[Sequence]) -> str:
    """Columns padded to their widest cell; the first column flush left, the others right."""
    cells = [list(map(str, row)) for row in (header, *rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    cells.insert(1, ["-" * width for width in widths])
    align = [str.ljust] + [str.rjust] * (len(widths) - 1)
    return "\n".join("  ".join(pad(*pair) for pad, *pair in zip(align, row, widths, strict=True)) for row in cells)


def write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence]) -> None:
    """Write the whole table to ``path``, or leave the old one."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    write_atomically(path, lambda temporary: temporary.write_text(text.getvalue(), encoding="utf-8"))


def read_csv(path: Path) -> list[dict[str, str]]:
    """Rows of a table that :func:`write_csv` wrote, as dicts of text."""
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))
