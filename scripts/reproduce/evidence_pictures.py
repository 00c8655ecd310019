"""Pictures of the evidence on a CPU, each from the runs of students; None where they lack what it shows."""

from collections.abc import Collection, Sequence
from statistics import mean, stdev

import matplotlib
import matplotlib.pyplot as plt
from matplotlib.figure import Figure

from engine.training.run_folder import ALPHA_COLUMNS
from scripts.reproduce.evidence_runs import ATTACKS, LONG, Run, grouped, plain_methods, strongest
from utils.plots import draw_reliability


def tradeoff(runs: Sequence[Run]) -> Figure | None:
    """Robust against clean accuracy of every method's best checkpoint, with the deviations over seeds as bars.

    Natural training is left out: at no robustness at all, it would press the others together.
    """
    methods = plain_methods(run for run in runs if run.method != "Natural")
    attack = strongest(methods, "best")
    found = {
        method: [[run.accuracy("best", title) for run in group] for title in (ATTACKS[0], attack)]
        for method, group in methods.items()
    }
    if len(methods) < 2 or attack == ATTACKS[0] or any(None in values for seeds in found.values() for values in seeds):
        return None
    figure, axes = plt.subplots(figsize=(7, 5), layout="constrained")
    middles = {method: tuple(map(mean, seeds)) for method, seeds in found.items()}
    for number, (method, seeds) in enumerate(found.items()):
        middle = middles[method]
        across, up = (stdev(values) if len(values) > 1 else 0 for values in seeds)
        color = matplotlib.colormaps["turbo"]((number + 0.5) / len(found))
        axes.errorbar(*middle, xerr=across, yerr=up, fmt="o", capsize=2, elinewidth=0.8, color=color)
        side = {"xytext": (4, -4), "va": "top"} if _below_another(middle, middles.values()) else {"xytext": (4, 4)}
        axes.annotate(method, middle, textcoords="offset points", fontsize="small", **side)
    axes.set(xlabel="clean accuracy (%)", ylabel=f"accuracy under {attack} (%)")
    axes.margins(0.12)
    axes.grid(alpha=0.3)
    return figure


def overfitting(runs: Sequence[Run]) -> Figure | None:
    """Robust accuracy per epoch: on test images by PGD-10 after it, and on training images during it.

    Means over seeds; a band from the lowest to the highest seed on test images. That on training images is of each
    method's own attack on augmented images, so only its course tells something.
    """
    long = _long(runs)
    if not long:
        return None
    figure, axes = plt.subplots(figsize=(8, 4.5), layout="constrained")
    for number, (name, group) in enumerate(long.items()):
        rows = _mean_rows([run.epochs for run in group])
        test, training = _points(rows, "PGD10_acc"), _points(rows, "train_adv_acc")
        axes.plot(*zip(*test, strict=True), color=f"C{number}", label=f"{name}: test, PGD-10")
        same = list(zip(*([float(row["PGD10_acc"]) for row in run.epochs] for run in group), strict=False))
        ends = [list(map(end, same)) for end in (min, max)]
        axes.fill_between([epoch for epoch, _ in test], *ends, color=f"C{number}", alpha=0.2, lw=0)
        axes.plot(*max(test, key=lambda point: point[1]), "o", color=f"C{number}")
        if training:
            label = f"{name}: training, its own attack"
            axes.plot(*zip(*training, strict=True), ":", color=f"C{number}", label=label)
    axes.set(xlabel="epoch", ylabel="accuracy under attack (%)")
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
    return figure


def reliability(runs: Sequence[Run]) -> Figure | None:
    """How often the teacher is right on clean and on the student's adversarial training images (figure 1 of IAD)."""
    watched = _watched(runs)
    if not watched:
        return None
    figure, axes = plt.subplots(figsize=(8, 4.5), layout="constrained")
    draw_reliability(axes, {f"{name}:": rows for name, rows in watched.items()})
    axes.autoscale(axis="y")  # a few points of change are to be seen
    return figure


def alpha(runs: Sequence[Run]) -> Figure | None:
    """The teacher's probability of the label on adversarial images, early and late in training."""
    counted = {name: [row for row in rows if row[ALPHA_COLUMNS[0]] != ""] for name, rows in _watched(runs).items()}
    counted = {name: rows for name, rows in counted.items() if rows}
    if not counted:
        return None
    size = (4.5 * len(counted), 3.5)
    figure, axes = plt.subplots(1, len(counted), figsize=size, sharey=True, layout="constrained", squeeze=False)
    edges = [number / len(ALPHA_COLUMNS) for number in range(len(ALPHA_COLUMNS) + 1)]
    for axis, (name, rows) in zip(axes[0], counted.items(), strict=True):
        for row, style in ((rows[0], "--"), (rows[-1], "-")):
            counts = [row[column] for column in ALPHA_COLUMNS]
            shares = [100 * count / sum(counts) for count in counts]
            axis.stairs(shares, edges, ls=style, label=f"epoch {int(row['epoch']) + 1}")
        axis.set(xlabel="alpha: teacher's probability of the label", title=name)
        axis.legend(fontsize="small")
    axes[0, 0].set_ylabel("share of the adversarial images (%)")
    return figure


def per_class(runs: Sequence[Run], attack: str = "PGD-20") -> Figure | None:
    """Accuracy of each class under PGD-20, best checkpoints, mean over seeds."""
    found = {}
    for method, group in plain_methods(runs).items():
        if figures := [run.figures["best"][attack]["per_class"] for run in group if attack in run.figures["best"]]:
            found[method] = {name: mean(one[name] for one in figures) for name in figures[0]}
    if not found:
        return None
    ordered = sorted(found, key=lambda method: mean(found[method].values()), reverse=True)
    names = list(found[ordered[0]])
    figure, axes = plt.subplots(figsize=(9, 0.4 * len(ordered) + 1.5), layout="constrained")
    shown = [[found[method][name] for name in names] for method in ordered]
    axes.imshow(shown, cmap="Blues", vmin=0, vmax=100, aspect="auto")
    axes.set_xticks(range(len(names)), names, rotation=30, ha="right", fontsize="small")
    axes.set_yticks(range(len(ordered)), ordered, fontsize="small")
    axes.set_title(f"accuracy (%) of each class under {attack}", fontsize="medium")
    for row, values in enumerate(shown):
        for column, value in enumerate(values):
            color = "white" if value > 50 else "black"
            axes.text(column, row, f"{value:.0f}", ha="center", va="center", fontsize="small", color=color)
    return figure


def _long(runs: Sequence[Run]) -> dict[str, list[Run]]:
    """The seeds of each method's long run, by the method's name and their number."""
    groups = grouped(runs, lambda run: run.method if run.word == LONG else None)
    return {f"{method} ({len(group)} seed{'s' * (len(group) > 1)})": group for method, group in groups.items()}


def _watched(runs: Sequence[Run]) -> dict[str, list[dict]]:
    """What --log_reliability noted in the long runs of each method that has a teacher, means over seeds."""
    long = {name: [run.trust for run in group] for name, group in _long(runs).items()}
    return {name: _mean_rows(tables) for name, tables in long.items() if all(tables)}


def _mean_rows(tables: Sequence[Sequence[dict[str, str]]]) -> list[dict]:
    """A row for each epoch that all seeds' tables have, with their means; "" where a seed has no value."""
    rows = []
    for same in zip(*tables, strict=False):
        cells = {key: [row[key] for row in same] for key in same[0]}
        rows.append({key: "" if "" in values else mean(map(float, values)) for key, values in cells.items()})
    return rows


def _points(rows: Sequence[dict], column: str) -> list[tuple[int, float]]:
    return [(int(row["epoch"]) + 1, float(row[column])) for row in rows if row[column] != ""]


PICTURES = {
    "tradeoff": tradeoff,
    "overfitting": overfitting,
    "reliability": reliability,
    "alpha": alpha,
    "per_class": per_class,
}


def _below_another(point: tuple[float, float], points: Collection[tuple[float, float]]) -> bool:
    """Whether one of ``points`` is so close above that names over both would cover each other."""
    near = [0.05 * (max(values) - min(values)) for values in zip(*points, strict=True)]
    return any(abs(x - point[0]) < near[0] and 0 < y - point[1] < near[1] for x, y in points)
