"""Figures: accuracy per epoch, adversarial images beside the clean ones, and networks as points in a plane."""

from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import NamedTuple

import matplotlib

from utils.files import write_atomically
from utils.log import logger

matplotlib.use("Agg")  # no display needed
import matplotlib.pyplot as plt
from matplotlib.patches import Patch
from matplotlib.transforms import Bbox

matplotlib.rcParams["text.parse_math"] = False  # the name of a class or of a file may hold two dollars

MAX_CLASS_NAMES = 20
MAX_DISTANCE = 60  # pixels from a point to its name

Rows = Sequence[Mapping]  # of results.csv or reliability.csv: text or numbers; "" and None are missing values


class Point(NamedTuple):
    """A point of a scatter plot: ``group`` sets its colour, ``kind`` its marker; ``name`` is written beside it."""

    x: float
    y: float
    group: str
    kind: str
    name: str = ""


def draw_curves(axes, runs: Mapping[str, Rows]) -> None:
    """Draw clean (dashed) and PGD-10 (solid) accuracy per epoch of each run; rows of results.csv."""
    _draw_columns(axes, runs, "accuracy (%)", clean_acc="clean", PGD10_acc="PGD-10")


def draw_reliability(axes, runs: Mapping[str, Rows]) -> None:
    """Draw the teacher's accuracy on clean (dashed) and adversarial (solid) images; rows of reliability.csv."""
    labels = {"teacher_clean_acc": "clean images", "teacher_adv_acc": "adversarial images"}
    _draw_columns(axes, runs, "teacher's accuracy (%)", **labels)


def _draw_columns(axes, runs: Mapping[str, Rows], ylabel: str, **columns: str) -> None:
    """Draw two ``columns``, given with their labels, the first dashed. An epoch without a value has no point."""
    for number, (name, rows) in enumerate(runs.items()):
        for (column, label), style in zip(columns.items(), ("--", "-"), strict=True):
            points = [(int(row["epoch"]), float(row[column])) for row in rows if row.get(column) not in (None, "")]
            if points:
                look = {"color": f"C{number}", "marker": ".", "label": f"{name} {label}".strip()}
                axes.plot(*zip(*points, strict=True), style, **look)
    axes.set(xlabel="epoch", ylabel=ylabel, ylim=(0, 100))
    axes.xaxis.set_major_locator(plt.MaxNLocator(integer=True))
    axes.grid(alpha=0.3)
    axes.legend(handles=axes.get_lines(), fontsize="small")  # which may be none


def draw_alpha(axes, rows: Rows, columns: Sequence[str]) -> None:
    """Draw histograms of alpha, ``columns`` of reliability.csv, as shares per epoch; white without alpha."""
    rows = [row for row in rows if row[columns[0]] is not None]
    shares = [[100 * row[column] / row["n"] for column in columns] for row in rows]
    edges = [number / len(columns) for number in range(len(columns) + 1)]
    for row, share in zip(rows, shares, strict=True):
        ends, column = (row["epoch"] - 0.5, row["epoch"] + 0.5), [[part] for part in share]
        mesh = axes.pcolormesh(ends, edges, column, vmin=0, vmax=max(map(max, shares)))
    axes.set(xlabel="epoch", ylabel="alpha: teacher's probability of the label", ylim=(0, 1))
    axes.figure.colorbar(mesh, ax=axes, label="share of the adversarial images (%)")


def draw_examples(axes, clean, adversarial, captions: Sequence[tuple[str, str]], epsilon: float) -> None:
    """Draw clean image, perturbation (-epsilon black, 0 grey, epsilon white) and adversarial image on (3, n) axes.

    ``clean`` and ``adversarial`` are (n, C, H, W) tensors in [0, 1]; ``captions`` are the predictions on each.
    """
    for column, (x, x_adv, (prediction, prediction_adv)) in enumerate(zip(clean, adversarial, captions, strict=True)):
        images = (x, (x_adv - x) / (2 * epsilon) + 0.5, x_adv)
        for axis, image, title in zip(axes[:, column], images, (prediction, "", prediction_adv), strict=True):
            axis.imshow(image.clamp(0, 1).permute(1, 2, 0).squeeze().numpy(), cmap="gray", vmin=0, vmax=1)
            axis.set_title(title, fontsize="small")
            axis.set(xticks=[], yticks=[])
    for row, name in enumerate(("clean", "perturbation", "adversarial")):
        axes[row, 0].set_ylabel(name)


def draw_radius_curves(axes, radii: Sequence[int], curves: Mapping[str, Sequence[float]], attack: str) -> None:
    """Draw accuracy (%) against the attack's epsilon, in /255, one line per network."""
    for name, accuracies in curves.items():
        axes.plot(radii, accuracies, marker=".", label=name)
    axes.set(xlabel=f"epsilon (/255) of {attack}", ylabel="accuracy (%)", ylim=(0, 100), xticks=radii)
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")


def draw_confusion(axes, counts, classes: Sequence[str], title: str) -> None:
    """Draw a matrix of counts (true class, predicted class) as shares of each true class; names of few classes."""
    shares = counts / counts.sum(1, keepdim=True).clamp(min=1)
    axes.imshow(shares.numpy(), cmap="Blues", vmin=0, vmax=1)
    axes.set(xlabel="predicted class", ylabel="true class", title=title)
    names = classes if len(classes) <= MAX_CLASS_NAMES else []
    axes.set_xticks(range(len(names)), names, rotation=90, fontsize="small")
    axes.set_yticks(range(len(names)), names, fontsize="small")
    for row, column in counts[: len(names), : len(names)].nonzero().tolist():
        color = "white" if shares[row, column] > 0.5 else "black"
        axes.text(column, row, int(counts[row, column]), ha="center", va="center", fontsize="x-small", color=color)


def scatter(points: Sequence[Point], markers: Mapping[str, str], *, xlabel: str, ylabel: str) -> plt.Figure:
    """Draw points with their names and a legend; ``markers`` maps kinds to matplotlib's markers (else a diamond)."""
    side = 6 + sum(bool(point.name) for point in points) / 24  # inches; more names need more space
    figure, axes = plt.subplots(figsize=(side + 2, side), layout="constrained")
    groups = dict.fromkeys(point.group for point in points)
    colormap = matplotlib.colormaps["tab10" if len(groups) <= 10 else "turbo"].resampled(max(10, len(groups)))
    colors = {group: colormap(number) for number, group in enumerate(groups)}
    marks = {point.kind: markers.get(point.kind, "D") for point in points}
    for x, y, group, kind, _ in points:
        axes.plot(x, y, markeredgecolor="white", color=colors[group], marker=marks[kind], markersize=8)
    axes.set(xlabel=xlabel, ylabel=ylabel, xmargin=0.15, ymargin=0.15)
    axes.grid(alpha=0.3)
    key = [Patch(color=color, label=shortened(group)) for group, color in colors.items()]
    key += [plt.Line2D([], [], color="0.4", marker=mark, ls="", label=shortened(kind)) for kind, mark in marks.items()]
    figure.legend(handles=key, loc="outside right upper", fontsize="small")
    name_points(axes, [(point.x, point.y) for point in points], [point.name for point in points])
    return figure


def name_points(axes, points: Sequence[tuple[float, float]], names: Sequence[str]) -> None:
    """Write each point's name ("" for none) near it, covering no point and no other name; warn of omitted names."""
    axes.figure.draw_without_rendering()  # computes the layout, hence all positions in pixels
    named = [(point, name) for point, name in zip(points, names, strict=True) if name]
    taken = [Bbox.from_bounds(x - 5, y - 5, 10, 10) for x, y in axes.transData.transform(points)]
    leader = {"arrowstyle": "-", "color": "0.6", "linewidth": 0.5, "shrinkA": 0, "shrinkB": 4}
    style = {"fontsize": "x-small", "ha": "center", "va": "center", "zorder": 1, "arrowprops": leader}
    for point, name in named:
        text = axes.annotate(name, point, xytext=(0, 0), textcoords="offset points", **style)
        centered = text.get_window_extent().padded(1)
        for distance, dx, dy in product(range(6, MAX_DISTANCE, 6), (1, -1, 0), (0, 1, -1)):
            shift = dx * (centered.width / 2 + distance), dy * (centered.height / 2 + distance)
            box = centered.translated(*shift)
            if axes.bbox.count_contains(box.get_points()) == 2 and not box.count_overlaps(taken):
                text.xyann = [pixels * 72 / axes.figure.dpi for pixels in shift]
                taken.append(box)
                break
        else:
            text.remove()
    if omitted := len(points) + len(named) - len(taken):
        logger.warning("the figure omits the names of %d points, which are too close to others", omitted)


def shortened(text: str, longest: int = 40) -> str:
    """Return the end of a text, at most ``longest`` characters: the end of a path identifies a run best."""
    return text if len(text) <= longest else f"…{text[1 - longest :]}"


def save_figure(figure, path: Path) -> None:
    """Write the figure to ``path``, or leave the old file, and close the figure."""
    try:
        write_atomically(path, lambda temporary: figure.savefig(temporary, dpi=120, bbox_inches="tight"))
    finally:
        plt.close(figure)


def save_curves(rows: Rows, path: Path) -> None:
    """Draw one run's results.csv into a file."""
    figure, axes = plt.subplots(figsize=(6, 4))
    draw_curves(axes, {"": rows})
    save_figure(figure, path)


def save_reliability(rows: Rows, columns: Sequence[str], path: Path) -> None:
    """Draw one run's reliability.csv into a file: the teacher's accuracy, and the histograms of alpha if any."""
    has_alpha = any(row[columns[0]] is not None for row in rows)
    figure = plt.figure(figsize=(6 + 6 * has_alpha, 4), layout="constrained")
    axes = figure.subplots(1, 1 + has_alpha, sharex=True, squeeze=False)
    draw_reliability(axes[0, 0], {"": rows})
    if has_alpha:
        draw_alpha(axes[0, 1], rows, columns)
    save_figure(figure, path)
