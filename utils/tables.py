"""Tables: of text for a terminal, of Markdown and LaTeX for documents, and as CSV.

As a command, ``python -m utils.tables RUNS...``, it hands over to the page of engine/reporting/page.py.
"""

import csv
import io
import re
import sys
from collections.abc import Collection, Iterable, Sequence
from importlib import import_module
from pathlib import Path

from utils.cli import run_command
from utils.files import write_text

# A number; it may carry its deviation and the count it is of. A lone dash stands where there is none.
_NUMBER = re.compile(r"-|-?[\d.]+%?( ± [\d.]+)?( \(n=\d+\))?")

_LATEX = str.maketrans(
    {char: f"\\{char}" for char in "%_&#${}"}
    | {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "±": r"$\pm$"}
    | {"[": "{[}"}  # at the start of a row it would be taken for an option of the line break before it
)

Cell = tuple[int, int]  # (row, column) of a cell, both from 0, the header not counted


def text_table(header: Sequence[str], rows: Iterable[Sequence]) -> str:
    """Columns padded to their widest cell; columns of numbers flush right, the others left."""
    columns = [list(map(_one_line, column)) for column in zip(header, *rows, strict=True)]
    padded = []
    for column in columns:
        width = max(map(len, column))
        cells = [column[0], "-" * width, *column[1:]]
        numbers = _are_numbers(column[1:])
        padded.append([cell.rjust(width) if numbers else cell.ljust(width) for cell in cells])
    return "\n".join("  ".join(row).rstrip() for row in zip(*padded, strict=True))


def markdown_table(header: Sequence[str], rows: Iterable[Sequence], bold: Collection[Cell] = ()) -> str:
    """The same table as Markdown, the ``bold`` cells in bold type; bars inside cells are escaped."""
    rows = list(rows)
    lines = [[_one_line(cell).replace("|", "\\|") for cell in row] for row in rows]
    for row, column in bold:
        lines[row][column] = f"**{lines[row][column]}**"
    title = [_one_line(name).replace("|", "\\|") for name in header]
    rule = ["---:" if _are_numbers(column[1:]) else "---" for column in zip(header, *rows, strict=True)]
    return "\n".join(f"| {' | '.join(line)} |" for line in (title, rule, *lines))


def latex_table(header: Sequence[str], rows: Iterable[Sequence], bold: Collection[Cell] = ()) -> str:
    """The same table as a LaTeX tabular of the package booktabs; what is special to LaTeX is escaped."""
    rows = list(rows)
    lines = [[_one_line(cell).translate(_LATEX) for cell in row] for row in rows]
    for row, column in bold:
        lines[row][column] = rf"\textbf{{{lines[row][column]}}}"
    title = [_one_line(name).translate(_LATEX) for name in header]
    align = "".join("r" if _are_numbers(column[1:]) else "l" for column in zip(header, *rows, strict=True))
    title, *lines = [rf"{' & '.join(line)} \\" for line in (title, *lines)]
    begin, end = rf"\begin{{tabular}}{{{align}}}", r"\end{tabular}"
    return "\n".join([begin, r"\toprule", title, r"\midrule", *lines, r"\bottomrule", end])


def _one_line(cell) -> str:
    """A cell's text; a file's name may hold line breaks, which would end the row."""
    return " ".join(str(cell).splitlines())


def _are_numbers(cells: Iterable) -> bool:
    return all(_NUMBER.fullmatch(str(cell)) for cell in cells)


def write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence]) -> None:
    """Write the whole table to ``path``, or leave the old one."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    write_text(path, text.getvalue())


def read_csv(path: Path) -> list[dict[str, str]]:
    """Rows of a table that :func:`write_csv` wrote, as dicts of text."""
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


if __name__ == "__main__":
    # An entry like main.py, named here; whoever imports this module for its tables never meets the engine.
    run_command(lambda: import_module("engine.reporting.page").report(sys.argv[1:]))
