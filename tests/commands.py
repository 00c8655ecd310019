"""Run an entry script as a user does, in this process."""

import runpy
import shlex
import sys
from collections import namedtuple

from conftest import ROOT

SMALL = "--dataset Digits --image_size 16 --model small_resnet --limit_train 48 --limit_test 40 --bs 16 --num_steps 2"


class Killed(BaseException):
    """Ends a run as SIGKILL does: nothing handles it."""


def fail_at(monkeypatch, owner, name, nth, error=Killed):
    """Make the ``nth`` call of a function raise an error."""
    function, calls = getattr(owner, name), []

    def failing(*args, **kwargs):
        calls.append(1)
        if len(calls) == nth:
            raise error
        return function(*args, **kwargs)

    monkeypatch.setattr(owner, name, failing)


Outcome = namedtuple("Outcome", "status out err")  # how a script ended


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
