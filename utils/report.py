"""Tables: of text for a terminal, and the results of a run as CSV."""

import csv
import io
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from utils.files import write_atomically


def text_table(header: Sequence[str], rows: Iterable[Sequence]) -> str:
    """Columns padded to their widest cell; columns of numbers flush right, the others left."""
    columns = [list(map(str, column)) for column in zip(header, *rows, strict=True)]
    padded = []
    for column in columns:
        numbers = all(re.fullmatch(r"-|-?[\d.]+%?", cell) for cell in column[1:])
        width = max(map(len, column))
        cells = [column[0], "-" * width, *column[1:]]
        padded.append([cell.rjust(width) if numbers else cell.ljust(width) for cell in cells])
    return "\n".join("  ".join(row).rstrip() for row in zip(*padded, strict=True))


def markdown_table(header: Sequence[str], rows: Iterable[Sequence]) -> str:
    """The same table as Markdown; bars inside cells are escaped."""
    lines = [[str(cell).replace("|", "\\|") for cell in row] for row in (header, *rows)]
    lines.insert(1, ["---"] * len(lines[0]))
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


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
