"""Pictures of an evaluation: accuracy against radius, images that were turned, and what is taken for what."""

from collections.abc import Mapping
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from torch import Tensor, nn

from attacks.pgd import uniform
from attacks.suite import Attack, Perturb, Setting, pgd20
from data import Split, subset
from data.loader import Batches
from engine.accuracy import predict
from engine.evaluation.attack import run_attack
from engine.fast.frozen import make_attack_model
from utils.plots import draw_confusion, draw_examples, draw_radius_curves, save_figure
from utils.tables import write_csv

RADII = (0, 1, 2, 3, 4, 6, 8, 10, 12, 14, 16)  # of 255
CURVE_IMAGES = 500
LOOKED_AT = 100  # test images among which examples are sought
EXAMPLES = 8


def draw_radii(
    networks: Mapping[str, nn.Module], images: Split, batch_size: int, seed: int, device, path: Path
) -> None:
    """Draw the accuracy of each network under PGD-20 at radii from 0 to 16/255."""
    some = subset(images, CURVE_IMAGES, seed)
    curves = {name: radius_curve(network, some, batch_size, seed, device) for name, network in networks.items()}
    figure, axes = plt.subplots(figsize=(6, 4))
    draw_radius_curves(axes, RADII, curves, f"PGD-20, n={len(some.labels)}")
    save_figure(figure, path)


def radius_curve(network: nn.Module, images: Split, batch_size: int, seed: int, device) -> list[float]:
    """Accuracy in % under PGD-20 at each of RADII; an image fooled at one radius counts as fooled at larger ones."""
    batches = Batches(images, batch_size, device=device)
    predicted, accuracies = predict(network, batches), []
    attack_model = make_attack_model(network, next(iter(batches))[0])
    for radius in RADII:
        if radius:
            attack = pgd20(Setting(radius / 255, seed))
            predicted = run_attack(network, batches, predicted, attack, seed=seed, attack_model=attack_model).predicted
        accuracies.append(100 * float((predicted == images.labels).double().mean()))
    return accuracies


def draw_turned(network: nn.Module, attack: Attack, images: Split, classes, config, device, path: Path) -> None:
    """Draw images, perturbations and adversarial examples of the first stage of ``attack``, with what is read."""
    perturb = next(iter(attack.stages.values()))
    clean, adversarial, words = turned(network, perturb, images, classes, config.seed, device)
    figure, axes = plt.subplots(3, len(clean), figsize=(1.5 * len(clean), 5), squeeze=False, layout="constrained")
    draw_examples(axes, clean, adversarial, words, config.eps)
    figure.suptitle(f"read before and after {attack.title} at epsilon {255 * config.eps:.4g}/255")
    save_figure(figure, path)


def turned(
    network: nn.Module, perturb: Perturb, images: Split, classes, seed: int, device="cpu", count: int = EXAMPLES
):
    """Choose ``count`` images; half of them, as far as there are so many, are images that the attack turns.

    Returns images and adversarial examples (count, C, H, W) on the CPU, and the names read in both.
    """
    ((x, y),) = Batches(subset(images, LOOKED_AT, seed), LOOKED_AT, device=device)
    x_adv = perturb(network, x, y, uniform(x, 1, torch.Generator(device).manual_seed(seed)))
    with torch.no_grad():
        before, after = network(x).argmax(1), network(x_adv).argmax(1)
    fooled_at = ((before == y) & (after != y)).nonzero()[: count // 2, 0]
    held = (after == y).nonzero()[: count - len(fooled_at), 0]
    shown = (
        torch.cat([held, fooled_at])
        if len(held) + len(fooled_at)
        else torch.arange(min(count, len(y)), device=x.device)
    )
    words = [[classes[k] for k in read_[shown].tolist()] for read_ in (before, after)]
    return x[shown].cpu(), x_adv[shown].cpu(), list(zip(*words, strict=True))


def draw_confusions(readings: Mapping[str, Tensor], labels: Tensor, classes, folder: Path) -> None:
    """Write confusion.png, and one confusion_<reading>.csv for each: rows are true classes, columns what was read."""
    figure, axes = plt.subplots(1, len(readings), figsize=(6 * len(readings), 6), squeeze=False, layout="constrained")
    for axis, (name, predicted) in zip(axes[0], readings.items(), strict=True):
        counts = confusion(predicted, labels, len(classes))
        draw_confusion(axis, counts, classes, name)
        rows = [[title, *row] for title, row in zip(classes, counts.tolist(), strict=True)]
        write_csv(folder / f"confusion_{name}.csv", ["true \\ read", *classes], rows)
    save_figure(figure, folder / "confusion.png")


def confusion(predicted: Tensor, labels: Tensor, classes: int) -> Tensor:
    """Count (classes, classes) images by true class (row) and class read (column)."""
    return torch.bincount(labels * classes + predicted, minlength=classes**2).reshape(classes, classes)
