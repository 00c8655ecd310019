"""Benchmarks of evaluation: PGD that stops for fooled images, and what an attack reaches in bfloat16."""

from dataclasses import dataclass

import torch

from attacks.objectives import cross_entropy
from attacks.pgd import gaussian, pgd, uniform
from attacks.suite import Setting, linf, pgd20
from data import Splits, load, subset
from data.loader import Batches
from engine.accuracy import predict
from engine.evaluation.attack import make_noise, run_attack
from engine.fast.frozen import FoldedModel, make_attack_model
from engine.fast.precision import PLAIN, Arithmetic, choose_arithmetic
from engine.networks import make_network, network_in
from engine.training.trainer import Trainer
from engine.training.validation import Validator
from methods import METHODS
from methods.losses import kl
from models import build
from scripts import plain
from scripts.bench_training import WHAT, Timing, device_of
from scripts.measure import compare, machine
from utils.config import TrainConfig
from utils.flags import at_least, between, flag
from utils.log import logger


@dataclass(frozen=True)
class Evaluate(Timing):
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


def time_evaluation(config: Evaluate) -> dict:
    """Log and return both sides' images/s and the ratio of their times."""
    device = device_of(config)
    splits = load(config.dataset, config.data_root, image_size=config.image_size)
    network = _network(config, splits, device)
    images = subset(splits.test, config.limit_test, seed=0)
    batches = Batches(images, config.bs, device=device)
    epsilon = config.eps if config.eps is not None else _half_standing(network, batches)

    title, (stage,) = (attack := pgd20(Setting(epsilon, 0))).title, attack.stages
    noise = [make_noise(x, 0, title, stage, k) for k, (x, _) in enumerate(batches)]

    def reference() -> float:
        network.requires_grad_(True)  # as the official evaluations leave it
        ball = {"epsilon": epsilon, "step_size": epsilon / 4, "steps": 20}
        return plain.pgd_accuracy(network, batches, noise=noise, **ball)

    def unpruned() -> None:
        network.requires_grad_(False)
        attack, view = (
            linf(cross_entropy, epsilon, epsilon / 4, 20),
            make_attack_model(network, batches.images[:1] / 255),
        )
        for (x, y), draw in zip(batches, noise, strict=True):
            network(attack(view, x, y, draw))

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


@dataclass(frozen=True)
class Judging(Timing):
    """The scores of an epoch, clean and PGD-10, against PGD-10 with every step on every image; as evaluate."""

    images: int = flag(320, "test images of Digits", group=WHAT, check=at_least(1))
    eps: float | None = flag(
        None, "radius in [0, 1] (when not given: where half of the images stand)", group=WHAT, check=between(0, 1)
    )
    bs: int = flag(64, "images in a batch", group=WHAT, check=at_least(1))


def time_judging(config: Judging) -> dict:
    """Log and return images/s of both sides."""
    device = device_of(config)
    splits = load("Digits", None, image_size=16)
    network = _robust_digits(splits, device)
    batches = Batches(subset(splits.test, config.images, seed=0), config.bs, device=device)
    epsilon = config.eps if config.eps is not None else _half_standing(network, batches)
    judge = Validator(network, batches, epsilon, seed=0)
    noise = [uniform(x, 1) for x, _ in batches]

    def reference() -> float:
        network.requires_grad_(True)
        predict(network, batches)
        ball = {"epsilon": epsilon, "step_size": epsilon / 4, "steps": 10}
        return plain.pgd_accuracy(network, batches, noise=noise, **ball)

    logger.info("%s: PGD-10 at epsilon %.2f/255, %.2f %% stand", machine(device), 255 * epsilon, judge()[1].accuracy)
    return compare(reference, judge, len(batches.labels), config.pairs, device)


@dataclass(frozen=True)
class Reach(Timing):
    """What the attacks of training reach in bfloat16, against float32, on trained networks."""

    model_path: str = flag("", "checkpoint of the student", group=WHAT)
    teacher_path: str = flag("", "checkpoint of the teacher", group=WHAT)
    dataset: str = flag("CIFAR10", "their data set", group=WHAT)
    data_root: str | None = flag(None, "folder of the data", group=WHAT)
    limit_test: int = flag(200, "test images", group=WHAT, check=at_least(1))


OBJECTIVES = {
    "CE": lambda s, t, x, y: lambda z: cross_entropy(s(z), y),
    "AdaAD": lambda s, t, x, y: lambda z: kl(t(z), s(z)),
    "RSLAD": lambda s, t, x, y: lambda z: kl(t(x).detach(), s(z)),
    "TRADES": lambda s, t, x, y: lambda z: kl(s(x).detach(), s(z)),
}


def measure_reach(config: Reach) -> dict:
    """Log and return the mean objective, and the images that stand, after PGD-10 in either arithmetic."""
    device = device_of(config)
    splits = load(config.dataset, config.data_root)
    student, teacher = (
        make_network(network_in(path, None), path, config.dataset, splits).to(device).eval().requires_grad_(False)
        for path in (config.model_path, config.teacher_path)
    )
    ((x, y),) = Batches(subset(splits.test, config.limit_test, 0), config.limit_test, device=device)
    logger.info("%s, %d images; mean objective in float32 (images that stand)", machine(device), len(y))

    def climb(name: str, arithmetic: Arithmetic, seed: int) -> tuple[float, int]:
        noise = gaussian(x, 8 / 255, torch.Generator(device).manual_seed(seed))
        views = [FoldedModel(network, arithmetic) for network in (student, teacher)]
        x_adv = pgd(OBJECTIVES[name](*views, x, y), x, x + noise, epsilon=8 / 255, step_size=2 / 255, steps=10)
        with torch.no_grad():
            value = OBJECTIVES[name](student, teacher, x, y)(x_adv).mean()
            return float(value), int((student(x_adv).argmax(1) == y).sum())

    (bf16, _), figures = choose_arithmetic("bf16", "off", device), {}
    for name in OBJECTIVES:
        found = {"fp32": climb(name, PLAIN, 0), "bf16": climb(name, bf16, 0), "fp32, other seed": climb(name, PLAIN, 1)}
        figures[name] = found
        shown = "  ".join(f"{kind} {value:.5f} ({stand})" for kind, (value, stand) in found.items())
        logger.info("%-6s  %s  bf16/fp32 %.4f", name, shown, found["bf16"][0] / found["fp32"][0])
    return {"machine": machine(device), "objectives": figures}


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
        for x, y in Batches(splits.train, 64, device=device, shuffle=True):
            trainer.step(x, y, epoch)
    return network.eval().requires_grad_(False)


def _clean(network, batches: Batches) -> float:
    return 100 * float((predict(network, batches) == batches.labels.cpu()).double().mean())


def _standing(network, batches: Batches, epsilon: float) -> float:
    attack_model = make_attack_model(network, next(iter(batches))[0])
    outcome = run_attack(
        network, batches, predict(network, batches), pgd20(Setting(epsilon, 0)), seed=0, attack_model=attack_model
    )
    return 100 * float((outcome.predicted == batches.labels.cpu()).double().mean())


def _half_standing(network, batches: Batches) -> float:
    """The radius at which about half of the images stand, found by halving an interval."""
    low, high = 0.0, 0.5
    for _ in range(8):
        middle = (low + high) / 2
        low, high = (middle, high) if _standing(network, batches, middle) > 50 else (low, middle)
    return high
