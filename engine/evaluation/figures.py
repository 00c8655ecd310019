"""Figures of an evaluation: accuracy against the radius, adversarial examples, confusion matrices."""

from collections.abc import Mapping
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from torch import Tensor, nn

from attacks.pgd import uniform
from attacks.suite import Attack, Perturb, Setting, pgd20
from data import TEST_SUBSET_SEED, Split, subset
from data.loader import Batches
from engine.accuracy import predict
from engine.evaluation.attack import run_attack
from engine.fast.frozen import make_attack_model
from utils.plots import draw_confusion, draw_examples, draw_radius_curves, save_figure
from utils.tables import write_csv

RADII = (0, 1, 2, 3, 4, 6, 8, 10, 12, 14, 16)  # in units of 1/255
CURVE_IMAGES = 500
CANDIDATES = 100  # test images from which examples are chosen
EXAMPLES = 8


def draw_radii(
    networks: Mapping[str, nn.Module], images: Split, batch_size: int, seed: int, device, path: Path
) -> None:
    """Plot the accuracy of each network under PGD-20 at radii from 0 to 16/255."""
    some = subset(images, CURVE_IMAGES, TEST_SUBSET_SEED)
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


def draw_adversarial_examples(
    network: nn.Module, attack: Attack, images: Split, classes, epsilon: float, seed: int, device, path: Path
) -> None:
    """Plot images, perturbations and adversarial examples of the first stage of ``attack``, with predictions."""
    perturb = next(iter(attack.stages.values()))
    clean, adversarial, captions = adversarial_examples(network, perturb, images, classes, seed, device)
    figure, axes = plt.subplots(3, len(clean), figsize=(1.5 * len(clean), 5), squeeze=False, layout="constrained")
    draw_examples(axes, clean, adversarial, captions, epsilon)
    figure.suptitle(f"predictions before and after {attack.title} at epsilon {255 * epsilon:.4g}/255")
    save_figure(figure, path)


def adversarial_examples(
    network: nn.Module, perturb: Perturb, images: Split, classes, seed: int, device="cpu", count: int = EXAMPLES
) -> tuple[Tensor, Tensor, list[tuple[str, str]]]:
    """Choose ``count`` images, up to half of them robust and up to half of them fooled by the attack.

    Returns clean and adversarial images (count, C, H, W) on the CPU, and the predicted classes of both.
    """
    ((x, y),) = Batches(subset(images, CANDIDATES, TEST_SUBSET_SEED), CANDIDATES, device=device)
    x_adv = perturb(network, x, y, uniform(x, 1, torch.Generator(device).manual_seed(seed)))
    with torch.no_grad():
        predictions = [network(batch).argmax(1) for batch in (x, x_adv)]
    robust = (predictions[1] == y).nonzero()[:, 0]
    fooled = ((predictions[0] == y) & (predictions[1] != y)).nonzero()[: count // 2, 0]
    chosen = torch.cat([robust[: count - len(fooled)], fooled])
    if not len(chosen):
        chosen = torch.arange(min(count, len(y)), device=x.device)
    names = [[classes[k] for k in predicted[chosen].tolist()] for predicted in predictions]
    return x[chosen].cpu(), x_adv[chosen].cpu(), list(zip(*names, strict=True))


def draw_confusions(predictions: Mapping[str, Tensor], labels: Tensor, classes, folder: Path) -> None:
    """Write confusion.png, and confusion_<title>.csv for each entry: rows are true classes, columns predicted ones."""
    figure, axes = plt.subplots(
        1, len(predictions), figsize=(6 * len(predictions), 6), squeeze=False, layout="constrained"
    )
    for axis, (title, predicted) in zip(axes[0], predictions.items(), strict=True):
        counts = confusion(predicted, labels, len(classes))
        draw_confusion(axis, counts, classes, title)
        rows = [[name, *row] for name, row in zip(classes, counts.tolist(), strict=True)]
        write_csv(folder / f"confusion_{title}.csv", ["true \\ predicted", *classes], rows)
    save_figure(figure, folder / "confusion.png")


def confusion(predicted: Tensor, labels: Tensor, classes: int) -> Tensor:
    """Count images (classes, classes) by true class (row) and predicted class (column)."""
    return torch.bincount(labels * classes + predicted, minlength=classes**2).reshape(classes, classes)
