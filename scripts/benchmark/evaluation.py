"""Benchmark of an evaluation with folded networks and attacks that stop for fooled images against one without them."""

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from attacks.suite import PROTOCOLS, Setting
from data import load, subset
from data.loader import Batches
from engine.accuracy import predict
from engine.device import choose_device
from engine.evaluation.attack import make_noise, run_attack
from engine.fast.frozen import make_attack_model
from engine.training.trainer import Trainer
from methods import METHODS
from models import build
from scripts.benchmark import plain
from scripts.benchmark.measure import WORKLOAD, Timing, compare, machine
from utils.config import TrainConfig
from utils.fields import at_least, flag
from utils.log import logger


@dataclass(frozen=True)
class Evaluation(Timing):
    """How many Digits images are attacked."""

    limit_test: int = flag(320, "number of test images", group=WORKLOAD, check=at_least(1))
    bs: int = flag(64, "batch size", group=WORKLOAD, check=at_least(1))


def time_evaluation(config: Evaluation) -> dict:
    """Our PGD-20 against PGD-20 with every step on every image, at a radius where half of the images are robust."""
    device = choose_device(config.device, 0, config.threads)
    splits = load("Digits", image_size=16)
    network = _train(splits, device)
    batches = Batches(subset(splits.test, config.limit_test, seed=0), config.bs, device=device)
    robust = partial(_robust, network, batches, predict(network, batches))
    low, high = 0.0, 0.5
    for _ in range(8):
        epsilon = (low + high) / 2
        low, high = (epsilon, high) if robust(epsilon) > 50 else (low, epsilon)
    attack = PROTOCOLS["paper"](Setting(epsilon, 0))["pgd"]
    noise = [
        make_noise(x, 0, attack.title, next(iter(attack.stages)), k * config.bs) for k, (x, _) in enumerate(batches)
    ]

    def reference() -> float:
        network.requires_grad_(True)  # as in the official evaluations
        return plain.pgd_accuracy(network, batches, noise=noise, epsilon=epsilon, step_size=epsilon / 4, steps=20)

    def ours() -> float:
        network.requires_grad_(False)
        return robust(epsilon)

    images = len(batches.labels)
    logger.info("%s: epsilon %.2f/255, %d images", machine(device), 255 * epsilon, images)
    logger.info("%s: accuracy %.2f %% (reference), %.2f %% (ours)", attack.title, reference(), ours())
    return {"epsilon": epsilon, **compare(reference, ours, images, config.pairs, device)}


def _train(splits, device: torch.device) -> nn.Module:
    """A small_resnet after five epochs of adversarial training."""
    network = build("small_resnet", len(splits.classes), splits.image_size).to(device)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)
    attack = {"epsilon": 16 / 255, "step_size": 4 / 255, "steps": 5}
    trainer = Trainer(network, [], METHODS["AT"](TrainConfig()), optimizer, **attack)
    batches = Batches(splits.train, 64, device=device, shuffle=True)
    for epoch in range(5):
        for x, y in batches:
            trainer.step(x, y, epoch)
    return network.eval().requires_grad_(False)


def _robust(network: nn.Module, batches: Batches, clean: Tensor, epsilon: float) -> float:
    """Accuracy in % under PGD-20."""
    attack_model = make_attack_model(network, next(iter(batches))[0])
    attack = PROTOCOLS["paper"](Setting(epsilon, 0))["pgd"]
    result = run_attack(network, batches, clean, attack, seed=0, attack_model=attack_model)
    return 100 * float((result.predicted == batches.labels.cpu()).double().mean())
