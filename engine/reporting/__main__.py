"""One HTML page of many runs: python -m engine.reporting RUNS... [--out FILE] [--watch SECONDS]

RUNS are folders, searched recursively for runs. The page shows every run with its results, figures and images; it is
one file that loads nothing from a network. --watch writes it again while runs are training; the opened page reloads.
"""

import math
import sys
import time
from pathlib import Path

from engine.reporting.page import render
from engine.reporting.runs import read_runs
from utils.cli import run_command
from utils.errors import UserError
from utils.files import write_text
from utils.flags import parser_for
from utils.log import logger


def report(arguments: list[str]) -> None:
    """Write the page once, or until interrupted. Raises UserError for bad arguments and folders without runs."""
    parser = parser_for(__doc__)
    parser.prog = "python -m engine.reporting"
    parser.add_argument("runs", metavar="RUNS", nargs="+", help="folders, searched recursively for runs")
    parser.add_argument("--out", metavar="FILE", help="file of the page [default: report.html in the first of RUNS]")
    parser.add_argument("--watch", metavar="SECONDS", type=float, help="write the page every SECONDS until interrupted")
    args = parser.parse_args(arguments)
    if args.watch is not None and not 1 <= args.watch < math.inf:
        raise UserError(f"--watch {args.watch:g}: must be a number of at least 1")
    out = Path(args.out or Path(args.runs[0]) / "report.html")
    while True:
        runs = read_runs(args.runs)
        if not runs:
            raise UserError(
                f"{' '.join(args.runs)}: no run found; name a folder that contains runs, such as tuned_models"
            )
        try:
            write_text(out, render(runs, args.watch))
        except OSError as error:
            raise UserError(f"--out {out}: cannot be written to ({error.strerror}); name another file") from error
        logger.info("%s: runs: %d, with problems: %d", out, len(runs), sum(bool(run.problems) for run in runs))
        if not args.watch:
            return
        time.sleep(args.watch)


if __name__ == "__main__":
    run_command(lambda: report(sys.argv[1:]))
