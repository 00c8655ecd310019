"""Run an entry script as a user does, in this process or in a new one."""

import json
import os
import runpy
import shlex
import subprocess
import sys
from dataclasses import dataclass

from conftest import ROOT

SMALL = "--dataset Digits --image_size 16 --model small_resnet --limit_train 48 --limit_test 40 --bs 16 --num_steps 2"


@dataclass
class Outcome:
    """How a script ended."""

    status: int
    out: str
    err: str


def run_in_process(monkeypatch, capsys, script: str, args: str) -> Outcome:
    """Run a script in this process: the same file and command line, without the seconds of a new interpreter."""
    monkeypatch.setattr(sys, "argv", [script, *shlex.split(args)])
    capsys.readouterr()
    status = 0
    try:
        runpy.run_path(str(ROOT / script), run_name="__main__")
    except SystemExit as ended:
        status = ended.code
    captured = capsys.readouterr()
    return Outcome(status, captured.out, captured.err)


def run_in_subprocess(script: str, args: str, folder) -> Outcome:
    """Run a script in a new interpreter in ``folder``."""
    command = [sys.executable, str(ROOT / script), *args.split()]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    ended = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)
    return Outcome(ended.returncode, ended.stdout, ended.stderr)


class ForkServer:
    """Runs scripts one at a time, each in a process forked from one that has imported everything."""

    def __init__(self):
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        command = [sys.executable, str(ROOT / "tests" / "fork_server.py")]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        self.process = subprocess.Popen(command, env=environment, text=True, **pipes)

    def start(self, folder, script: str, args: str, **variables: str) -> int:
        """Start a script in ``folder`` with environment variables; return its pid. Its output goes to output.txt."""
        folder.mkdir(exist_ok=True)
        run = [str(folder), str(ROOT / script), shlex.split(args), variables]
        print(json.dumps(run), file=self.process.stdin, flush=True)
        return int(self.process.stdout.readline())

    def wait(self) -> int:
        """The exit status of the script."""
        return int(self.process.stdout.readline())

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait()
