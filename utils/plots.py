"""Plots of a training run: accuracy per epoch and the teacher's reliability; files of plots."""

import colorsys
import os
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

from utils.files import write_atomically

os.environ["MPLBACKEND"] = "agg"  # no display needed, whatever the variable names
import matplotlib
import matplotlib.pyplot as plt

matplotlib.rcdefaults()  # a matplotlibrc may need LaTeX
matplotlib.rcParams["text.parse_math"] = False  # the name of a class or of a file may hold two dollars

Rows = Sequence[Mapping]  # of results.csv or reliability.csv: text or numbers; "" and None are missing values


def draw_curves(axes, rows: Rows) -> None:
    """Draw clean (dashed) and PGD-10 (solid) accuracy per epoch; rows of results.csv."""
    _draw_columns(axes, rows, "accuracy (%)", clean_acc="clean", PGD10_acc="PGD-10")


def _draw_columns(axes, rows: Rows, ylabel: str, **columns: str) -> None:
    """Draw two ``columns``, given with their labels, the first dashed. An epoch without a value has no point."""
    for (column, label), style in zip(columns.items(), ("--", "-"), strict=True):
        points = [(int(row["epoch"]), float(row[column])) for row in rows if row.get(column) not in (None, "")]
        if points:
            axes.plot(*zip(*points, strict=True), style, color="C0", marker=".", label=label)
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


def distinct_color(number: int) -> str:
    """Return the color of item ``number`` of any number of items: multiples of the golden angle are distinct hues."""
    return matplotlib.colors.to_hex(colorsys.hls_to_rgb(number * 0.381966 % 1, 0.5, 0.65))


def save_figure(figure, path: Path) -> None:
    """Write the figure to ``path``, or leave the old file, and close the figure."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the font does not have every character of a class name
            write_atomically(path, lambda temporary: figure.savefig(temporary, dpi=120, bbox_inches="tight"))
    finally:
        plt.close(figure)


def save_curves(rows: Rows, path: Path) -> None:
    """Draw one run's results.csv into a file."""
    figure, axes = plt.subplots(figsize=(6, 4))
    draw_curves(axes, rows)
    save_figure(figure, path)


def save_reliability(rows: Rows, columns: Sequence[str], path: Path) -> None:
    """Draw one run's reliability.csv into a file: the teacher's accuracy, and the histograms of alpha if any."""
    has_alpha = any(row[columns[0]] is not None for row in rows)
    figure = plt.figure(figsize=(6 + 6 * has_alpha, 4), layout="constrained")
    axes = figure.subplots(1, 1 + has_alpha, sharex=True, squeeze=False)
    labels = {"teacher_clean_acc": "clean images", "teacher_adv_acc": "adversarial images"}
    _draw_columns(axes[0, 0], rows, "teacher's accuracy (%)", **labels)
    if has_alpha:
        draw_alpha(axes[0, 1], rows, columns)
    save_figure(figure, path)
