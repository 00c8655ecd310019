"""The HTML page of many runs: a table of all results, accuracy per epoch, robust against clean accuracy."""

import base64
import io
import re
import secrets
from collections.abc import Callable, Sequence
from dataclasses import fields
from datetime import datetime, timezone
from pathlib import Path

import matplotlib
from jinja2 import Environment, FileSystemLoader
from markupsafe import Markup
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from engine.reporting.runs import NO_EVALUATION, NONE, Run
from engine.reporting.tables import CLEAN, Row, comparison_table, make_row, shared_attack, shown_columns
from engine.unused_fields import unused_fields
from methods import METHODS
from utils.config import TrainConfig
from utils.plots import distinct_color, draw_curves

MAX_IMAGES = 2**26  # bytes of all images; a larger page is slow to open
HIDDEN = {spec.name for spec in fields(TrainConfig) if not spec.metadata["affects_result"]}  # paths of this machine
INVALID = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")  # in HTML, even escaped
INK = "#010203"  # replaced by the text color of the page
STYLE = dict.fromkeys(("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), INK)
STYLE |= {"svg.fonttype": "none", "legend.frameon": False}
TITLE = "title:"  # begins the id of a shape that shows a title under the pointer
UNUSED = re.compile(r'(?<=<g) id="[^"]*"| xmlns(:\w+)?="[^"]*"|<style.*?</style>', re.DOTALL)  # in an embedded SVG
TRAINING = ("epochs", "best clean in training", "best PGD-10 in training")  # columns of :func:`_training_cells`


def render(runs: Sequence[Run]) -> str:
    """Return the page."""
    runs = [run._replace(path=Path(run.name)) for run in runs]  # without paths of this machine
    rows = [make_row(run, entry) for run in runs for entry in run.evaluations or [NO_EVALUATION]]
    shown = shown_columns([row for row in rows if row.accuracies] or rows)
    header, table, best = comparison_table(rows, [title for title in shown if title != "run"])
    header += TRAINING
    for number, cells in enumerate(table):  # those after the last row are means
        cells += _training_cells(rows[number].run) if number < len(rows) else [NONE] * len(TRAINING)
    numbers = {run.path: number for number, run in enumerate(runs)}
    attack = shared_attack(rows)
    environment = Environment(loader=FileSystemLoader(Path(__file__).parent), autoescape=True, trim_blocks=True)
    environment.filters["base64"] = lambda content: base64.b64encode(content).decode()
    page = environment.get_template("page.html.j2").render(
        nonce=secrets.token_hex(16),
        written=datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M:%S UTC"),
        header={
            title: all(cells[k][0].isdigit() or cells[k] == NONE for cells in table) for k, title in enumerate(header)
        },
        rows=rows,
        table=table,
        best=best,
        runs=runs,
        numbers=numbers,
        curves={"PGD-10": _svg(_draw_epochs, runs, "PGD10_acc"), "clean": _svg(_draw_epochs, runs, "clean_acc")},
        points={f"under {attack}": _svg(_draw_points, rows, attack, numbers)},
        draw=lambda run: _svg(draw_curves, run.epochs),
        images=sum(len(image) for run in runs for image in run.images.values()) <= MAX_IMAGES,
        color=distinct_color,
        settings=_settings,
    )
    return INVALID.sub("\N{REPLACEMENT CHARACTER}", page)


def _training_cells(run: Run) -> list[str]:
    cells = [f"{len(run.epochs)} of {run.config.get('epochs', '?')}"]
    for column in ("clean_acc", "PGD10_acc"):
        best = max(((row[column], -row["epoch"]) for row in run.epochs if row.get(column) is not None), default=None)
        cells.append(f"{best[0]:.2f} (epoch {-best[1]})" if best else NONE)
    return cells


def _settings(run: Run) -> dict[str, object]:
    """Return the settings that made the run, without paths of this machine and those that its method does not use."""
    method = run.config.get("method")
    hidden = HIDDEN | (unused_fields(TrainConfig(method=method)) if method in METHODS else set())
    return {key: value for key, value in run.config.items() if key not in hidden and value not in (None, "")}


def _draw_epochs(axes, runs: Sequence[Run], column: str) -> None:
    for number, run in enumerate(runs):
        points = [(row["epoch"], row[column]) for row in run.epochs if row.get(column) is not None]
        marker = "." if len(points) == 1 else ""
        axes.plot(*zip(*points, strict=True), color=distinct_color(number), marker=marker, gid=TITLE + run.name)
    axes.set(xlabel="epoch", ylim=(0, 100))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def _draw_points(axes, rows: Sequence[Row], attack: str | None, numbers: dict[Path, int]) -> None:
    for row in rows:
        if {CLEAN, attack} <= row.accuracies.keys():
            clean, robust = (row.accuracies[title].percent for title in (CLEAN, attack))
            style = {"marker": "s", "markersize": 9, "fillstyle": "none"} if row.labels["checkpoint"] == "last" else {}
            title = f"{TITLE}{row.run.name}, {row.labels['checkpoint']}: clean {clean:.2f}, robust {robust:.2f}"
            color = distinct_color(numbers[row.run.path])
            axes.plot(clean, robust, color=color, ls="", gid=title, **{"marker": "o"} | style)
    axes.set(xlabel="clean accuracy (%); square: last checkpoint, circle: others", xmargin=0.1, ymargin=0.1)


def _svg(draw: Callable, *args: object) -> Markup:
    """Return what ``draw(axes, *args)`` draws as an SVG element in the page's colors; empty if it draws no line."""
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
