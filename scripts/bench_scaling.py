"""Benchmark of scaling: a training step shared among the processes of a torchrun, against one process."""

import json
import logging
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from engine.device import choose_device
from engine.distributed import SINGLE_PROCESS, TRAINING_TIMEOUT, destroy, init, local_gpu
from engine.fast.precision import choose_arithmetic
from scripts.bench_training import WHERE, Step, batch_of, trainer_of
from scripts.measure import compare, machine
from utils.errors import UserError
from utils.flags import at_least, flag
from utils.log import logger


@dataclass(frozen=True)
class Scale(Step):
    """One training step of a batch by several processes, one core or GPU each, against the same batch by one of them.

    The ratio is of throughputs: at best the number of processes.
    """

    processes: int = flag(2, "processes that share the batch", group=WHERE, check=at_least(2))


def time_scaling(config: Scale) -> dict:
    """Log and return images/s of one process and of all; starts torchrun unless called by it."""
    processes = init(TRAINING_TIMEOUT)
    if processes is SINGLE_PROCESS:
        return _under_torchrun(config.processes)
    if not processes.is_rank0:
        logging.getLogger().setLevel(logging.ERROR)
    device = choose_device(config.device, local_gpu(0), config.threads or 1)
    arithmetic, words = choose_arithmetic(config.precision, config.compile, device)
    logger.info("%s a process, %d processes, %s", machine(device), processes.count, words)
    x, y = batch_of(config, device)
    alone = trainer_of(config, "ours", device, arithmetic)
    shared = trainer_of(config, "ours", device, arithmetic, processes=processes)

    def by_one() -> None:
        if processes.is_rank0:
            alone.step(x, y, config.epoch)
        processes.all_reduce_max([0])  # the others wait here

    figures = compare(by_one, lambda: shared.step(x, y, config.epoch), config.bs, config.pairs, device)
    destroy()
    return {"machine": machine(device), "arithmetic": words, **figures}


def _under_torchrun(processes: int) -> dict:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "figures.json"
        launch = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
        ended = subprocess.run([sys.executable, *launch, *sys.argv, "--json", str(path)])
        if ended.returncode:
            raise UserError(f"--processes {processes}: one of them failed, see above")
        return json.loads(path.read_text(encoding="utf-8"))
