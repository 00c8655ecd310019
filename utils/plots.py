"""Pictures of a run: accuracy per epoch, and adversarial images beside the clean ones."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib

from utils.files import write_atomically

matplotlib.use("Agg")  # no display needed
import matplotlib.pyplot as plt

ROOM_FOR_NAMES = 20  # classes


def draw_curves(axes, runs: Mapping[str, Sequence[Mapping[str, str]]]) -> None:
    """Draw clean (dashed) and PGD-10 (solid) accuracy per epoch of each run's results.csv rows."""
    for i, (name, rows) in enumerate(runs.items()):
        epochs = [int(row["epoch"]) + 1 for row in rows]
        for column, style, kind in (("clean_acc", "--", "clean"), ("PGD10_acc", "-", "PGD-10")):
            values = [float(row[column]) for row in rows]
            axes.plot(epochs, values, style, color=f"C{i}", marker=".", label=f"{name} {kind}".strip())
    axes.set(xlabel="epoch", ylabel="accuracy (%)", ylim=(0, 100))
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")


def draw_examples(axes, clean, adversarial, captions: Sequence[tuple[str, str]], epsilon: float) -> None:
    """Draw one column per image on a (3, n) array of axes: clean, perturbation, adversarial.

    ``clean`` and ``adversarial`` are (n, C, H, W) tensors in [0, 1]; ``captions`` hold the predictions on each. The
    perturbation is scaled so that grey is 0 and black or white is epsilon.
    """
    for column, (image, attacked, (before, after)) in enumerate(zip(clean, adversarial, captions, strict=True)):
        difference = (attacked - image) / (2 * epsilon) + 0.5
        for axis, picture, title in zip(
            axes[:, column], (image, difference, attacked), (before, "", after), strict=True
        ):
            axis.imshow(picture.clamp(0, 1).permute(1, 2, 0).squeeze().numpy(), cmap="gray", vmin=0, vmax=1)
            axis.set_title(title, fontsize="small")
            axis.set(xticks=[], yticks=[])
    for axis, name in zip(axes[:, 0], ("clean", "perturbation", "adversarial"), strict=True):
        axis.set_ylabel(name)


def draw_radius_curves(axes, radii: Sequence[int], curves: Mapping[str, Sequence[float]], attack: str) -> None:
    """Draw accuracy (%) against the attack's radius, in /255, one line per network."""
    for name, accuracies in curves.items():
        axes.plot(radii, accuracies, marker=".", label=name)
    axes.set(xlabel=f"epsilon (/255) of {attack}", ylabel="accuracy (%)", ylim=(0, 100), xticks=radii)
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")


def draw_confusion(axes, counts, classes: Sequence[str], title: str) -> None:
    """Draw a matrix of counts, (true class, class read), as shares of each true class, named where there is room."""
    shares = counts / counts.sum(1, keepdim=True).clamp(min=1)
    axes.imshow(shares.numpy(), cmap="Blues", vmin=0, vmax=1)
    axes.set(xlabel="read as", ylabel="true class", title=title)
    few = len(classes) <= ROOM_FOR_NAMES
    ticks = range(len(classes)) if few else []
    axes.set_xticks(ticks, classes if few else [], rotation=90, fontsize="small")
    axes.set_yticks(ticks, classes if few else [], fontsize="small")
    for row, column in ((i, j) for i in ticks for j in ticks if counts[i, j]):
        color = "white" if shares[row, column] > 0.5 else "black"
        axes.text(column, row, int(counts[row, column]), ha="center", va="center", fontsize="x-small", color=color)


def save_figure(figure, path: Path) -> None:
    """Write the figure to ``path`` whole, and close it."""
    write_atomically(path, lambda temporary: figure.savefig(temporary, dpi=120, bbox_inches="tight"))
    plt.close(figure)


def save_curves(rows: Sequence[Mapping[str, str]], path: Path) -> None:
    """Picture of one run's results.csv."""
    figure, axes = plt.subplots(figsize=(6, 4))
    draw_curves(axes, {"": rows})
    save_figure(figure, path)
