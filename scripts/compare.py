"""One table and one figure of evaluated runs: python scripts/compare.py RUNS... [--out DIR] [--protocol paper]

RUNS are folders of runs, or checkpoints. Every evaluation is a row; the last rows are means ± standard
deviations over seeds. DIR gets comparison.csv, .md, .tex (the table) and .png (robust against clean accuracy).
"""

import sys
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # this file is run from its folder

from attacks.suite import PROTOCOLS
from engine.reporting.tables import CLEAN, COMPARABLE, Row, comparison_table, read_rows, shared_attack, shown_columns
from utils.cli import run_command
from utils.errors import UserError
from utils.files import write_text
from utils.flags import parser_for
from utils.log import logger
from utils.plots import distinct_color, plt, save_figure
from utils.tables import latex_table, markdown_table, text_table, write_csv

MARKERS = {"best": "o", "best clean": "^", "best PGD-10": "v", "last": "s"}  # by kind of checkpoint


def compare(arguments: Sequence[str]) -> None:
    """Print the table and write the files. Raises UserError for bad input, before anything is written."""
    parser = parser_for(__doc__)
    parser.add_argument("runs", metavar="RUNS", nargs="+", help="folders of runs, or checkpoints")
    parser.add_argument("--out", metavar="DIR", default="comparison", help="folder of the files [default: comparison]")
    parser.add_argument("--protocol", choices=PROTOCOLS, default="paper", help="evaluations to show [default: paper]")
    args = parser.parse_args(arguments)
    rows, folder = read_rows(args.runs, args.protocol), Path(args.out)
    shown, caption = shown_columns(rows), f"accuracy in %, protocol {args.protocol}"
    header, cells, bold = comparison_table(rows, shown)
    figure = draw(rows, shown)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_csv(folder / "comparison.csv", header, cells)
        write_text(folder / "comparison.md", f"{markdown_table(header, cells, bold)}\n\n{caption}\n")
        latex = f"% {caption}; needs \\usepackage{{booktabs}}\n{latex_table(header, cells, bold)}\n"
        write_text(folder / "comparison.tex", latex)
        (folder / "comparison.png").unlink(missing_ok=True)  # of an earlier comparison
        if figure:
            save_figure(figure, folder / "comparison.png")
    except OSError as error:
        raise UserError(f"--out {folder}: cannot be written to ({error.strerror}); choose another folder") from error
    logger.info("\n%s\n\nfiles: %s", text_table(header, cells), folder / "comparison.*")


def draw(rows: Sequence[Row], shown: Sequence[str]) -> plt.Figure | None:
    """Draw robust against clean accuracy of the rows that have both; None, and a warning, if none has.

    The marker shows the kind of checkpoint; rows of one color differ only in checkpoint and seed in ``shown`` columns.
    """
    attack = shared_attack(rows)
    drawn = [row for row in rows if {CLEAN, attack} <= row.accuracies.keys()]
    if len(drawn) < len(rows):
        message = "comparison.png shows %d of %d rows, those with both %s and %s"
        logger.warning(message, len(drawn), len(rows), CLEAN, attack or "an attack")
    if not drawn:
        return None
    groups = defaultdict(lambda: defaultdict(list))  # name -> kind of checkpoint -> points
    for row in drawn:
        points = groups[_name(row, drawn, shown)][row.labels["checkpoint"]]
        points.append([row.accuracies[title].percent for title in (CLEAN, attack)])
    figure, axes = plt.subplots(figsize=(9, 6), layout="constrained")
    for number, (name, kinds) in enumerate(groups.items()):
        for kind, points in kinds.items():
            style = {"color": distinct_color(number), "markeredgecolor": "white", "markersize": 8}
            axes.plot(*zip(*points, strict=True), MARKERS.get(kind, "D"), label=f"{name}, {kind}", **style)
    axes.set(
        xlabel=f"clean accuracy (%), {_n(drawn, CLEAN)}", ylabel=f"accuracy under {attack} (%), {_n(drawn, attack)}"
    )
    axes.margins(0.15)
    axes.grid(alpha=0.3)
    figure.legend(loc="outside right upper", fontsize="small")
    return figure


def _name(row: Row, rows: Sequence[Row], shown: Sequence[str]) -> str:
    """Return the method, and the ends of the labels that differ, since paths differ at the end.

    Settings of the training are compared within the method, what makes accuracies comparable with all rows.
    """
    titles = ["method"]
    for title in shown:
        others = [other for other in rows if title in COMPARABLE or other.labels["method"] == row.labels["method"]]
        if title not in ("seed", "checkpoint") and any(other.labels[title] != row.labels[title] for other in others):
            titles.append(title)
    return ", ".join(row.labels[title][-40:] for title in titles).lstrip("_")  # matplotlib hides names with _


def _n(rows: Sequence[Row], title: str) -> str:
    counts = {row.accuracies[title].n for row in rows}
    return f"n={min(counts)}" + (f" to {max(counts)}" if len(counts) > 1 else "")


if __name__ == "__main__":
    run_command(lambda: compare(sys.argv[1:]))
