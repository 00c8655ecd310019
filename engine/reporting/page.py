"""The HTML page of many runs: a table of all results, and the curves, figures and settings of each run."""

import base64
import io
import re
import secrets
from collections.abc import Sequence
from dataclasses import fields
from datetime import datetime, timezone
from pathlib import Path

import matplotlib
from jinja2 import Environment, FileSystemLoader
from markupsafe import Markup
from matplotlib.figure import Figure

from engine.reporting.runs import NO_EVALUATION, NONE, Run
from engine.reporting.tables import comparison_table, make_row, shown_columns
from engine.unused_fields import unused_fields
from methods import METHODS
from utils.config import TrainConfig
from utils.plots import draw_curves

HIDDEN = {spec.name for spec in fields(TrainConfig) if not spec.metadata["affects_result"]}  # paths of this machine
INVALID = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")  # in HTML, even escaped
INK = "#010203"  # replaced by the text color of the page
STYLE = dict.fromkeys(("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), INK)
STYLE |= {"svg.fonttype": "none", "legend.frameon": False}
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
        draw=_curves,
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


def _curves(run: Run) -> Markup:
    """Return the accuracies per epoch as an element of the page, in its colours; empty without an epoch."""
    buffer = io.StringIO()
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(6.4, 3.4), layout="constrained")
        draw_curves(axes := figure.subplots(), run.epochs)
        no_metadata = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(buffer, format="svg", transparent=True, metadata=no_metadata)
    svg = buffer.getvalue()
    return Markup(UNUSED.sub("", svg[svg.index("<svg") :].replace(INK, "currentColor")) if axes.lines else "")
