"""Tables as text for a terminal, as Markdown and LaTeX for documents, and as CSV."""

import csv
import io
import re
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path

from tabulate import tabulate

from utils.files import write_text

NUMBER = re.compile(r"-|-?[\d.]+%?( ± [\d.]+)?( \(n=\d+\))?")  # a dash is a missing number
UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\ud800-\udfff]")


def text_table(header: Sequence[str], rows: Iterable[Sequence]) -> str:
    """Return the table with aligned columns, numbers on the right."""
    (titles, *cells), align = _text_cells(header, rows)
    return tabulate(cells, titles, "simple", disable_numparse=True, colalign=align)


def markdown_table(header: Sequence[str], rows: Iterable[Sequence], bold: Collection[tuple[int, int]] = ()) -> str:
    """Return the table as Markdown; its columns are not padded. ``bold`` are (row, column) of cells, both from 0."""
    (titles, *cells), align = _text_cells(header, rows)
    titles, *cells = ([cell.replace("|", "\\|") for cell in row] for row in (titles, *cells))
    for row, column in bold:
        cells[row][column] = f"**{cells[row][column]}**"
    rule = ["---:" if side == "right" else "---" for side in align]
    return "\n".join(f"| {' | '.join(line)} |" for line in (titles, rule, *cells))


def latex_table(header: Sequence[str], rows: Iterable[Sequence], bold: Collection[tuple[int, int]] = ()) -> str:
    """Return the table as a LaTeX tabular, which needs the package booktabs; special characters are escaped."""
    (titles, *cells), align = _text_cells(header, rows)
    for row, column in bold:
        cells[row][column] = f"\2{cells[row][column]}\3"  # replaced after tabulate has escaped the cells
    latex = tabulate(cells, titles, "latex_booktabs", disable_numparse=True, colalign=align)
    latex = re.sub(r"^ *\[", "{[}", latex, flags=re.MULTILINE)  # else an option of the preceding line break
    return latex.replace("\2", r"\textbf{").replace("\3", "}").replace("±", r"$\pm$")


def write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence]) -> None:
    """Write the whole table to ``path``, or leave the old file."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows((header, *rows))
    write_text(path, text.getvalue().encode(errors="replace").decode())  # a file name may not be valid Unicode


def read_csv(path: Path) -> list[dict[str, str]]:
    """Return the rows of a table that :func:`write_csv` wrote."""
    return list(csv.DictReader(io.StringIO(Path(path).read_text(encoding="utf-8"))))


def _text_cells(header: Sequence[str], rows: Iterable[Sequence]) -> tuple[list[list[str]], list[str]]:
    """Return all cells as text without control characters, which names from files may hold, and the alignments."""
    table = [[UNPRINTABLE.sub(" ", str(cell)) for cell in row] for row in (header, *rows)]
    return table, ["right" if all(map(NUMBER.fullmatch, column[1:])) else "left" for column in zip(*table, strict=True)]
