"""One table and one picture of evaluated runs: python scripts/compare.py RUNS... [--out DIR] [--protocol paper]

RUNS are run folders, trees of them, or checkpoints. Every evaluation kept under them is a row; runs that differ in
nothing but the seed are summed up below by mean and sample standard deviation. The table is printed and written to
DIR as comparison.csv, .md and .tex; comparison.png shows robust against clean accuracy.
"""

import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from matplotlib.figure import Figure

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # this file is run from its folder

from attacks.suite import PROTOCOLS
from engine.reporting.tables import CLEAN, Row, Table, gather, point_names, shared_attack, shown_columns, tabulate
from utils.cli import run_command
from utils.errors import UserError
from utils.files import write_text
from utils.flags import parser_for
from utils.log import logger
from utils.plots import Point, save_figure, scatter
from utils.tables import latex_table, markdown_table, text_table, write_csv

MARKERS = {"best": "o", "best clean": "^", "last": "s"}  # by kind of checkpoint


def compare(arguments: Sequence[str]) -> None:
    """Print the table and write the files. Raises UserError before anything is written."""
    parser = parser_for(__doc__)
    parser.add_argument("runs", metavar="RUNS", nargs="+", help="run folders, trees of them, or checkpoints")
    parser.add_argument("--out", metavar="DIR", default="comparison", help="folder of the files [default: comparison]")
    parser.add_argument("--protocol", choices=PROTOCOLS, default="paper", help="whose evaluations [default: paper]")
    asked = parser.parse_args(arguments)
    rows = gather(asked.runs, asked.protocol)
    shown = shown_columns(rows)
    table = tabulate(rows, shown)
    write(Path(asked.out), table, f"accuracy in %, protocol {asked.protocol}", picture(rows, shown))
    logger.info("\n%s\n\nfiles: %s", text_table(table.header, table.cells), Path(asked.out) / "comparison.*")


def write(folder: Path, table: Table, title: str, drawn: Figure | None) -> None:
    """Write comparison.csv, .md, .tex and .png. Raises UserError where the folder does not take them."""
    header, cells, bold = table
    tex = f"% {title}; needs \\usepackage{{booktabs}}\n{latex_table(header, cells, bold)}\n"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_csv(folder / "comparison.csv", header, cells)
        write_text(folder / "comparison.md", f"{markdown_table(header, cells, bold)}\n\n{title}\n")
        write_text(folder / "comparison.tex", tex)
        if drawn:
            save_figure(drawn, folder / "comparison.png")
        else:
            (folder / "comparison.png").unlink(missing_ok=True)  # one of an earlier call would seem to belong here
    except OSError as error:
        raise UserError(f"--out {folder}: cannot be written to ({error.strerror}); name another folder") from error


def picture(rows: Sequence[Row], shown: Sequence[str]) -> Figure | None:
    """Robust against clean accuracy of the rows that have both; None, and a warning, where there are none."""
    attack = shared_attack(rows)
    drawn = [row for row in rows if {CLEAN, attack} <= row.accuracies.keys()]
    if len(drawn) < len(rows):
        lacking = f"{CLEAN} and {attack}" if attack else f"{CLEAN} and an attack"
        logger.warning("comparison.png shows %d of %d rows: the others lack %s", len(drawn), len(rows), lacking)
    if not drawn:
        return None
    points = []
    for row, name in zip(drawn, point_names(drawn, shown), strict=True):
        clean, robust = row.accuracies[CLEAN].percent, row.accuracies[attack].percent
        points.append(Point(clean, robust, row.labels["method"], row.labels["checkpoint"], name))
    xlabel = f"clean accuracy (%), {_images(drawn, CLEAN)}"
    ylabel = f"robust accuracy under {attack} (%), {_images(drawn, attack)}"
    return scatter(points, MARKERS, xlabel=xlabel, ylabel=ylabel)


def _images(rows: Iterable[Row], title: str) -> str:
    counts = sorted({row.accuracies[title].n for row in rows})
    return f"n={counts[0]}" if len(counts) == 1 else f"n={counts[0]} to {counts[-1]}"


if __name__ == "__main__":
    run_command(lambda: compare(sys.argv[1:]))
