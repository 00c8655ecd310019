"""How many cores other processes leave free: ``python -m utils.load`` prints the numbers of free and of all cores."""

import os
import time

from utils.log import logger

INTERVAL = 30  # seconds between two readings during a run


class CpuLoad:
    """Measures, between two readings, how many of the cores that this process may use are used by other processes."""

    def __init__(self):
        every = range(os.cpu_count() or 1)
        self.cores = {f"cpu{core}" for core in (os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else every)}
        self.last, self.reported = self._read(), -1.0

    def fitting(self) -> int:
        """Return the number of threads for which cores were free since the last reading."""
        before, self.last = self.last, self._read()
        seconds, busy, own = (new - old for new, old in zip(self.last, before, strict=True))
        if not busy and hasattr(os, "getloadavg"):  # not Linux
            busy = os.getloadavg()[0] * seconds
        self.others = max(0.0, busy - own) / max(seconds, 1e-9)
        return max(1, int(len(self.cores) - self.others + 0.5))

    def warn(self, threads: int, after: float = INTERVAL) -> None:
        """Warn if fewer cores than ``threads`` are free, and again after the load has changed by half a core.

        Does nothing until ``after`` seconds have passed since the last reading.
        """
        if time.monotonic() - self.last[0] < after:
            return
        fitting = self.fitting()
        if abs(self.others - self.reported) >= 0.5:
            self.reported = self.others
            if fitting < threads:
                message = "WARNING: other processes use %.1f of %d cores; --threads %d would be faster than %d threads"
                logger.warning(message, self.others, len(self.cores), fitting, threads)

    def _read(self) -> tuple[float, float, float]:
        """Return seconds since some time in the past: of a clock, of all work on the cores, of this process's work."""
        busy = 0.0
        try:
            with open("/proc/stat", encoding="ascii") as file:
                for name, user, nice, system, _, _, *others in (line.split() for line in file if line[:3] == "cpu"):
                    busy += sum(map(int, (user, nice, system, *others[:3]))) if name in self.cores else 0
            busy /= os.sysconf("SC_CLK_TCK")
        except OSError:  # not Linux
            pass
        return time.monotonic(), busy, sum(os.times()[:4])


CPU_LOAD = CpuLoad()  # measures from the start of the process

if __name__ == "__main__":
    time.sleep(1)
    print(CPU_LOAD.fitting(), len(CPU_LOAD.cores))
