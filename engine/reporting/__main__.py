"""One HTML page of many runs: python -m engine.reporting RUNS... [--out FILE]

RUNS are folders, searched recursively for runs. The page shows every run with its results, figures and images; it is
one file that loads nothing from a network.
"""

import sys
from pathlib import Path

from engine.reporting.page import render
from engine.reporting.runs import read_runs
from utils.cli import run_command
from utils.errors import UserError
from utils.files import write_text
from utils.flags import parser_for
from utils.log import logger


def report(arguments: list[str]) -> None:
    """Write the page. Raises UserError for bad arguments and folders without runs."""
    parser = parser_for(__doc__)
    parser.prog = "python -m engine.reporting"
    parser.add_argument("runs", metavar="RUNS", nargs="+", help="folders, searched recursively for runs")
    parser.add_argument("--out", metavar="FILE", help="file of the page [default: report.html in the first of RUNS]")
    args = parser.parse_args(arguments)
    out, runs = Path(args.out or Path(args.runs[0]) / "report.html"), read_runs(args.runs)
    if not runs:
        raise UserError(f"{' '.join(args.runs)}: no run found; give a folder that contains runs, such as tuned_models")
    try:
        write_text(out, render(runs))
    except OSError as error:
        raise UserError(f"--out {out}: cannot be written to ({error.strerror}); choose another file") from error
    logger.info("%s: runs: %d, with problems: %d", out, len(runs), sum(bool(run.problems) for run in runs))


if __name__ == "__main__":
    run_command(lambda: report(sys.argv[1:]))
