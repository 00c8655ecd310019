"""Benchmarks of training: a step, an epoch, its memory, its data; this code beside the plain reference."""

import resource
import subprocess
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F

from data import Split
from data.loader import Batches
from engine.accuracy import predict
from engine.device import choose_device
from engine.evaluation.attack import make_noise
from engine.fast.frozen import FoldedModel
from engine.fast.precision import Arithmetic, choose_arithmetic
from engine.training.metrics import EpochMetrics
from engine.training.trainer import Trainer
from engine.training.validation import Validator
from methods import ALIASES, METHODS, WITH_TWO_TEACHERS, WITHOUT_TEACHER
from models import build
from scripts import plain
from scripts.measure import ceilings, compare, gflop, machine, passes
from utils.config import TrainConfig
from utils.flags import at_least, between, check_values, flag
from utils.log import logger
from utils.names import canonical
from utils.seed import seed_everything

WHERE, WHAT = "where", "what"
EPSILON, STEP_SIZE = 8 / 255, 2 / 255
SIDES = {"reference": plain.Trainer, "ours": Trainer}


@dataclass(frozen=True)
class Timing:
    """Where and how often a benchmark measures."""

    pairs: int = flag(5, "how often each side is timed", group=WHERE, check=at_least(1))
    device: str = flag("auto", "auto, cpu, cuda or cuda:N", group=WHERE)
    threads: int | None = flag(
        None, "threads of the CPU (PyTorch's choice when not given)", group=WHERE, check=at_least(1)
    )
    json: str = flag("", "file for the figures", group=WHERE)

    def __post_init__(self):
        check_values(self)


@dataclass(frozen=True)
class Step(Timing):
    """One training step, attack to optimizer, against the official way of taking it."""

    method: str = flag("DGAD", "training method", group=WHAT)
    model: str = flag("resnet18", "student", group=WHAT)
    teacher_model: str = flag("wideresnet34_10", "teacher", group=WHAT)
    bs: int = flag(16, "images in a batch", group=WHAT, check=at_least(1))
    classes: int = flag(10, "classes", group=WHAT, check=at_least(2))
    image_size: int = flag(32, "side of the images", group=WHAT, check=between(16, 1024))
    epoch: int = flag(100, "epoch of the step; introspection begins at 60", group=WHAT, check=at_least(0))
    precision: str = flag("auto", "of our side; the reference computes in fp32", group=WHAT)
    compile: str = flag("auto", "of our side: auto, on, off", group=WHAT)
    profile: str = flag(
        "", "write a trace of one step of our side to this file, and name its dearest operations", group=WHERE
    )


@dataclass(frozen=True)
class Epoch(Step):
    """Data, steps and the scores of an epoch on generated images, against the official way."""

    images: int = flag(256, "training images, and as many to judge by", group=WHAT, check=at_least(1))


@dataclass(frozen=True)
class Watching(Step):
    """Ten training steps whose epoch logs the teacher's reliability, against the same steps without."""


@dataclass(frozen=True)
class Memory(Step):
    """Peak memory of a step, each side in a process of its own."""

    side: Literal["both", "reference", "ours"] = flag("both", "measure this side alone, in this process", group=WHERE)


@dataclass(frozen=True)
class Views(Timing):
    """The input gradient through each kind of view, against the network as it is."""

    model: str = flag("resnet18", "network", group=WHAT)
    bs: int = flag(16, "images in a batch", group=WHAT, check=at_least(1))
    classes: int = flag(10, "classes", group=WHAT, check=at_least(2))
    image_size: int = flag(32, "side of the images", group=WHAT, check=between(16, 1024))


VIEWS = {
    "folded": Arithmetic(),
    "folded, channels-last": Arithmetic(channels_last=True),
    "folded, bf16": Arithmetic(torch.bfloat16),
    "folded, bf16, channels-last": Arithmetic(torch.bfloat16, channels_last=True),
    "folded, bf16, channels-last, Winograd": Arithmetic(torch.bfloat16, channels_last=True, winograd=True),
}


@dataclass(frozen=True)
class Data(Timing):
    """Augmented batches from memory, against a DataLoader with torchvision's transforms."""

    images: int = flag(10_000, "images of 32x32", group=WHAT, check=at_least(1))
    bs: int = flag(128, "images in a batch", group=WHAT, check=at_least(1))
    workers: int = flag(2, "processes of the DataLoader", group=WHAT, check=at_least(0))


def time_step(config: Step) -> dict:
    """Log and return images/s of both sides, their passes and arithmetic, and the share of the machine's ceiling."""
    device, arithmetic, words = _setting(config)
    x, y = batch_of(config, device)
    trainers = {name: trainer_of(config, name, device, arithmetic) for name in SIDES}
    works = {name: (lambda trainer=trainer: trainer.step(x, y, config.epoch)) for name, trainer in trainers.items()}
    counted = {}
    for name, work in works.items():
        counts = passes(_networks(trainers[name]), work)
        counted[name] = {"passes": dict(counts), "gflop_per_image": gflop(work) / config.bs}
        shown = ", ".join(f"{key} {count}" for key, count in counts.items())
        logger.info("%s: %s; %.1f GFLOP an image", name, shown, counted[name]["gflop_per_image"])
    figures = compare(*works.values(), config.bs, config.pairs, device)
    ceiling = ceilings(device)
    kind = "fp32" if arithmetic.dtype is None else "bf16"
    reached = figures["images_per_second"]["ours"] * counted["ours"]["gflop_per_image"]
    line = "ours reaches %.1f GFLOP/s, %.0f %% of a large %s product's %.1f; a large copy reaches %.1f GB/s"
    logger.info(line, reached, 100 * reached / ceiling[kind], kind, ceiling[kind], ceiling["copy"])
    if config.profile:
        _profile(works["ours"], config.profile, device)
    return {"machine": machine(device), "arithmetic": words, "counted": counted, "ceilings": ceiling, **figures}


def time_epoch(config: Epoch) -> dict:
    """Log and return images/s of both sides; one image is trained on and one judged."""
    device, arithmetic, words = _setting(config)
    seed_everything(0)
    shape = (config.images, 3, config.image_size, config.image_size)
    split = Split(torch.randint(256, shape, dtype=torch.uint8), torch.randint(config.classes, shape[:1]))
    judged = Batches(split, config.bs, device=device)
    reference, ours = (trainer_of(config, name, device, arithmetic) for name in SIDES)
    loader = plain.loader(split, config.bs, workers=2)
    noise = [make_noise(x, 0, "PGD-10", "", k) for k, (x, _) in enumerate(judged)]
    shuffled = Batches(split, config.bs, device=device, shuffle=True, crop=4, flip=True)
    judge = Validator(ours.student, judged, EPSILON, seed=0, arithmetic=arithmetic)

    def plainly() -> None:
        for x, y in loader:
            reference.step(x.to(device), y.to(device), config.epoch)
        predict(reference.student, judged)
        ball = {"epsilon": EPSILON, "step_size": STEP_SIZE, "steps": 10}
        plain.pgd_accuracy(reference.student, judged, noise=noise, **ball)

    def fast() -> None:
        metrics = EpochMetrics(device)
        ours.set_learning_rate(0.001)
        for x, y in shuffled:
            metrics.add(ours.step(x, y, config.epoch), y)
        judge()

    return {
        "machine": machine(device),
        "arithmetic": words,
        **compare(plainly, fast, config.images, config.pairs, device),
    }


def time_watching(config: Watching) -> dict:
    """Log and return images/s without --log_reliability (the reference) and with it."""
    device, arithmetic, words = _setting(config)
    trainer, batches = trainer_of(config, "ours", device, arithmetic), [batch_of(config, device)] * 10

    def steps(teacher: bool) -> None:
        metrics = EpochMetrics(device, teacher=teacher)
        trainer.set_learning_rate(0.001)
        for x, y in batches:
            metrics.add(trainer.step(x, y, config.epoch), y)
        metrics.reliability()

    figures = compare(partial(steps, False), partial(steps, True), 10 * config.bs, config.pairs, device)
    return {"machine": machine(device), "arithmetic": words, **figures}


def measure_memory(config: Memory) -> dict:
    """Log and return the peak memory of both sides in MiB: the device's, on a CPU the whole process's."""
    if config.side == "both":
        peaks = {side: _in_a_process(side) for side in SIDES}
        logger.info("ours takes %.2f of the reference's memory", peaks["ours"] / peaks["reference"])
        return {"peak_mib": peaks}
    device, arithmetic, words = _setting(config)
    trainer, batch = trainer_of(config, config.side, device, arithmetic), batch_of(config, device)
    for _ in range(2):
        trainer.step(*batch, config.epoch)
    if device.type == "cuda":
        peak = torch.cuda.max_memory_allocated(device) / 2**20
    else:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10  # Linux counts in KiB
    logger.info("%s: peak %.0f MiB (%s)", config.side, peak, words if config.side == "ours" else "fp32, as it is")
    return {"peak_mib": peak}


def time_views(config: Views) -> dict:
    """Log and return how much faster an input-gradient step of each kind of view is than the network's own."""
    device = device_of(config)
    seed_everything(0)
    network = build(config.model, config.classes, config.image_size).to(device).eval()
    x = torch.rand(config.bs, 3, config.image_size, config.image_size, device=device)
    y = torch.randint(config.classes, (config.bs,), device=device)
    logger.info("%s: %s, %d images", machine(device), config.model, config.bs)

    def gradient(forward) -> None:
        images = x.clone().requires_grad_()
        torch.autograd.grad(F.cross_entropy(forward(images), y, reduction="sum"), images)

    figures = {}
    for name, arithmetic in VIEWS.items():
        logger.info("%s", name)
        view = FoldedModel(network, arithmetic)
        both = (lambda: gradient(network)), (lambda view=view: gradient(view))
        figures[name] = compare(*both, config.bs, config.pairs, device)
    return {"machine": machine(device), "views": figures}


def time_data(config: Data) -> dict:
    """Log and return images/s of both sides over one epoch of generated images."""
    device = device_of(config)
    logger.info("%s", machine(device))
    split = Split(torch.randint(256, (config.images, 3, 32, 32), dtype=torch.uint8), torch.zeros(config.images).long())
    ours = Batches(split, config.bs, device=device, shuffle=True, crop=4, flip=True)
    reference = plain.loader(split, config.bs, config.workers)

    def consume(batches) -> None:
        for x, y in batches:
            x.to(device), y.to(device)

    return compare(lambda: consume(reference), lambda: consume(ours), config.images, config.pairs, device)


def device_of(config: Timing) -> torch.device:
    """The device of a benchmark."""
    return choose_device(config.device, 0, config.threads)


def _setting(config: Step) -> tuple[torch.device, Arithmetic, str]:
    device = device_of(config)
    arithmetic, words = choose_arithmetic(config.precision, config.compile, device)
    logger.info("%s, %s", machine(device), words)
    return device, arithmetic, words


def batch_of(config: Step, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Generated images (B, 3, H, W) and labels (B,), the same each time."""
    seed_everything(0)
    x = torch.rand(config.bs, 3, config.image_size, config.image_size, device=device)
    return x, torch.randint(config.classes, (config.bs,), device=device)


def trainer_of(config: Step, side: str, device: torch.device, arithmetic: Arithmetic, **options):
    """A trainer of either side, on networks of the same weights."""
    seed_everything(0)
    method = canonical(config.method, METHODS, ALIASES, "--method")
    count = 0 if method in WITHOUT_TEACHER else 2 if method in WITH_TWO_TEACHERS else 1
    student = build(config.model, config.classes, config.image_size).to(device)
    teachers = [build(config.teacher_model, config.classes, config.image_size).to(device) for _ in range(count)]
    teachers = [teacher.eval().requires_grad_(False) for teacher in teachers]
    ours = side == "ours"
    optimizer = torch.optim.SGD(student.parameters(), lr=0.001, momentum=0.9, weight_decay=5e-4, fused=ours)
    settings = {"epsilon": EPSILON, "step_size": STEP_SIZE, "steps": 10} | ({"arithmetic": arithmetic} if ours else {})
    return SIDES[side](student, teachers, METHODS[method](TrainConfig()), optimizer, **settings, **options)


def _networks(trainer) -> dict[str, torch.nn.Module]:
    """What a step runs, by name: of our side the views too."""
    if isinstance(trainer, plain.Trainer):
        return {"student": trainer.student, **{f"teacher {k}": t for k, t in enumerate(trainer.teachers)}}
    guides = {f"teacher {k}": view for k, view in enumerate(trainer.teachers)}
    return {"student": trainer.student, "student's view": trainer.student_eval, **guides}


def _in_a_process(side: str) -> float:
    command = [sys.executable, *sys.argv, "--side", side]
    ended = subprocess.run(command, check=True, capture_output=True, text=True)
    line = next(line for line in ended.stdout.splitlines() if line.startswith(f"{side}: peak"))
    logger.info("%s", line)
    return float(line.split()[2])


def _profile(work, path: str, device: torch.device) -> None:
    kinds = [torch.profiler.ProfilerActivity.CPU]
    kinds += [torch.profiler.ProfilerActivity.CUDA] * (device.type == "cuda")
    with torch.profiler.profile(activities=kinds) as profiler:
        work()
    profiler.export_chrome_trace(str(Path(path)))
    by = f"self_{device.type}_time_total"
    logger.info("%s", profiler.key_averages().table(sort_by=by, row_limit=12, max_name_column_width=60))
