"""Time this code against the plain reference, alternately in one process: python scripts/benchmark.py WHAT [flags]

WHAT is one of: step data judging evaluate. The ratio is the median over pairs of (reference, ours).
"""

import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # this file is run from its folder

from attacks.objectives import cross_entropy
from attacks.pgd import uniform
from attacks.suite import Setting, linf, pgd20
from data import Split, Splits, load, subset
from data.loader import Batches
from engine.device import choose_device, use_full_precision
from engine.distributed import Processes
from engine.eval_state import State
from engine.evaluate import noise_of, read, strike
from engine.judge import Judge
from engine.networks import make_network, network_in
from engine.precision import Arithmetic, choose_arithmetic
from engine.trainer import Trainer
from engine.views import for_evaluation
from methods import ALIASES, METHODS, WITH_TWO_TEACHERS, WITHOUT_TEACHER
from models import build
from scripts import plain
from scripts.measure import ceilings, compare, gflop, machine, passes
from utils.command import run_command
from utils.config import TrainConfig
from utils.errors import UserError
from utils.flags import at_least, between, flag, parse
from utils.log import logger
from utils.names import canonical
from utils.seed import seed_everything
from utils.versions import versions

WHERE, WHAT = "where", "what"


@dataclass(frozen=True)
class Evaluate:
    """PGD-20 that stops for fooled images, against PGD-20 that does not."""

    model_path: str = flag(
        "", "checkpoint to attack (when not given: small_resnet, trained here on Digits)", group=WHAT
    )
    dataset: str = flag("Digits", "its data set", group=WHAT)
    data_root: str | None = flag(None, "folder of the data", group=WHAT)
    image_size: int | None = flag(16, "side of the images, for Folder and Digits", group=WHAT)
    limit_test: int = flag(320, "test images", group=WHAT, check=at_least(1))
    eps: float | None = flag(
        None, "radius in [0, 1] (when not given: where half of the images stand)", group=WHAT, check=between(0, 1)
    )
    bs: int = flag(64, "images in a batch", group=WHAT, check=at_least(1))
    pairs: int = flag(7, "how often each side is timed", group=WHERE, check=at_least(1))
    device: str = flag("auto", "auto, cpu, cuda or cuda:N", group=WHERE)
    threads: int = flag(0, "threads of the CPU (PyTorch's choice when not given)", group=WHERE, check=at_least(0))
    json: str = flag("", "file for the figures", group=WHERE)


def time_evaluation(config: Evaluate) -> dict:
    """Print and return both sides' images/s and the ratio of their times."""
    device = _device(config)
    splits = load(config.dataset, config.data_root, image_size=config.image_size)
    network = _network(config, splits, device)
    images = subset(splits.test, config.limit_test, seed=0)
    batches = Batches(images, config.bs, device=device)
    epsilon = config.eps if config.eps is not None else _half_standing(network, batches)

    title, (stage,) = (attack := pgd20(Setting(epsilon, 0))).title, attack.stages
    noise = [noise_of(x, 0, title, stage, k) for k, (x, _) in enumerate(batches)]

    def reference() -> float:
        network.requires_grad_(True)  # as the official evaluations leave it
        ball = {"epsilon": epsilon, "step_size": epsilon / 4, "steps": 20}
        return plain.pgd_accuracy(network, batches, noise=noise, **ball)

    def unpruned() -> None:
        network.requires_grad_(False)
        attack = linf(cross_entropy, epsilon, epsilon / 4, 20)
        for (x, y), draw in zip(batches, noise, strict=True):
            network(attack(network, x, y, draw))

    def ours() -> float:
        network.requires_grad_(False)
        return _standing(network, batches, epsilon)

    logger.info("PGD-20 at epsilon %.2f/255 on %d images, %s", 255 * epsilon, len(images.labels), machine(device))
    logger.info(
        "clean %.2f %%, standing %.2f %% (reference), %.2f %% (ours)", *(_clean(network, batches), reference(), ours())
    )
    n = len(images.labels)
    return {
        "epsilon": epsilon,
        "ours against every step on every image": compare(unpruned, ours, n, config.pairs, device),
        "ours against the plain reference": compare(reference, ours, n, config.pairs, device),
    }


def _network(config: Evaluate, splits: Splits, device) -> torch.nn.Module:
    if config.model_path:
        name = network_in(config.model_path, None)
        return make_network(name, config.model_path, config.dataset, splits).to(device).eval()
    return _robust_digits(splits, device)


def _robust_digits(splits: Splits, device: torch.device) -> torch.nn.Module:
    network = build("small_resnet", len(splits.classes), splits.image_size).to(device)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)
    ball = {"epsilon": 16 / 255, "step_size": 4 / 255, "steps": 5}
    trainer = Trainer(network, [], METHODS["AT"](TrainConfig()), optimizer, **ball)
    for epoch in range(5):
        trainer.epoch(Batches(splits.train, 64, device=device, shuffle=True), epoch, 0.05)
    return network.eval().requires_grad_(False)


def _clean(network, batches: Batches) -> float:
    return 100 * float((read(network, batches) == batches.labels.cpu()).double().mean())


def _standing(network, batches: Batches, epsilon: float) -> float:
    climbed = for_evaluation(network, next(iter(batches))[0])
    context = {"seed": 0, "state": State(None, {}), "processes": Processes(), "climbed": climbed}
    outcome = strike(network, batches, read(network, batches), pgd20(Setting(epsilon, 0)), **context)
    return 100 * float((outcome.predicted == batches.labels.cpu()).double().mean())


def _half_standing(network, batches: Batches) -> float:
    """The radius at which about half of the images stand, found by halving an interval."""
    low, high = 0.0, 0.5
    for _ in range(8):
        middle = (low + high) / 2
        low, high = (middle, high) if _standing(network, batches, middle) > 50 else (low, middle)
    return high


@dataclass(frozen=True)
class Step:
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
    pairs: int = flag(5, "how often each side is timed", group=WHERE, check=at_least(1))
    device: str = flag("auto", "auto, cpu, cuda or cuda:N", group=WHERE)
    threads: int = flag(0, "threads of the CPU (PyTorch's choice when not given)", group=WHERE, check=at_least(0))
    json: str = flag("", "file for the figures", group=WHERE)


def time_step(config: Step) -> dict:
    """Print and return images/s of both sides, their passes and arithmetic, and the share of the machine's ceiling."""
    device = _device(config)
    arithmetic, words = choose_arithmetic(config.precision, config.compile, device)
    logger.info("%s, %s", machine(device), words)
    x = torch.rand(config.bs, 3, config.image_size, config.image_size, device=device)
    y = torch.randint(config.classes, (config.bs,), device=device)
    plain_side, our_side = (_trainer(config, kind, device, arithmetic) for kind in (plain.Trainer, Trainer))
    sides = {
        "reference": (lambda: plain_side.step(x, y, config.epoch), _networks(plain_side)),
        "ours": (lambda: our_side.step(x, y, config.epoch), _networks(our_side)),
    }
    counted = {}
    for name, (work, networks) in sides.items():
        counts = passes(networks, work)
        counted[name] = {"passes": dict(counts), "gflop_per_image": gflop(work) / config.bs}
        shown = ", ".join(f"{key} {count}" for key, count in counts.items())
        logger.info("%s: %s; %.1f GFLOP an image", name, shown, counted[name]["gflop_per_image"])
    figures = compare(sides["reference"][0], sides["ours"][0], config.bs, config.pairs, device)
    ceiling = ceilings(device)
    kind = "fp32" if arithmetic.dtype is None else "bf16"
    reached = figures["images_per_second"]["ours"] * counted["ours"]["gflop_per_image"]
    line = "ours reaches %.1f GFLOP/s, %.0f %% of a large %s product's %.1f; a large copy reaches %.1f GB/s"
    logger.info(line, reached, 100 * reached / ceiling[kind], kind, ceiling[kind], ceiling["copy"])
    return {"machine": machine(device), "arithmetic": words, "counted": counted, "ceilings": ceiling, **figures}


def _trainer(config: Step, kind: type, device: torch.device, arithmetic: Arithmetic):
    """A trainer of either kind on networks of the same weights."""
    seed_everything(0)
    method = canonical(config.method, METHODS, ALIASES, "--method")
    count = 0 if method in WITHOUT_TEACHER else 2 if method in WITH_TWO_TEACHERS else 1
    student = build(config.model, config.classes, config.image_size).to(device)
    teachers = [build(config.teacher_model, config.classes, config.image_size).to(device) for _ in range(count)]
    teachers = [teacher.eval().requires_grad_(False) for teacher in teachers]
    ours = kind is Trainer
    optimizer = torch.optim.SGD(student.parameters(), lr=0.001, momentum=0.9, weight_decay=5e-4, fused=ours)
    settings = {"epsilon": 8 / 255, "step_size": 2 / 255, "steps": 10} | ({"arithmetic": arithmetic} if ours else {})
    return kind(student, teachers, METHODS[method](TrainConfig()), optimizer, **settings)


def _networks(trainer) -> dict[str, torch.nn.Module]:
    """What a step runs, by name: of our side the views too."""
    if isinstance(trainer, plain.Trainer):
        return {"student": trainer.student, **{f"teacher {k}": t for k, t in enumerate(trainer.teachers)}}
    guides = {f"teacher {k}": view for k, view in enumerate(trainer.guides)}
    return {"student": trainer.student, "student's view": trainer.still, **guides}


@dataclass(frozen=True)
class Data:
    """Augmented batches from memory, against a DataLoader with torchvision's transforms."""

    images: int = flag(10_000, "images of 32x32", group=WHAT, check=at_least(1))
    bs: int = flag(128, "images in a batch", group=WHAT, check=at_least(1))
    workers: int = flag(2, "processes of the DataLoader", group=WHAT, check=at_least(0))
    pairs: int = flag(5, "how often each side is timed", group=WHERE, check=at_least(1))
    device: str = flag("auto", "auto, cpu, cuda or cuda:N", group=WHERE)
    threads: int = flag(0, "threads of the CPU (PyTorch's choice when not given)", group=WHERE, check=at_least(0))
    json: str = flag("", "file for the figures", group=WHERE)


def time_data(config: Data) -> dict:
    """Print and return images/s of both sides over one epoch of generated images."""
    device = _device(config)
    logger.info("%s", machine(device))
    split = Split(torch.randint(256, (config.images, 3, 32, 32), dtype=torch.uint8), torch.zeros(config.images).long())
    ours = Batches(split, config.bs, device=device, shuffle=True, crop=4, flip=True)
    reference = plain.loader(split, config.bs, config.workers)

    def consume(batches) -> None:
        for x, y in batches:
            x.to(device), y.to(device)

    return compare(lambda: consume(reference), lambda: consume(ours), config.images, config.pairs, device)


@dataclass(frozen=True)
class Judging:
    """The scores of an epoch, clean and PGD-10, against PGD-10 with every step on every image; as evaluate."""

    images: int = flag(320, "test images of Digits", group=WHAT, check=at_least(1))
    eps: float | None = flag(None, "radius in [0, 1] (when not given: where half of the images stand)", group=WHAT)
    bs: int = flag(64, "images in a batch", group=WHAT, check=at_least(1))
    pairs: int = flag(5, "how often each side is timed", group=WHERE, check=at_least(1))
    device: str = flag("auto", "auto, cpu, cuda or cuda:N", group=WHERE)
    threads: int = flag(0, "threads of the CPU (PyTorch's choice when not given)", group=WHERE, check=at_least(0))
    json: str = flag("", "file for the figures", group=WHERE)


def time_judging(config: Judging) -> dict:
    """Print and return images/s of both sides."""
    device = _device(config)
    splits = load("Digits", None, image_size=16)
    network = _robust_digits(splits, device)
    batches = Batches(subset(splits.test, config.images, seed=0), config.bs, device=device)
    epsilon = config.eps if config.eps is not None else _half_standing(network, batches)
    judge = Judge(network, batches, epsilon, seed=0)
    noise = [uniform(x, 1) for x, _ in batches]

    def reference() -> float:
        network.requires_grad_(True)
        read(network, batches)
        ball = {"epsilon": epsilon, "step_size": epsilon / 4, "steps": 10}
        return plain.pgd_accuracy(network, batches, noise=noise, **ball)

    logger.info("%s: PGD-10 at epsilon %.2f/255, %.2f %% stand", machine(device), 255 * epsilon, judge()[1].accuracy)
    return compare(reference, judge, len(batches.labels), config.pairs, device)


def _device(config) -> torch.device:
    if config.threads:
        torch.set_num_threads(config.threads)
    return choose_device(config.device, 0)


BENCHMARKS = {
    "step": (Step, time_step),
    "data": (Data, time_data),
    "judging": (Judging, time_judging),
    "evaluate": (Evaluate, time_evaluation),
}


def benchmark(words: list[str]) -> None:
    """Run the benchmark that the first word names; raises UserError for a name that is none."""
    if not words or words[0] not in BENCHMARKS:
        raise UserError(f"name a benchmark: {', '.join(BENCHMARKS)}")
    config_class, run = BENCHMARKS[words[0]]
    config = parse(config_class, words[1:], description=config_class.__doc__, choices={}).config
    use_full_precision()
    seed_everything(0)
    figures = {"benchmark": words[0], "config": asdict(config), "versions": versions(), **run(config)}
    if config.json:
        Path(config.json).write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    run_command(lambda: benchmark(sys.argv[1:]))
