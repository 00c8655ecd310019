"""Ten training steps of each method by all processes of torchrun, or by one process; rank 0 saves the students."""

import sys
from datetime import timedelta
from pathlib import Path

import torch

sys.path[:0] = [str(Path(__file__).resolve().parents[1]), str(Path(__file__).resolve().parent)]

from tiny import TinyNet, make_trainer  # noqa: E402

from engine.distributed import destroy, init  # noqa: E402
from engine.training.averaging import Ema  # noqa: E402
from engine.training.metrics import EpochMetrics  # noqa: E402
from engine.training.weight_perturbation import WeightPerturbation  # noqa: E402

SIZES = (7, 6, 7, 2, 1, 6, 7, 5, 2, 6)  # of the batches: odd ones, and fewer images than processes


def ten_steps(name: str, processes, sync_bn: bool = True, pieces: bool = False) -> dict:
    torch.manual_seed(0)
    student, *teachers = (TinyNet().double() for _ in range(3))
    teachers = [teacher.eval().requires_grad_(False) for teacher in teachers]
    batches = [(torch.rand(n, 3, 8, 8, dtype=torch.float64), torch.randint(10, (n,))) for n in SIZES]
    options = {"generator": torch.Generator().manual_seed(1), "processes": processes, "sync_bn": sync_bn}
    options["average"] = average = Ema(student, 0.9)
    if pieces:
        options |= {"perturbation": WeightPerturbation(student, 0.01), "clip_grad": 1.0, "parts": 2}
    trainer = make_trainer(name, student, teachers, config={"iad_begin": 0}, steps=3, **options)
    metrics = EpochMetrics("cpu", processes, parts=trainer.parts)
    for x, y in batches:
        metrics.add(trainer.step(x, y), y)
    weights = student.state_dict() | {f"average.{key}": value for key, value in average.network.state_dict().items()}
    return {"net": weights, "means": [mean or 0.0 for mean in metrics.means().values()]}


if __name__ == "__main__":
    out, *names = sys.argv[1:]
    processes = init(timedelta(minutes=2))
    results = {name: ten_steps(name, processes) for name in names}
    results["pieces"] = ten_steps("AT", processes, pieces=True)
    unsynced = [None] * processes.count
    torch.distributed.all_gather_object(unsynced, ten_steps("AT", processes, sync_bn=False)["net"])
    if processes.is_rank0:
        torch.save(results | {"unsynced": unsynced}, out)
    torch.distributed.barrier()  # no rank closes its connections before rank 0 has saved
    destroy()
