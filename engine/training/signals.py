"""Signals that ask a run to stop: it finishes its step, saves, and ends with the status that the asker expects."""

import signal

from utils.errors import Stopped

# Slurm warns by SIGUSR1 before it takes a machine away; to have saved in time is success. Others: 128 + signal.
STATUS = {signal.SIGTERM: 143, signal.SIGINT: 130, signal.SIGUSR1: 0}


class Signals:
    """Listens while it is entered. A signal ends the run at once, unless :meth:`defer` lets it wait in ``received``.

    A second Ctrl-C never waits.
    """

    def __init__(self):
        self.received, self._deferred, self._before = 0, False, {}

    def __enter__(self) -> "Signals":
        self._before = {number: signal.signal(number, self._take) for number in STATUS}
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def defer(self, wait: bool = True) -> None:
        """From now on let a signal wait, for there is something to save; or, again, not."""
        self._deferred = wait

    def _take(self, number: int, _frame) -> None:
        again = self.received == number == signal.SIGINT
        self.received = self.received or number
        if again or not self._deferred:
            raise stopped(number, "--resume continues from what is saved")


def stopped(number: int, words: str) -> Stopped:
    """The exception that ends a run on signal ``number``."""
    return Stopped(f"stopped by {signal.Signals(number).name}: {words}", STATUS[number])
