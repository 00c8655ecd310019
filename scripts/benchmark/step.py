"""Benchmarks of training: a step, a step shared among processes, the loading of data."""

import logging
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
from methods import ALIASES, METHODS, WITH_TWO_TEACHERS, WITHOUT_TEACHER
from models import build
from scripts.benchmark import plain
from scripts.benchmark.measure import EXECUTION, WORKLOAD, Timing, compare, gflop, machine, product_speeds
from utils.config import TrainConfig
from utils.errors import UserError
from utils.flags import at_least, between, flag
from utils.log import logger
from utils.names import canonical
from utils.seed import seed_everything

SIDES = {"reference": plain.Trainer, "ours": Trainer}
PIECES = {
    "awp": lambda student: {"perturbation": WeightPerturbation(student, 0.01)},
    "ema": lambda student: {"average": Ema(student, 0.995)},
}


@dataclass(frozen=True)
class Step(Timing):
    """What is trained, and how our side computes."""

    method: str = flag("DGAD", "training method", group=WORKLOAD)
    model: str = flag("resnet18", "student", group=WORKLOAD)
    teacher_model: str = flag("wideresnet34_10", "teacher", group=WORKLOAD)
    bs: int = flag(16, "batch size", group=WORKLOAD, check=at_least(1))
    classes: int = flag(10, "number of classes", group=WORKLOAD, check=at_least(2))
    image_size: int = flag(32, "height and width of the images", group=WORKLOAD, check=between(16, 1024))
    epoch: int = flag(100, "epoch of the step, from 0; introspection begins at 60", group=WORKLOAD, check=at_least(0))
    precision: str = flag("auto", "precision of our side; the reference computes in fp32", group=WORKLOAD)
    compile: str = flag("auto", "compilation of our side: auto, off, on, graphs", group=WORKLOAD)
    piece: Literal["awp", "ema"] | None = flag(
        None, "time our step with this piece of a recipe against our step without it", group=WORKLOAD
    )
    profile: str = flag("", "write a trace of one step of our side to this file", group=EXECUTION)


@dataclass(frozen=True)
class Data(Timing):
    """An epoch of generated images of 32x32."""

    images: int = flag(10_000, "number of images", group=WORKLOAD, check=at_least(1))
    bs: int = flag(128, "batch size", group=WORKLOAD, check=at_least(1))
    augment: str = flag("crop", "of our side, as --augment of main.py", group=WORKLOAD)
    workers: int = flag(2, "processes of the DataLoader", group=WORKLOAD, check=at_least(0))


def time_step(config: Step) -> dict:
    """One training step, from the attack to the optimizer, against a step of the official codes."""
    device = config.choose_device()
    eager, _ = choose_arithmetic(config.precision, "off", device)  # compiled code cannot be counted
    counts = {name: gflop(make_step(config, name, device, eager)) / config.bs for name in SIDES}
    arithmetic, description = choose_arithmetic(config.precision, config.compile, device)
    logger.info("%s, %s", machine(device), description)
    peaks = {name: _peak_memory(config, name, device, arithmetic) for name in SIDES if device.type == "cuda"}
    steps = {name: make_step(config, name, device, arithmetic) for name in SIDES}
    result = compare(*steps.values(), config.bs, config.pairs, device) | {"peak_mib": peaks}
    if peaks:
        logger.info("peak memory: reference %.0f MiB, ours %.0f MiB", *peaks.values())
    peak_speed, kind = product_speeds(device), "fp32" if arithmetic.dtype is None else "bf16"
    rate, executed = (result["images_per_second"]["ours"] * counts[name] for name in SIDES)
    logger.info("GFLOP per image: reference %.1f, ours %.1f", *counts.values())
    line = "ours: --rate %.1f of cost.py (GFLOP/s); executed %.1f GFLOP/s, %.0f %% of a %s matrix product's %.1f"
    logger.info(line, rate, executed, 100 * executed / peak_speed[kind], kind, peak_speed[kind])
    if config.profile:
        _profile(steps["ours"], config.profile, device)
    setup = {"machine": machine(device), "arithmetic": description, "gflop_per_image": counts, "ceilings": peak_speed}
    return setup | result


def time_scaling(config: Step) -> dict:
    """A step shared by the processes of torchrun, one core or GPU each, against the same batch in one of them.

    The ratio is at best the number of processes.
    """
    processes = init(TRAINING_TIMEOUT)
    if processes is SINGLE_PROCESS:
        raise UserError("scale: use torchrun --standalone --nproc_per_node=2 scripts/benchmark scale")
    if not processes.is_rank0:
        logging.getLogger().setLevel(logging.ERROR)
    device = choose_device(config.device, local_gpu(0), config.threads or 1)
    arithmetic, description = choose_arithmetic(config.precision, config.compile, device)
    logger.info("%d processes, each on %s, %s", processes.count, machine(device), description)
    single = make_step(config, "ours", device, arithmetic)
    shared = make_step(config, "ours", device, arithmetic, processes=processes)

    def by_rank0() -> None:
        if processes.is_rank0:
            single()
        processes.all_reduce_max([0])  # the others wait here

    result = compare(by_rank0, shared, config.bs, config.pairs, device)
    destroy()
    return {"machine": machine(device), "arithmetic": description, **result}


def time_data(config: Data) -> dict:
    """Augmented batches from memory, against a DataLoader with torchvision's transforms."""
    device = config.choose_device()
    logger.info("%s", machine(device))
    split = Split(torch.randint(256, (config.images, 3, 32, 32), dtype=torch.uint8), torch.zeros(config.images).long())
    transforms, _ = AUGMENTATIONS[canonical(config.augment, AUGMENTATIONS, {}, "--augment")]
    mixed = 10 if config.augment == "cutmix" else 0
    ours = Batches(split, config.bs, device=device, shuffle=True, transforms=transforms, mix_classes=mixed)
    reference = plain.loader(split, config.bs, config.workers)

    def consume(batches) -> None:
        for x, y in batches:
            x.to(device), y.to(device)

    return compare(lambda: consume(reference), lambda: consume(ours), config.images, config.pairs, device)


def make_step(config: Step, side: str, device: torch.device, arithmetic: Arithmetic, **options):
    """A function that takes a step of a side on generated images; both sides have the same weights and images."""
    seed_everything(0)
    method = canonical(config.method, METHODS, ALIASES, "--method")
    count = 0 if method in WITHOUT_TEACHER else 2 if method in WITH_TWO_TEACHERS else 1
    student = build(config.model, config.classes, config.image_size).to(device)
    teachers = [build(config.teacher_model, config.classes, config.image_size).to(device) for _ in range(count)]
    teachers = [teacher.eval().requires_grad_(False) for teacher in teachers]
    options |= PIECES[config.piece](student) if config.piece and side == "ours" else {}
    side = "ours" if config.piece else side
    optimizer = torch.optim.SGD(student.parameters(), lr=0.001, momentum=0.9, weight_decay=5e-4, fused=side == "ours")
    options |= {"epsilon": 8 / 255, "step_size": 2 / 255, "steps": 10}
    options |= {"arithmetic": arithmetic} if side == "ours" else {}
    trainer = SIDES[side](student, teachers, METHODS[method](TrainConfig(method=method)), optimizer, **options)
    x = torch.rand(config.bs, 3, config.image_size, config.image_size).to(device)
    y = torch.randint(config.classes, (config.bs,)).to(device)
    return lambda: trainer.step(x, y, config.epoch)


def _peak_memory(config: Step, side: str, device: torch.device, arithmetic: Arithmetic) -> float:
    """Peak memory of two steps on a GPU, in MiB."""
    torch.cuda.reset_peak_memory_stats(device)
    before, step = torch.cuda.memory_allocated(device), make_step(config, side, device, arithmetic)
    step(), step()
    return (torch.cuda.max_memory_allocated(device) - before) / 2**20


def _profile(step, path: str, device: torch.device) -> None:
    activities = [torch.profiler.ProfilerActivity.CPU]
    activities += [torch.profiler.ProfilerActivity.CUDA] * (device.type == "cuda")
    with torch.profiler.profile(activities=activities) as profiler:
        step()
    profiler.export_chrome_trace(path)
    order = f"self_{device.type}_time_total"
    logger.info("%s", profiler.key_averages().table(sort_by=order, row_limit=12, max_name_column_width=60))
