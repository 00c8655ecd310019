"""A process that has imported everything and forks a run for each line it reads, which saves the imports of each run.

A line is JSON: a folder, a script, its arguments, and environment variables. The output of the run goes
to output.txt in the folder. The process prints each child's pid, then its exit status.
"""

import json
import os
import runpy
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import matplotlib.pyplot  # noqa: E402, F401
import sklearn.datasets  # noqa: E402, F401

import engine.evaluation.run  # noqa: E402
import engine.training.run  # noqa: E402, F401


def child(folder: str, script: str, args: list[str], variables: dict[str, str]) -> None:
    os.chdir(folder)
    os.environ.update(variables)
    log = os.open("output.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(log, 1)
    os.dup2(log, 2)
    sys.argv = [script, *args]
    status = 0
    try:
        runpy.run_path(script, run_name="__main__")
    except SystemExit as exit:
        status = exit.code or 0
    finally:
        sys.stdout.flush()
        os._exit(status)


for line in sys.stdin:
    pid = os.fork()
    if not pid:
        child(*json.loads(line))
    print(pid, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
