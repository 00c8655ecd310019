"""Benchmark of an evaluation: with folded networks and attacks that stop for fooled images, and without."""

from dataclasses import dataclass
from typing import Literal

import torch

from attacks.suite import PROTOCOLS, Setting
from data import load, subset
from data.loader import Batches
from engine.accuracy import predict
from engine.evaluation.attack import make_noise, run_attack
from engine.fast.frozen import make_attack_model
from engine.networks import make_network, network_in
from engine.training.trainer import Trainer
from methods import METHODS
from models import build
from scripts.benchmark import plain
from scripts.benchmark.measure import WORKLOAD, Timing, compare, machine
from utils.config import TrainConfig
from utils.flags import at_least, between, flag
from utils.log import logger


@dataclass(frozen=True)
class Evaluation(Timing):
    """What is attacked, and how."""

    model_path: str = flag("", "checkpoint; default: a small_resnet, trained here on Digits", group=WORKLOAD)
    dataset: str = flag("Digits", "its dataset", group=WORKLOAD)
    data_root: str | None = flag(None, "folder of the dataset", group=WORKLOAD)
    image_size: int | None = flag(16, "height and width of the images, for Folder and Digits", group=WORKLOAD)
    limit_test: int = flag(320, "number of test images", group=WORKLOAD, check=at_least(1))
    eps: float | None = flag(
        None, "radius in [0, 1]; default: at which half of the images are robust", group=WORKLOAD, check=between(0, 1)
    )
    bs: int = flag(64, "batch size", group=WORKLOAD, check=at_least(1))
    attack: Literal["pgd", "aa"] = flag("pgd", "pgd: PGD-20, aa: AutoAttack", group=WORKLOAD)


def time_evaluation(config: Evaluation) -> dict:
    """PGD-20 against PGD-20 with every step on every image, or AutoAttack against AutoAttack on the network itself."""
    device = config.choose_device()
    splits = load(config.dataset, config.data_root, image_size=config.image_size)
    if config.model_path:
        network = make_network(network_in(config.model_path, None), config.model_path, config.dataset, splits)
        network = network.to(device).eval().requires_grad_(False)
    else:
        network = _train(splits, device)
    batches = Batches(subset(splits.test, config.limit_test, seed=0), config.bs, device=device)
    clean = predict(network, batches)
    epsilon = _half_robust(network, batches, clean) if config.eps is None else config.eps
    attack = PROTOCOLS["paper"](Setting(epsilon, 0))[config.attack]
    noise = [make_noise(x, 0, attack.title, next(iter(attack.stages)), k) for k, (x, _) in enumerate(batches)]

    def reference() -> float:
        network.requires_grad_(True)  # as in the official evaluations
        if config.attack == "aa":
            return _robust(network, batches, epsilon, "aa", clean, folded=False)
        return plain.pgd_accuracy(network, batches, noise=noise, epsilon=epsilon, step_size=epsilon / 4, steps=20)

    def ours() -> float:
        network.requires_grad_(False)
        return _robust(network, batches, epsilon, config.attack, clean)

    logger.info("%s: epsilon %.2f/255, %d images", machine(device), 255 * epsilon, len(clean))
    logger.info("%s: accuracy %.2f %% (reference), %.2f %% (ours)", attack.title, reference(), ours())
    return {"epsilon": epsilon, **compare(reference, ours, len(clean), config.pairs, device)}


def _train(splits, device: torch.device) -> torch.nn.Module:
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


def _robust(network, batches: Batches, epsilon: float, attack: str, clean, folded: bool = True) -> float:
    """Accuracy in % under an attack."""
    attack_model = make_attack_model(network, next(iter(batches))[0]) if folded else network
    attack = PROTOCOLS["paper"](Setting(epsilon, 0))[attack]
    result = run_attack(network, batches, clean, attack, seed=0, attack_model=attack_model)
    return 100 * float((result.predicted == batches.labels.cpu()).double().mean())


def _half_robust(network, batches: Batches, clean) -> float:
    """The radius at which about half of the images are robust, by bisection."""
    low, high = 0.0, 0.5
    for _ in range(8):
        middle = (low + high) / 2
        low, high = (middle, high) if _robust(network, batches, middle, "pgd", clean) > 50 else (low, middle)
    return high
