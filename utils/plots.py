"""Pictures: accuracy per epoch, adversarial images beside the clean ones, and networks as points in a plane."""

from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import NamedTuple

import matplotlib

from utils.files import write_atomically
from utils.log import logger

matplotlib.use("Agg")  # no display needed
import matplotlib.pyplot as plt
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator
from matplotlib.transforms import Bbox

matplotlib.rcParams["text.parse_math"] = False  # the name of a class or of a file may hold two dollars

ROOM_FOR_NAMES = 20  # classes
FARTHEST = 60  # pixels from a point to its name; farther, it is hard to see which is whose


class Point(NamedTuple):
    """A point of a scatter plot; the colour tells its ``group``, the marker its ``kind``, a text beside it its name."""

    x: float
    y: float
    group: str
    kind: str
    name: str = ""


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
    """Draw a matrix of counts (true class, predicted class) as shares of each true class, named where there is room."""
    shares = counts / counts.sum(1, keepdim=True).clamp(min=1)
    axes.imshow(shares.numpy(), cmap="Blues", vmin=0, vmax=1)
    axes.set(xlabel="predicted class", ylabel="true class", title=title)
    few = len(classes) <= ROOM_FOR_NAMES
    ticks = range(len(classes)) if few else []
    axes.set_xticks(ticks, classes if few else [], rotation=90, fontsize="small")
    axes.set_yticks(ticks, classes if few else [], fontsize="small")
    for row, column in ((i, j) for i in ticks for j in ticks if counts[i, j]):
        color = "white" if shares[row, column] > 0.5 else "black"
        axes.text(column, row, int(counts[row, column]), ha="center", va="center", fontsize="x-small", color=color)


def scatter(points: Sequence[Point], markers: Mapping[str, str], *, xlabel: str, ylabel: str) -> Figure:
    """Draw points with their names and a legend; ``markers`` are matplotlib's, by kind, and a diamond for any other."""
    side = 6 + sum(bool(point.name) for point in points) / 24  # inches; more names need more room
    figure, axes = plt.subplots(figsize=(side + 2, side), layout="constrained")
    groups = list(dict.fromkeys(point.group for point in points))
    shades = matplotlib.colormaps["tab10" if len(groups) <= 10 else "turbo"].resampled(max(10, len(groups)))
    colors = {group: shades(number) for number, group in enumerate(groups)}
    marks = {point.kind: markers.get(point.kind, "D") for point in points}
    for point in points:
        look = {"color": colors[point.group], "marker": marks[point.kind], "markersize": 8}
        axes.plot(point.x, point.y, markeredgecolor="white", **look)
    axes.set(xlabel=xlabel, ylabel=ylabel)
    axes.margins(0.15)
    axes.grid(alpha=0.3)
    key = [Patch(color=color, label=shortened(group)) for group, color in colors.items()]
    key += [Line2D([], [], color="0.4", marker=mark, ls="", label=shortened(kind)) for kind, mark in marks.items()]
    figure.legend(handles=key, loc="outside right upper", fontsize="small")
    name_points(axes, [(point.x, point.y) for point in points], [point.name for point in points])
    return figure


def name_points(axes, points: Sequence[tuple[float, float]], names: Sequence[str]) -> None:
    """Write a name near each point, where it covers neither a point nor another name; warn of those without room.

    ``names`` has one for each point, "" for none.
    """
    axes.figure.draw_without_rendering()  # settles the layout, hence where in pixels everything is
    pixels = axes.transData.transform(points)
    taken = [Bbox.from_bounds(x - 5, y - 5, 10, 10) for x, y in pixels]
    leader = {"arrowstyle": "-", "color": "0.6", "linewidth": 0.5, "shrinkA": 0, "shrinkB": 4}
    style = {"fontsize": "x-small", "ha": "center", "va": "center", "zorder": 1, "arrowprops": leader}
    unnamed = 0
    for point, pixel, name in zip(points, pixels, names, strict=True):
        text = axes.annotate(name, point, xytext=(0, 0), textcoords="offset points", **style)
        box = _free_box(text.get_window_extent().padded(1), pixel, axes.bbox, taken) if name else None
        if box:
            text.xyann = ((box.min + box.max) / 2 - pixel) * 72 / axes.figure.dpi
            taken.append(box)
        else:
            text.remove()
            unnamed += bool(name)
    if unnamed:
        logger.warning("the picture names all but %d points, which are too close to others", unnamed)


def _free_box(size: Bbox, point: tuple[float, float], room: Bbox, taken: Sequence[Bbox]) -> Bbox | None:
    """The nearest box around a point, in pixels, that lies in the room and meets nothing taken."""
    width, height = size.width, size.height
    for away, dx, dy in product(range(6, FARTHEST, 6), (1, -1, 0), (0, 1, -1)):
        x, y = point[0] + dx * (width / 2 + away), point[1] + dy * (height / 2 + away)
        box = Bbox.from_bounds(x - width / 2, y - height / 2, width, height)
        inside = room.x0 <= box.x0 and box.x1 <= room.x1 and room.y0 <= box.y0 and box.y1 <= room.y1
        if inside and not box.count_overlaps(taken):
            return box
    return None


def shortened(text: str, longest: int = 40) -> str:
    """The end of a text, of at most ``longest`` characters, as a picture has room for; the end of a path tells most."""
    return text if len(text) <= longest else f"…{text[1 - longest :]}"


def save_figure(figure, path: Path) -> None:
    """Write the figure to ``path`` whole, and close it, written or not."""
    try:
        write_atomically(path, lambda temporary: figure.savefig(temporary, dpi=120, bbox_inches="tight"))
    finally:
        plt.close(figure)


def save_curves(rows: Sequence[Mapping[str, str]], path: Path) -> None:
    """Picture of one run's results.csv."""
    figure, axes = plt.subplots(figsize=(6, 4))
    draw_curves(axes, {"": rows})
    save_figure(figure, path)


def draw_trust(axes, runs: Mapping[str, Sequence[Mapping]]) -> None:
    """Draw how often the teacher is right on clean (dashed) and adversarial (solid) images; rows of reliability.csv."""
    kinds = (("teacher_clean_acc", "--", "clean"), ("teacher_adv_acc", "-", "adversarial"))
    for number, (name, rows) in enumerate(runs.items()):
        for column, style, kind in kinds:
            points = [(int(row["epoch"]) + 1, float(row[column])) for row in rows if row[column] not in (None, "")]
            if points:
                label = f"{name} {kind} images".strip()
                axes.plot(*zip(*points, strict=True), style, color=f"C{number}", marker=".", label=label)
    axes.set(xlabel="epoch", ylabel="teacher is right (%)", ylim=(0, 100))
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")


def draw_alpha(axes, rows: Sequence[Mapping], columns: Sequence[str]) -> None:
    """Draw the histograms of alpha, ``columns`` of reliability.csv's rows, as a map of shares over epochs.

    Epochs without alpha stay white.
    """
    counted = [row for row in rows if row[columns[0]] is not None]
    shares = {row["epoch"]: [100 * row[column] / row["n"] for column in columns] for row in counted}
    edges = [number / len(columns) for number in range(len(columns) + 1)]
    for epoch, share in shares.items():
        ends, column = (epoch + 0.5, epoch + 1.5), [[part] for part in share]
        shown = axes.pcolormesh(ends, edges, column, vmin=0, vmax=max(map(max, shares.values())))
    axes.set(xlabel="epoch", ylabel="alpha: teacher's probability of the label", ylim=(0, 1))
    axes.figure.colorbar(shown, ax=axes, label="share of the adversarial images (%)")


def save_reliability(rows: Sequence[Mapping], columns: Sequence[str], path: Path) -> None:
    """Picture of one run's reliability.csv: the teacher's shares, and where there are any its histograms of alpha."""
    watched = any(row[columns[0]] is not None for row in rows)
    look = {"figsize": (6 + 6 * watched, 4), "sharex": True, "squeeze": False, "layout": "constrained"}
    figure, axes = plt.subplots(1, 1 + watched, **look)
    axes[0, 0].xaxis.set_major_locator(MaxNLocator(integer=True))
    draw_trust(axes[0, 0], {"": rows})
    if watched:
        draw_alpha(axes[0, 1], rows, columns)
    save_figure(figure, path)
