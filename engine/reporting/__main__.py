"""One HTML page of many runs: python -m engine.reporting RUNS... [--out FILE] [--watch SECONDS]

RUNS are folders, searched recursively for runs. The page shows every run with its results, figures and images; it is
one file that loads nothing from a network. --watch writes it again while runs are training; the opened page reloads.
"""

import math
import sys
import time
from pathlib import Path

from engine.reporting.page import render
from engine.reporting.runs import Run, read_runs
from utils.cli import run_command
from utils.errors import UserError
from utils.files import write_text
from utils.flags import parser_for
from utils.log import logger


def report(arguments: list[str]) -> None:
    """Write the page once, or until interrupted; raises UserError for bad arguments."""
    parser = parser_for(__doc__)
    parser.prog = "python -m engine.reporting"
    parser.add_argument("runs", metavar="RUNS", nargs="+", help="folders, searched recursively for runs")
    parser.add_argument("--out", metavar="FILE", help="file of the page [default: report.html in the first of RUNS]")
    parser.add_argument("--watch", metavar="SECONDS", type=float, help="write the page every SECONDS until interrupted")
    args = parser.parse_args(arguments)
    if args.watch is not None and not 1 <= args.watch < math.inf:
        raise UserError(f"--watch {args.watch:g}: must be a number of at least 1")
    out = Path(args.out or Path(args.runs[0]) / "report.html")
    runs = write(args.runs, out, args.watch)
    logger.info("%s: runs: %d, with problems: %d", out, len(runs), sum(bool(run.problems) for run in runs))
    try:
        while args.watch:
            time.sleep(args.watch)
            write(args.runs, out, args.watch)
    except KeyboardInterrupt:
        write(args.runs, out)  # a page that does not reload itself
        raise


def write(paths: list[str], out: Path, reload_seconds: float | None = None) -> list[Run]:
    """Write the page of all runs below ``paths``. Raises UserError for no runs, and where ``out`` is not writable."""
    runs = read_runs(paths)
    if not runs:
        raise UserError(f"{' '.join(paths)}: no run found; name a folder that contains runs, such as tuned_models")
    try:
        write_text(out, render(runs, reload_seconds))
    except OSError as error:
        raise UserError(f"--out {out}: cannot be written to ({error.strerror}); name another file") from error
    return runs


if __name__ == "__main__":
    run_command(lambda: report(sys.argv[1:]))
