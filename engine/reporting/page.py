"""The HTML page of many runs: a table of all runs and results, accuracy per epoch, robust against clean accuracy."""

import base64
import colorsys
import io
import re
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from datetime import datetime, timezone
from pathlib import Path

import matplotlib
from jinja2 import Environment, FileSystemLoader
from markupsafe import Markup
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from engine.reporting.runs import NONE, Evaluation, Run
from engine.reporting.tables import CLEAN, shared_attack, teacher_of
from engine.unused_fields import unused_fields
from methods import METHODS, WITHOUT_ATTACK
from utils.config import TrainConfig
from utils.plots import draw_curves

MAX_IMAGES = 2**26  # bytes of all images; a larger page is slow to open
KINDS = ("best", "last")  # checkpoints in the scatter plots
SPLITTING = (
    "protocol",
    "eps",
    "judged",
    "steps",
    "restarts",
    "attack precision",
    "surrogate",
)  # evaluations that differ get other columns
HIDDEN = {spec.name for spec in fields(TrainConfig) if not spec.metadata["affects_result"]}  # paths of this machine
INVALID = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")  # in HTML, even escaped
INK = "#010203"  # replaced by the text colour of the page
STYLE = dict.fromkeys(("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), INK)
STYLE |= {"svg.fonttype": "none", "legend.frameon": False}
TITLE = "title:"  # begins the id of a shape that shows a title under the pointer
UNUSED = re.compile(r'(?<=<g) id="[^"]*"| xmlns(:\w+)?="[^"]*"|<style.*?</style>', re.DOTALL)  # in an embedded SVG

Column = tuple[str, str]  # title and subtitle
Line = tuple[str, str, bool]  # of a cell: text, title, whether the checkpoint has changed since
Points = Mapping[str, tuple[float, float]]  # kind of checkpoint -> clean and robust accuracy


def render(runs: Sequence[Run], reload_seconds: float | None = None) -> str:
    """Return the page; a browser loads it again every ``reload_seconds``."""
    environment = Environment(loader=FileSystemLoader(Path(__file__).parent), autoescape=True, trim_blocks=True)
    environment.filters["base64"] = lambda content: base64.b64encode(content).decode()
    columns, rows = _table(runs)
    attack = shared_attack(_accuracies(entry) for run in runs for entry in run.evaluations)
    training, evaluated = [_training_points(run) for run in runs], [_evaluated_points(run, attack) for run in runs]
    page = environment.get_template("page.html.j2").render(
        nonce=secrets.token_hex(16),
        written=datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M:%S UTC"),
        reload_seconds=reload_seconds,
        columns=columns,
        runs=runs,
        rows=rows,
        curves={"PGD-10": _svg(_draw_epochs, runs, "PGD10_acc"), "clean": _svg(_draw_epochs, runs, "clean_acc")},
        scatters={
            "PGD-10, in training": _svg(_draw_points, runs, training),
            f"{attack}, evaluated": _svg(_draw_points, runs, evaluated),
        },
        draw=lambda run: _svg(draw_curves, {"": run.epochs}),
        images=sum(len(image) for run in runs for image in run.images.values()) <= MAX_IMAGES,
        color=_color,
        settings=_settings,
    )
    return INVALID.sub("\N{REPLACEMENT CHARACTER}", page)


def _table(runs: Sequence[Run]) -> tuple[dict[Column, bool], list[dict[Column, list[Line]]]]:
    """Return whether each column holds numbers, and the cells of each run by column."""
    entries = [entry for run in runs for entry in run.evaluations]
    splitting = [title for title in SPLITTING if len({entry.labels[title] for entry in entries}) > 1]
    attacks = list(dict.fromkeys(attack for entry in entries for attack in entry.results))
    kinds = list(dict.fromkeys([*KINDS, *(entry.kind for entry in entries)]))
    rows = [{column: [line] for column, line in _training_cells(run).items()} for run in runs]
    order = {column: () for row in rows for column in row}
    for run, row in zip(runs, rows, strict=True):
        for entry in run.evaluations:
            conditions = "".join(f", {title} {entry.labels[title]}" for title in splitting)
            conditions_text = ", ".join(f"{title} {label}" for title, label in entry.labels.items() if label != NONE)
            for attack, result in entry.results.items():
                column, text = (attack, entry.kind + conditions), f"{result['accuracy']:.2f} (n={result['n']})"
                row.setdefault(column, []).append(
                    (text, f"{result.get('settings', '')}; {conditions_text}", entry.outdated)
                )
                order[column] = (attacks.index(attack), conditions, kinds.index(entry.kind))
    texts = {column: [row[column][-1][0] for row in rows if column in row] for column in sorted(order, key=order.get)}
    return {column: all(text[0].isdigit() or text == NONE for text in texts[column]) for column in texts}, rows


def _training_cells(run: Run) -> dict[Column, Line]:
    """Return the cells that every run has."""
    config = {key: f"{value:g}" if isinstance(value, float) else value for key, value in run.config.items()}
    cells = {("epochs", "done of all"): f"{len(run.epochs)} of {config.get('epochs', '?')}"}
    cells |= {(key, ""): config.get(key) for key in ("method", "model", "dataset", "seed")}
    cells |= {("teacher", ""): teacher_of(config), ("epsilon", "in training, /255"): config.get("epsilon")}
    for title, column in {"best clean": "clean_acc", "best PGD-10": "PGD10_acc"}.items():
        best = max(((row[column], -row["epoch"]) for row in run.epochs if row.get(column) is not None), default=None)
        cells[title, "in training"] = f"{best[0]:.2f} (epoch {-best[1]})" if best else None
    cells |= {(title, "in training"): f"{cost:.0f}" for title, cost in run.costs.items()}
    return {column: (NONE if text in (None, "") else str(text), "", False) for column, text in cells.items()}


def _settings(run: Run) -> dict[str, object]:
    """Return the settings that made the run, without paths of this machine and those that its method does not use."""
    method = run.config.get("method")
    hidden = HIDDEN | (unused_fields(TrainConfig(method=method)) if method in METHODS else set())
    return {key: value for key, value in run.config.items() if key not in hidden and value not in (None, "")}


def _training_points(run: Run) -> Points:
    """Return the accuracies of the best and the last epoch."""
    points = [(row.get("clean_acc"), row.get("PGD10_acc")) for row in run.epochs]
    points = [point for point in points if None not in point]
    chosen_by = 0 if run.config.get("method") in WITHOUT_ATTACK else 1
    return {"best": max(points, key=lambda point: point[chosen_by]), "last": points[-1]} if points else {}


def _evaluated_points(run: Run, attack: str | None) -> Points:
    """Return the accuracies of the newest evaluation, under ``attack``, of each checkpoint that has not changed."""
    evaluated = {entry.kind: _accuracies(entry) for entry in run.evaluations if not entry.outdated}
    return {
        kind: (a[CLEAN], a[attack]) for kind, a in evaluated.items() if kind in KINDS and {CLEAN, attack} <= a.keys()
    }


def _accuracies(entry: Evaluation) -> dict[str, float]:
    return {attack: result["accuracy"] for attack, result in entry.results.items()}


def _draw_epochs(axes, runs: Sequence[Run], column: str) -> None:
    for number, run in enumerate(runs):
        points = [(row["epoch"], row[column]) for row in run.epochs if row.get(column) is not None]
        marker = "." if len(points) == 1 else ""
        axes.plot(*zip(*points, strict=True), color=_color(number), marker=marker, gid=TITLE + run.name)
    axes.set(xlabel="epoch", ylim=(0, 100))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def _draw_points(axes, runs: Sequence[Run], points: Sequence[Points]) -> None:
    for number, (run, kinds) in enumerate(zip(runs, points, strict=True)):
        for kind, (clean, robust) in kinds.items():
            look = {"marker": "s", "markersize": 9, "fillstyle": "none"} if kind == "last" else {"marker": "o"}
            title = f"{TITLE}{run.name}, {kind}: clean {clean:.2f}, robust {robust:.2f}"
            axes.plot(clean, robust, color=_color(number), ls="", gid=title, **look)
    axes.set(xlabel="clean accuracy (%); circle: best, square: last", xmargin=0.1, ymargin=0.1)


def _color(number: int) -> str:
    """Return a colour for the number-th run: multiples of the golden angle are distinct hues."""
    return matplotlib.colors.to_hex(colorsys.hls_to_rgb(number * 0.381966 % 1, 0.5, 0.65))


def _svg(draw: Callable, *args: object) -> Markup:
    """Return what ``draw(axes, *args)`` draws as an element of the page, in its colours; empty without a line."""
    buffer = io.StringIO()
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(6.4, 3.4), layout="constrained")
        axes = figure.subplots()
        draw(axes, *args)
        axes.grid(alpha=0.2)
        no_metadata = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(buffer, format="svg", transparent=True, metadata=no_metadata)
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :].replace(INK, "currentColor")
    svg = re.sub(f'<g id="{TITLE}([^"]*)">', r"<g><title>\1</title>", svg)  # which matplotlib has escaped
    return Markup(UNUSED.sub("", svg) if axes.lines else "")
