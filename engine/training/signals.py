"""Signals that stop a run: it finishes its step, saves, and exits with the status that the sender expects."""

import signal

from utils.errors import Stopped

# Slurm sends SIGUSR1 before the time limit: 75 (EX_TEMPFAIL), start the command again. The others: 128 + signal number.
STATUS = {"SIGHUP": 129, "SIGINT": 130, "SIGTERM": 143, "SIGUSR1": 75}
STATUS = {getattr(signal, name): status for name, status in STATUS.items() if hasattr(signal, name)}


class Signals:
    """Context manager that handles signals: each ends the run at once or, while ``deferred``, sets ``received``.

    A run defers them while it has something to save. Ctrl-C after another signal, or a second one, ends it at once.
    """

    def __init__(self):
        self.received, self.deferred, self._previous = 0, False, {}

    def __enter__(self) -> "Signals":
        handled = [number for number in STATUS if signal.getsignal(number) != signal.SIG_IGN]  # nohup ignores SIGHUP
        self._previous = {number: signal.signal(number, self._handle) for number in handled}
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _handle(self, number: int, _frame) -> None:
        at_once = not self.deferred or (self.received and number == signal.SIGINT)
        self.received = self.received or number
        if at_once:
            raise stopped(number, "--resume continues from the last saved state")


def stopped(number: int, message: str) -> Stopped:
    """Return the exception that ends a run on signal ``number``."""
    return Stopped(f"stopped by {signal.Signals(number).name}: {message}", STATUS[number])
