"""Figures of an evaluation: accuracy against the radius, adversarial examples, confusion matrices."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from attacks.pgd import uniform
from attacks.suite import Attack, Setting, pgd20
from data import TEST_SUBSET_SEED, Split, subset
from data.loader import Batches
from engine.accuracy import predict
from engine.evaluation.attack import run_attack
from engine.fast.frozen import make_attack_model
from utils.plots import plt, save_figure
from utils.tables import write_csv

RADII = (0, 1, 2, 3, 4, 6, 8, 10, 12, 14, 16)  # in units of 1/255
CURVE_IMAGES = 500
CANDIDATES = 100  # test images from which examples are chosen
EXAMPLES = 8
MAX_CLASS_NAMES = 20  # in confusion matrices


def draw_radii(
    networks: Mapping[str, nn.Module], images: Split, batch_size: int, seed: int, device, path: Path
) -> None:
    """Plot the accuracy of each network under PGD-20 at radii from 0 to 16/255."""
    some = subset(images, CURVE_IMAGES, TEST_SUBSET_SEED)
    figure, axes = plt.subplots(figsize=(6, 4))
    for name, network in networks.items():
        axes.plot(RADII, radius_curve(network, some, batch_size, seed, device), marker=".", label=name)
    axes.set(
        xlabel=f"epsilon (/255) of PGD-20, n={len(some.labels)}", ylabel="accuracy (%)", ylim=(0, 100), xticks=RADII
    )
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
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


def draw_examples(
    network: nn.Module, attack: Attack, batches: Batches, classes: Sequence[str], seed: int, path: Path
) -> None:
    """Plot images, perturbations (-epsilon black, 0 grey, epsilon white) and adversarial images, with predictions.

    The attack is the first stage of ``attack``; up to half of the images are fooled by it, the others are robust.
    """
    perturb, epsilon = next(iter(attack.stages.values())), attack.parameters["epsilon"]
    generator = torch.Generator(batches.device).manual_seed(seed)
    parts = []
    for x, y in batches:
        x_adv = perturb(network, x, y, uniform(x, 1, generator))
        with torch.no_grad():
            parts.append((x, y, x_adv, network(x).argmax(1), network(x_adv).argmax(1)))
    x, y, x_adv, before, after = map(torch.cat, zip(*parts, strict=True))
    fooled = ((before == y) & (after != y)).nonzero()[: EXAMPLES // 2, 0]
    chosen = torch.cat([(after == y).nonzero()[: EXAMPLES - len(fooled), 0], fooled])
    chosen = chosen if len(chosen) else torch.arange(min(EXAMPLES, len(y)), device=x.device)
    perturbation, n = (x_adv - x) / (2 * epsilon or 1) + 0.5, len(chosen)
    captions = [[classes[label] for label in predicted[chosen].tolist()] for predicted in (before, after)]
    rows = ("clean", x, captions[0]), ("perturbation", perturbation, [""] * n), ("adversarial", x_adv, captions[1])
    figure, axes = plt.subplots(3, n, figsize=(1.5 * n, 5), squeeze=False, layout="constrained")
    for row, (name, pixels, titles) in zip(axes, rows, strict=True):
        row[0].set_ylabel(name)
        for axis, image, title in zip(row, pixels[chosen].clamp(0, 1).cpu(), titles, strict=True):
            axis.imshow(image.permute(1, 2, 0).squeeze().numpy(), cmap="gray", vmin=0, vmax=1)
            axis.set_title(title, fontsize="small")
            axis.set(xticks=[], yticks=[])
    figure.suptitle(f"predictions before and after {attack.title} at epsilon {255 * epsilon:.4g}/255")
    save_figure(figure, path)


def draw_confusions(predictions: Mapping[str, Tensor], labels: Tensor, classes: Sequence[str], folder: Path) -> None:
    """Write confusion.png, and confusion_<title>.csv for each entry: rows are true classes, columns predicted ones.

    The image shows shares of each true class, and names and counts if there are few classes.
    """
    size, names = (6 * len(predictions), 6), classes if len(classes) <= MAX_CLASS_NAMES else []
    figure, axes = plt.subplots(1, len(predictions), figsize=size, squeeze=False, layout="constrained")
    for axis, (title, predicted) in zip(axes[0], predictions.items(), strict=True):
        counts = confusion(predicted, labels, len(classes))
        rows = [[name, *row] for name, row in zip(classes, counts.tolist(), strict=True)]
        write_csv(folder / f"confusion_{title}.csv", ["true \\ predicted", *classes], rows)
        shares = counts / counts.sum(1, keepdim=True).clamp(min=1)
        axis.imshow(shares.numpy(), cmap="Blues", vmin=0, vmax=1)
        axis.set(xlabel="predicted class", ylabel="true class", title=title)
        axis.set_xticks(range(len(names)), names, rotation=90, fontsize="small")
        axis.set_yticks(range(len(names)), names, fontsize="small")
        for row, column in counts[: len(names), : len(names)].nonzero().tolist():
            style = {"color": "white" if shares[row, column] > 0.5 else "black", "fontsize": "x-small"}
            axis.text(column, row, int(counts[row, column]), ha="center", va="center", **style)
    save_figure(figure, folder / "confusion.png")


def confusion(predicted: Tensor, labels: Tensor, classes: int) -> Tensor:
    """Count images (classes, classes) by true class (row) and predicted class (column)."""
    return torch.bincount(labels * classes + predicted, minlength=classes**2).reshape(classes, classes)
