"""Our figures beside a paper's: python scripts/reproduce/beside.py TABLE FIGURES

TABLE is a name in published.csv, which holds the published figures and says where each was read: "paper" in the paper
itself, "quoted" in later papers that repeat it, "RobustBench" on its leaderboard. FIGURES holds a folder for each row,
with the evaluations of its checkpoints anywhere below. The table is printed and written to FIGURES/beside.md.
"""

import csv
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import mean, stdev

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # this file is run from its folder

from engine.evaluation.records import read_evaluations
from utils.cli import run_command
from utils.errors import UserError
from utils.files import write_text
from utils.flags import parser_for
from utils.log import logger
from utils.tables import markdown_table, text_table

PUBLISHED = Path(__file__).with_name("published.csv")
ATTACKS = ("Clean", "FGSM", "PGD-20", "PGD-TRADES-20", "C&W-inf-30", "AutoAttack")
NONE = "-"


def beside(arguments: Sequence[str]) -> None:
    """Print the table of both. Raises UserError for a damaged evaluation and a folder that cannot be written to."""
    parser = parser_for(__doc__)
    parser.add_argument("table", metavar="TABLE", help="name of a table in published.csv, or of one without figures")
    parser.add_argument("figures", metavar="FIGURES", help="folder with a folder for each row")
    parser.add_argument("--scale", metavar="WORD", default="full", help="how ours were made [default: full]")
    asked = parser.parse_args(arguments)
    header, lines, sizes = tabulate(published(asked.table), Path(asked.figures))
    if not lines:
        raise UserError(f"{asked.table}: neither published figures nor any of ours in {asked.figures}")
    note = f"accuracy in %; ours at scale {asked.scale}, images: {sizes or NONE}"
    try:
        Path(asked.figures).mkdir(parents=True, exist_ok=True)
        write_text(Path(asked.figures) / "beside.md", f"{markdown_table(header, lines)}\n\n{note}\n")
    except OSError as error:
        raise UserError(f"{asked.figures}: cannot be written to ({error.strerror}); name another folder") from error
    logger.info("\n%s\n\n%s", text_table(header, lines), note)


def published(table: str) -> dict[str, dict[str, str]]:
    """Row of the table -> its line of published.csv; {} for a table without published figures."""
    with open(PUBLISHED, newline="", encoding="utf-8") as file:
        return {line["row"]: line for line in csv.DictReader(file) if line["table"] == table}


def tabulate(theirs: dict[str, dict[str, str]], figures: Path) -> tuple[list[str], list[list[str]], str]:
    """Header, lines, and over how many images our figures are: of each row theirs, then ours where there are any."""
    found = {folder.name: evaluated(folder) for folder in sorted(figures.glob("*/"))}
    lines, sizes = [], {}
    for row in dict.fromkeys([*theirs, *found]):
        if row in theirs:
            line = theirs[row]
            lines.append([row, line["source"], *(line[attack] or NONE for attack in ATTACKS)])
        if runs := found.get(row):
            lines.append([row, f"ours ({len(runs)})", *(_cell(runs, attack) for attack in ATTACKS)])
        for run in runs or ():
            for attack in run.keys() & set(ATTACKS):
                sizes.setdefault(attack, set()).add(run[attack]["n"])
    words = (f"{attack} {'/'.join(map(str, sorted(sizes[attack])))}" for attack in ATTACKS if attack in sizes)
    return ["row", "figures", *ATTACKS], lines, ", ".join(words)


def evaluated(folder: Path) -> list[dict[str, dict]]:
    """The newest figures, by attack, of each checkpoint whose evaluation lies below a folder."""
    return [read_evaluations(place)[-1]["figures"] for place in sorted(folder.rglob("eval.json"))]


def _cell(runs: Iterable[dict[str, dict]], attack: str) -> str:
    accuracies = [run[attack]["accuracy"] for run in runs if attack in run]
    if not accuracies:
        return NONE
    spread = f" ± {stdev(accuracies):.2f}" if len(accuracies) > 1 else ""
    return f"{mean(accuracies):.2f}{spread}"


if __name__ == "__main__":
    run_command(lambda: beside(sys.argv[1:]))
