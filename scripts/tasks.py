"""Start commands from a script: several at once, each with a log; forward signals; split flags at --."""

import shlex
import signal
import subprocess
import time
from collections.abc import Callable, Iterable, Sequence
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from engine.training.signals import STATUS
from utils.errors import UserError
from utils.log import logger

UNFINISHED = "unfinished; the same command continues it"


class Task(NamedTuple):
    """A command. ``ended(problem, seconds)`` is called after it; the problem is "", UNFINISHED or why it failed."""

    name: str
    command: list[str]
    log: Path
    ended: Callable[[str, float], None]


class Pool:
    """Runs commands, one at a time in each of the ``slots``, until all have ended or a signal arrives.

    A slot is a list of flags for its command. ``received`` is the first of the signals in STATUS. After it no other
    command starts. The running commands receive one signal, because a training that is saving must not receive another:
    SIGUSR1 as itself, all others as SIGTERM.
    """

    def __init__(self, slots: Sequence[list[str]]):
        self.free = list(slots)
        self.running: dict[subprocess.Popen, tuple[Task, list[str], float]] = {}  # with its slot and start
        self.received: int | None = None

    def run(self, waiting: Callable[[], Iterable[Task]]) -> None:
        """Run the tasks of ``waiting()``, each once; it is called again whenever one has ended."""
        handled = [number for number in STATUS if signal.getsignal(number) != signal.SIG_IGN]  # nohup ignores SIGHUP
        handlers = {number: signal.signal(number, self._receive) for number in handled}
        started, changed, stopping = set(), True, False
        try:
            while self.running or changed:
                if self.received and not stopping:
                    logger.info("stopping: waiting until the running commands have saved")
                    self._send(signal.SIGUSR1 if self.received == signal.SIGUSR1 else signal.SIGTERM)
                    stopping = True
                if changed and not stopping:
                    for task in islice((task for task in waiting() if task.name not in started), len(self.free)):
                        started.add(task.name)
                        self._start(task)
                time.sleep(0.02)
                changed = self._collect()
        finally:
            self._send(signal.SIGTERM)  # to commands that still run after an exception
            for number, handler in handlers.items():
                signal.signal(number, handler)

    def _receive(self, number: int, _frame) -> None:
        self.received = self.received or number

    def _send(self, number: int) -> None:
        for process in self.running:
            process.send_signal(number)

    def _start(self, task: Task) -> None:
        logger.info("%s %s: started, log %s", time.strftime("%T"), task.name, task.log)
        slot = self.free.pop(0)
        # In a separate session, so that Ctrl-C reaches it only from here, once.
        process = start([*task.command, *slot], task.log, start_new_session=True)
        self.running[process] = task, slot, time.monotonic()

    def _collect(self) -> bool:
        """Report the commands that have ended; return whether there are any."""
        ended = [process for process in self.running if process.poll() is not None]
        for process in ended:
            task, slot, began = self.running.pop(process)
            self.free.append(slot)
            status = process.returncode if process.returncode >= 0 else 128 - process.returncode
            problem = f"failed (status {status}): {last_line(task.log)} (log {task.log})" if status else ""
            if status in STATUS.values() or (status > 128 and self.received):
                problem = UNFINISHED
            seconds = time.monotonic() - began
            logger.info("%s %s: %s", time.strftime("%T"), task.name, problem or f"finished in {seconds:.0f} s")
            task.ended(problem, seconds)
        return bool(ended)


def start(command: Sequence[str], log: Path, **options) -> subprocess.Popen:
    """Start a command; append the time, the command and then its output to ``log``."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with open(log, "a", encoding="utf-8", errors="surrogateescape") as file:
        print(time.strftime("%F %T"), shlex.join(command), file=file, flush=True)
        streams = {"stdin": subprocess.DEVNULL, "stdout": file, "stderr": subprocess.STDOUT}
        return subprocess.Popen(command, **streams, **options)


def last_line(log: Path) -> str:
    """Return the last line of a log, which says why its command failed."""
    return log.read_text(encoding="utf-8", errors="replace").rstrip().splitlines()[-1]


def check_seeds(seeds: Sequence[int]) -> None:
    """Raise UserError for a repeated seed: its run is one run, which must not count twice in a mean."""
    if len({*seeds}) < len(seeds):
        raise UserError(f"--seeds {' '.join(map(str, seeds))}: a seed is repeated; remove it")


def split_flags(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """The arguments before and after ``--``."""
    end = list(argv).index("--") if "--" in argv else len(argv)
    return list(argv[:end]), list(argv[end + 1 :])
