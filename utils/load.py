"""How many cores other processes leave free: ``python -m utils.load`` prints the number unless all are free."""

import os
import time

_USABLE = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)
CORES = {f"cpu{core}" for core in _USABLE}


def _times() -> tuple[float, float]:
    """Return the seconds since some time in the past: of a clock, and of other processes' work on the cores."""
    busy = 0.0
    try:
        with open("/proc/stat", encoding="ascii") as file:
            for name, user, nice, system, _, _, *others in (line.split() for line in file if line[:3] == "cpu"):
                busy += sum(map(int, (user, nice, system, *others[:3]))) if name in CORES else 0
        busy = busy / os.sysconf("SC_CLK_TCK") - sum(os.times()[:4])
    except OSError:  # not Linux
        pass
    return time.monotonic(), busy


_START = _times()


def free_cores() -> int:
    """Return how many of the cores that this process may use were free since this module was imported, at least 1."""
    seconds, others = (now - start for now, start in zip(_times(), _START, strict=True))
    return max(1, int(len(CORES) - max(0.0, others) / max(seconds, 1e-9) + 0.5))


if __name__ == "__main__":
    time.sleep(1)
    free = free_cores()
    print(free if free < len(CORES) else "")
