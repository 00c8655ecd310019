"""Time this code against the plain reference, alternately in one process: python scripts/benchmark.py WHAT [flags]

WHAT is one of: evaluate. The ratio is the median over pairs of (reference, ours); its spread, their quartiles.
"""

import json
import platform
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # this file is run from its folder

from attacks.objectives import cross_entropy
from attacks.suite import Setting, linf, pgd20
from data import Splits, load, subset
from data.loader import Batches
from engine.device import choose_device, use_full_precision
from engine.distributed import Processes
from engine.eval_state import State
from engine.evaluate import noise_of, read, strike
from engine.networks import make_network, network_in
from engine.trainer import Trainer
from engine.views import for_evaluation
from methods import METHODS
from models import build
from scripts.plain import pgd_accuracy
from utils.command import run_command
from utils.config import TrainConfig
from utils.errors import UserError
from utils.flags import at_least, between, flag, parse
from utils.log import logger
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
    json: str = flag("", "file for the figures", group=WHERE)


def time_evaluation(config: Evaluate) -> dict:
    """Print and return both sides' images/s and the ratio of their times."""
    device = choose_device(config.device, 0)
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
        return pgd_accuracy(network, batches, noise=noise, **ball)

    def unpruned() -> None:
        network.requires_grad_(False)
        attack = linf(cross_entropy, epsilon, epsilon / 4, 20)
        for (x, y), draw in zip(batches, noise, strict=True):
            network(attack(network, x, y, draw))

    def ours() -> float:
        network.requires_grad_(False)
        return _standing(network, batches, epsilon)

    logger.info("PGD-20 at epsilon %.2f/255 on %d images, %s", 255 * epsilon, len(images.labels), _machine(device))
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
    network = build("small_resnet", len(splits.classes), splits.image_size).to(device)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)
    trainer = Trainer(
        network, [], METHODS["AT"](TrainConfig()), optimizer, epsilon=16 / 255, step_size=4 / 255, steps=5
    )
    for epoch in range(5):
        trainer.epoch(Batches(splits.train, 64, device=device, shuffle=True), epoch, 0.05)
    return network.eval()


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


def compare(reference: Callable, ours: Callable, images: int, pairs: int, device) -> dict:
    """Time both alternately, once each unmeasured before; print and return images/s and the ratio of the times."""
    seconds = {"reference": [], "ours": []}
    for repeat in range(pairs + 1):
        for name, work in (("reference", reference), ("ours", ours)):
            took = _timed(work, device)
            if repeat:
                seconds[name].append(took)
    ratios = [a / b for a, b in zip(*seconds.values(), strict=True)]
    quartiles = statistics.quantiles(ratios, n=4) if pairs > 1 else [ratios[0]] * 3
    rates = {name: images / statistics.median(times) for name, times in seconds.items()}
    line = "reference %.1f images/s, ours %.1f images/s: %.2f x as fast (quartiles %.2f to %.2f), %.2f of the cost"
    logger.info(line, *rates.values(), quartiles[1], quartiles[0], quartiles[2], 1 / quartiles[1])
    return {"images_per_second": rates, "ratio": quartiles[1], "quartiles": quartiles, "seconds": seconds}


def _timed(work: Callable, device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    began = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - began


def _machine(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads"


BENCHMARKS = {"evaluate": (Evaluate, time_evaluation)}


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
