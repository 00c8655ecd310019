"""How many cores other processes leave to this one: ``python -m utils.load`` prints free and all cores."""

import os
import time

from utils.log import logger

INTERVAL = 30  # seconds between two readings during a run


class CpuLoad:
    """The cores that other processes use, of those that this process may use, measured between two readings."""

    def __init__(self):
        self.cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        self.last, self.reported = self._sample(), 0.0

    def used_by_others(self) -> float:
        """Return the number of cores that other processes used since the last reading, 0 if it is unknown."""
        before, self.last = self.last, self._sample()
        seconds, busy, own = (new - old for new, old in zip(self.last, before, strict=True))
        if busy == 0 and hasattr(os, "getloadavg"):  # not Linux
            busy = os.getloadavg()[0] * seconds
        return max(0.0, busy - own) / max(seconds, 1e-9)

    def warn(self, threads: int, after: float = INTERVAL) -> None:
        """Warn if fewer cores than ``threads`` are free, and again if the load has changed by half a core since.

        Does nothing before ``after`` seconds since the last reading.
        """
        if time.monotonic() - self.last[0] < after:
            return
        others = self.used_by_others()
        if abs(others - self.reported) < 0.5:
            return
        self.reported, fitting = others, self.fitting(others)
        if fitting < threads:
            message = (
                "WARNING: other processes use %.1f of %d cores: --threads %d is faster than %d, which wait for them"
            )
            logger.warning(message, others, self.cores, fitting, threads)

    def fitting(self, others: float) -> int:
        """Return the number of threads for which cores are free."""
        return max(1, int(self.cores - others + 0.5))

    def _sample(self) -> tuple[float, float, float]:
        """Seconds since some time in the past: of a clock, of all work on the cores, of this process's work."""
        busy, mine = 0, {f"cpu{number}" for number in getattr(os, "sched_getaffinity", lambda _: ())(0)}
        try:
            with open("/proc/stat", encoding="ascii") as file:
                for name, user, nice, system, _, _, *others in (line.split() for line in file if line[:3] == "cpu"):
                    busy += sum(map(int, (user, nice, system, *others[:3]))) if name in mine else 0
            busy /= os.sysconf("SC_CLK_TCK")
        except OSError:  # not Linux
            pass
        return time.monotonic(), busy, sum(os.times()[:4])


CPU_LOAD = CpuLoad()  # measures from the start of the process

if __name__ == "__main__":
    time.sleep(1)
    print(CPU_LOAD.fitting(CPU_LOAD.used_by_others()), CPU_LOAD.cores)
