"""Pictures of the evidence on a CPU, each from the runs of students; None where they lack what it shows."""

from collections.abc import Sequence
from statistics import mean, stdev

import matplotlib
import matplotlib.pyplot as plt
from matplotlib.figure import Figure

from utils.plots import name_points

LONG = "long"  # --desc_str of the runs that overfit


def tradeoff(runs: Sequence) -> Figure | None:
    """Robust against clean accuracy of every method's best checkpoint, with the deviations over seeds as bars."""
    found = {}
    for run in runs:
        pair = run.accuracy("best", "Clean"), run.accuracy("best", "AutoAttack")
        if not run.config["desc_str"] and None not in pair:
            found.setdefault(run.config["method"], []).append(pair)
    if len(found) < 2:
        return None
    figure, axes = plt.subplots(figsize=(7, 5), layout="constrained")
    middles = []
    for number, pairs in enumerate(found.values()):
        clean, robust = zip(*pairs, strict=True)
        spread = [stdev(values) if len(values) > 1 else 0 for values in (clean, robust)]
        middles.append((mean(clean), mean(robust)))
        color = matplotlib.colormaps["turbo"]((number + 0.5) / len(found))
        axes.errorbar(*middles[-1], xerr=spread[0], yerr=spread[1], fmt="o", capsize=2, elinewidth=0.8, color=color)
    axes.set(xlabel="clean accuracy (%)", ylabel="accuracy under AutoAttack (%)")
    axes.margins(0.08)
    axes.grid(alpha=0.3)
    name_points(axes, middles, list(found))
    return figure


def overfitting(runs: Sequence) -> Figure | None:
    """Accuracy under PGD-10 per epoch, on test images and, in training, on the attacked training images."""
    long = _long(runs)
    if not long:
        return None
    figure, axes = plt.subplots(figsize=(8, 4.5), layout="constrained")
    for number, run in enumerate(long):
        epochs = [int(row["epoch"]) + 1 for row in run.epochs]
        robust = [float(row["PGD10_acc"]) for row in run.epochs]
        axes.plot(epochs, robust, color=f"C{number}", label=f"{run.config['method']}, test")
        axes.plot(epochs[robust.index(max(robust))], max(robust), "o", color=f"C{number}")
        trained = [
            (epoch, float(row["train_adv_acc"]))
            for epoch, row in zip(epochs, run.epochs, strict=True)
            if row["train_adv_acc"]
        ]
        if trained:
            axes.plot(*zip(*trained, strict=True), ":", color=f"C{number}", label=f"{run.config['method']}, training")
    axes.set(xlabel="epoch", ylabel="accuracy under the attack (%)")
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
    return figure


def reliability(runs: Sequence) -> Figure | None:
    """How often the teacher is right on clean and on the student's adversarial training images (figure 1 of IAD)."""
    watched = [run for run in _long(runs) if run.trust]
    if not watched:
        return None
    figure, axes = plt.subplots(figsize=(8, 4.5), layout="constrained")
    for number, run in enumerate(watched):
        for column, style, kind in (("clean_acc", "--", "clean"), ("adv_acc", "-", "the student's adversarial")):
            points = [(int(row["epoch"]) + 1, float(row[column])) for row in run.trust if row[column]]
            if points:
                label = f"{run.config['method']}: {kind} images"
                axes.plot(*zip(*points, strict=True), style, color=f"C{number}", label=label)
    axes.set(xlabel="epoch", ylabel="training images that the teacher reads rightly (%)")
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
    return figure


def alpha(runs: Sequence) -> Figure | None:
    """The teacher's probability of the label on adversarial images, early and late in training."""
    watched = [run for run in _long(runs) if run.trust and any(map(_counted, run.trust))]
    if not watched:
        return None
    figure, axes = plt.subplots(
        1, len(watched), figsize=(4.5 * len(watched), 3.5), sharey=True, layout="constrained", squeeze=False
    )
    for axis, run in zip(axes[0], watched, strict=True):
        counted = [row for row in run.trust if _counted(row)]
        for row, style in ((counted[0], "--"), (counted[-1], "-")):
            counts = [int(value) for key, value in row.items() if key.startswith("alpha")]
            shares = [100 * count / sum(counts) for count in counts]
            axis.stairs(
                shares,
                [edge / len(shares) for edge in range(len(shares) + 1)],
                ls=style,
                label=f"epoch {int(row['epoch']) + 1}",
            )
        axis.set(xlabel="alpha", title=run.config["method"])
        axis.legend(fontsize="small")
    axes[0, 0].set_ylabel("share of the adversarial images (%)")
    return figure


def classes(runs: Sequence, attack: str = "PGD-20") -> Figure | None:
    """Accuracy of each class under PGD-20, best checkpoints, mean over seeds."""
    found = {}
    for run in runs:
        if not run.config["desc_str"] and attack in run.figures["best"]:
            found.setdefault(run.config["method"], []).append(run.figures["best"][attack]["per_class"])
    if not found:
        return None
    names = list(next(iter(found.values()))[0])
    means = {
        method: [mean(figures[name] for figures in several) for name in names] for method, several in found.items()
    }
    ordered = sorted(means, key=lambda method: mean(means[method]), reverse=True)
    figure, axes = plt.subplots(figsize=(9, 0.4 * len(ordered) + 1.5), layout="constrained")
    axes.imshow([means[method] for method in ordered], cmap="Blues", vmin=0, vmax=100, aspect="auto")
    axes.set_xticks(range(len(names)), names, rotation=30, ha="right", fontsize="small")
    axes.set_yticks(range(len(ordered)), ordered, fontsize="small")
    for row, method in enumerate(ordered):
        for column, value in enumerate(means[method]):
            color = "white" if value > 50 else "black"
            axes.text(column, row, f"{value:.0f}", ha="center", va="center", fontsize="small", color=color)
    axes.set_title(f"accuracy (%) of each class under {attack}", fontsize="medium")
    return figure


def _counted(row: dict[str, str]) -> bool:
    return bool(row["alpha_0.00"])


def _long(runs: Sequence) -> list:
    return [run for run in runs if run.config["desc_str"] == LONG]


PICTURES = {
    "tradeoff": tradeoff,
    "overfitting": overfitting,
    "reliability": reliability,
    "alpha": alpha,
    "per_class": classes,
}
