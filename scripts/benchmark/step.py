"""Benchmarks of a training step, and of one that processes share."""

from dataclasses import dataclass
from typing import Literal

import torch

from data import Split
from data.augment import AUGMENTATIONS
from data.loader import Batches
from engine.device import choose_device
from engine.distributed import SINGLE_PROCESS, TRAINING_TIMEOUT, destroy, init, local_gpu
from engine.fast.precision import Arithmetic, choose_arithmetic
from engine.training.averaging import Ema
from engine.training.trainer import Trainer
from engine.training.weight_perturbation import WeightPerturbation
from methods import ALIASES, METHODS, count_teachers
from models import build
from models.teachers import architecture_of
from scripts.benchmark import plain
from scripts.benchmark.measure import compare, gflop, machine, product_speed
from utils.config import TrainConfig
from utils.errors import UserError
from utils.fields import at_least, between, check_values, flag
from utils.log import logger
from utils.names import canonical
from utils.seed import seed_everything

EXECUTION, WORKLOAD = "execution", "workload"  # groups of flags
# Pieces of a recipe that are options of the trainer; the others are augmentations.
PIECES = {
    "awp": lambda student: {"perturbation": WeightPerturbation(student, 0.01)},
    "ema": lambda student: {"average": Ema(student, 0.995)},
}


@dataclass(frozen=True)
class Step:
    """What is trained, how this project computes it, and how often it is timed."""

    method: str = flag("DGAD", "training method", group=WORKLOAD)
    model: str = flag("resnet18", "student", group=WORKLOAD)
    teacher_model: str = flag("wideresnet34_10", "teacher", group=WORKLOAD)
    bs: int = flag(16, "batch size", group=WORKLOAD, check=at_least(1))
    classes: int = flag(10, "number of classes", group=WORKLOAD, check=at_least(2))
    image_size: int = flag(32, "height and width of the images", group=WORKLOAD, check=between(16, 1024))
    epoch: int = flag(100, "epoch of the step, from 0; introspection begins at 60", group=WORKLOAD, check=at_least(0))
    precision: Literal["auto", "fp32", "tf32", "bf16"] = flag(
        "auto", "precision of our step; the reference uses fp32, on a GPU TF32", group=WORKLOAD
    )
    compile: Literal["auto", "off", "on", "graphs"] = flag("auto", "compilation of our step", group=WORKLOAD)
    piece: Literal["awp", "ema", "cutout", "cutmix", "idbh-weak", "idbh-strong"] | None = flag(
        None, "time our step with this piece of a recipe against our step without it", group=WORKLOAD
    )
    pairs: int = flag(5, "how often each side is timed", group=EXECUTION, check=at_least(1))
    device: str = flag("auto", "auto, cpu, cuda or cuda:N", group=EXECUTION)
    threads: int | None = flag(None, "CPU threads; default: PyTorch's choice", group=EXECUTION, check=between(1, 4096))
    json: str = flag("", "file for the results", group=EXECUTION)
    profile: str = flag("", "write a trace of one of our steps to this file", group=EXECUTION)

    def __post_init__(self):
        check_values(self)


def time_step(config: Step) -> dict:
    """One training step, from the attack to the optimizer, against a step of the official codes."""
    device = choose_device(config.device, 0, config.threads)
    sides = {"reference": (Trainer if config.piece else plain.Trainer, None), "ours": (Trainer, config.piece)}
    eager, _ = choose_arithmetic(config.precision, "off", device)  # FLOP are counted in eager mode only
    counts = {name: gflop(make_step(config, device, eager, *side)) / config.bs for name, side in sides.items()}
    arithmetic, description = choose_arithmetic(config.precision, config.compile, device)
    logger.info("%s, %s", machine(device), description)
    made = {name: _make_measured(config, device, arithmetic, *side) for name, side in sides.items()}
    steps, peaks = [step for step, _ in made.values()], {name: peak for name, (_, peak) in made.items() if peak}
    result = compare(*steps, config.bs, config.pairs, device) | {"peak_mib": peaks}
    if peaks:
        logger.info("peak memory: reference %.0f MiB, ours %.0f MiB", *peaks.values())
    kind = "fp32" if arithmetic.dtype is None else "bf16"
    ceiling = product_speed(device, arithmetic.dtype or torch.float32)
    executed = result["images_per_second"]["ours"] * counts["ours"]
    logger.info("GFLOP per image: reference %.1f, ours %.1f", *counts.values())
    line = "ours: %.1f GFLOP/s, %.0f %% of a %s matrix product's %.1f"
    logger.info(line, executed, 100 * executed / ceiling, kind, ceiling)
    if config.profile:
        _profile(steps[1], config.profile, device)
    setup = {"machine": machine(device), "arithmetic": description, "gflop_per_image": counts}
    setup["ceilings"] = {kind: ceiling}
    return setup | result


def time_scaling(config: Step) -> dict:
    """A step shared by torchrun's processes, one core or GPU each, against a step on the same batch in one process.

    The ratio is at best the number of processes.
    """
    processes = init(TRAINING_TIMEOUT)
    if processes is SINGLE_PROCESS:
        raise UserError("scale: use torchrun --standalone --nproc_per_node=2 scripts/benchmark scale")
    device = choose_device(config.device, local_gpu(0), config.threads or 1)
    arithmetic, description = choose_arithmetic(config.precision, config.compile, device)
    logger.info("%d processes, each on %s, %s", processes.count, machine(device), description)
    single = make_step(config, device, arithmetic)
    shared = make_step(config, device, arithmetic, processes=processes)

    def by_rank0() -> None:
        if processes.is_rank0:
            single()
        processes.all_reduce_max([0])  # the others wait here

    result = compare(by_rank0, shared, config.bs, config.pairs, device)
    destroy()
    return {"machine": machine(device), "arithmetic": description, **result}


def make_step(config: Step, device: torch.device, arithmetic: Arithmetic, kind=Trainer, piece=None, **options):
    """Return a function that performs one step of a new ``kind`` of trainer on generated images.

    All such functions start from the same weights and images. The reference ignores ``arithmetic``.
    """
    seed_everything(0)
    method = canonical(config.method, METHODS, ALIASES, "--method")
    names = [config.model, *[architecture_of(config.teacher_model)] * count_teachers(method)]
    student, *teachers = (build(name, config.classes, config.image_size).to(device) for name in names)
    teachers = [teacher.eval().requires_grad_(False) for teacher in teachers]
    ours = kind is Trainer
    optimizer = torch.optim.SGD(student.parameters(), lr=0.001, momentum=0.9, weight_decay=5e-4, fused=ours)
    options |= {"epsilon": 8 / 255, "step_size": 2 / 255, "steps": 10} | ({"arithmetic": arithmetic} if ours else {})
    options |= PIECES[piece](student) if piece in PIECES else {}
    trainer = kind(student, teachers, METHODS[method](TrainConfig(method=method)), optimizer, **options)
    images = torch.randint(256, (config.bs, 3, config.image_size, config.image_size), dtype=torch.uint8)
    split = Split(images, torch.randint(config.classes, (config.bs,)))
    transforms, _ = AUGMENTATIONS.get(piece, ((), ""))
    mixed = config.classes if piece == "cutmix" else 0
    batches = Batches(split, config.bs, device=device, transforms=transforms, mix_classes=mixed)
    batch = next(iter(batches))
    return lambda: trainer.step(*(next(iter(batches)) if transforms else batch), config.epoch)


def _make_measured(config: Step, device: torch.device, arithmetic: Arithmetic, *side) -> tuple:
    """Make a step; on a GPU also measure its peak memory, in MiB, in two calls."""
    if device.type != "cuda":
        return make_step(config, device, arithmetic, *side), None
    torch.cuda.reset_peak_memory_stats(device)
    before, step = torch.cuda.memory_allocated(device), make_step(config, device, arithmetic, *side)
    step(), step()
    return step, (torch.cuda.max_memory_allocated(device) - before) / 2**20


def _profile(step, path: str, device: torch.device) -> None:
    activities = [torch.profiler.ProfilerActivity.CPU]
    activities += [torch.profiler.ProfilerActivity.CUDA] * (device.type == "cuda")
    with torch.profiler.profile(activities=activities) as profiler:
        step()
    profiler.export_chrome_trace(path)
    order = f"self_{device.type}_time_total"
    logger.info("%s", profiler.key_averages().table(sort_by=order, row_limit=12, max_name_column_width=60))
