"""One HTML page of many runs: python -m utils.tables RUNS... [--out FILE] [--watch SECONDS]

RUNS are run folders, or trees of them. The page holds a table of all runs with every figure that was evaluated,
accuracy per epoch, clean against robust accuracy, and pictures. It is one file that asks nothing of a network; --watch
writes it again and again while runs go on, and the page then reloads itself.
"""

import base64
import hashlib
import math
import time
from collections.abc import Iterable, Sequence
from dataclasses import fields
from datetime import datetime, timezone
from pathlib import Path

from engine.reporting.page_table import SIDES, table_of
from engine.reporting.runs import Figure, SurveyedRun, survey
from engine.reporting.tables import CLEAN, Accuracy, Row, shared_attack
from engine.unused_fields import unused_fields
from methods import METHODS
from utils.config import TrainConfig
from utils.errors import UserError
from utils.files import write_text
from utils.flags import parser_for
from utils.log import logger
from utils.markup import Markup, element
from utils.svg import Dot, Line, hue, line_chart, scatter_chart, swatch

STYLE, SCRIPT = (Path(__file__).with_suffix(suffix).read_text(encoding="utf-8") for suffix in (".css", ".js"))
MOST_PICTURES = 2**26  # bytes of all pictures; a larger page is slow to open
OPEN_BELOW = 4  # so few runs are shown opened
LEAST_SECONDS = 1  # between two pages
PLACES = {
    spec.name for spec in fields(TrainConfig) if not spec.metadata["affects_result"]
}  # nothing of this machine is shown


def report(arguments: Sequence[str]) -> None:
    """Write the page once, or until interrupted; raises UserError for what the user can mend."""
    parser = parser_for(__doc__)
    parser.add_argument("runs", metavar="RUNS", nargs="+", help="run folders, or trees of them")
    parser.add_argument("--out", metavar="FILE", help="the page [default: report.html in the first of RUNS]")
    parser.add_argument("--watch", metavar="SECONDS", type=float, help="write the page every SECONDS until interrupted")
    asked = parser.parse_args(arguments)
    if asked.watch is not None and not LEAST_SECONDS <= asked.watch < math.inf:
        raise UserError(f"--watch {asked.watch:g}: must be a number of at least {LEAST_SECONDS}")
    runs, out = survey(asked.runs), Path(asked.out or Path(asked.runs[0]) / "report.html")
    if not runs:
        raise UserError(f"{' '.join(asked.runs)}: no run there; name run folders, or trees of them (tuned_models)")
    write(out, page(runs, asked.watch))
    damaged = sum(bool(run.faults) for run in runs)
    logger.info("%s: %s%s", out, _runs(runs), f", {damaged} of them incomplete or damaged" * bool(damaged))
    if asked.watch:
        _watch(asked.runs, out, asked.watch)


def _watch(words: Sequence[str], out: Path, seconds: float) -> None:
    try:
        while True:
            time.sleep(seconds)
            write(out, page(survey(words), seconds))
    except KeyboardInterrupt:
        write(out, page(survey(words)))  # one that waits for no other
        raise


def write(out: Path, text: str) -> None:
    """Write the page whole. Raises UserError where the disk does not take it."""
    try:
        write_text(out, text)
    except OSError as error:
        raise UserError(f"--out {out}: cannot be written to ({error.strerror}); name another file") from error


def page(runs: Sequence[SurveyedRun], reload_seconds: float | None = None) -> str:
    """The whole page as HTML; with ``reload_seconds`` a browser loads it again that often."""
    written = datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M:%S UTC")
    again = f", loads itself again every {reload_seconds:g} s" if reload_seconds else ""
    body = [
        element("h1", "Runs"),
        element("div", f"{_runs(runs)}, written {written}{again}", class_="faint"),
        element("h2", "Table"),
        element("div", table_of(runs), class_="wide"),
        element("p", *_legend()),
        element("h2", "Accuracy per epoch"),
        element("div", *_curves(runs), class_="charts"),
        element("h2", "Clean against robust accuracy"),
        element("div", *_scatters(runs), class_="charts"),
        element("h2", "Each run"),
        *_details(runs),
        element("script", Markup(SCRIPT)),
    ]
    html = element("html", _head(reload_seconds), element("body", *body), lang="en")
    return f"<!DOCTYPE html>\n{html}\n"


def _head(reload_seconds: float | None) -> Markup:
    # No page of ours loads anything or runs any script but its own, even if a name in it were markup.
    digest = base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode()
    policy = f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    return element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", http_equiv="Content-Security-Policy", content=policy),
        element("meta", name="viewport", content="width=device-width"),
        element("meta", http_equiv="refresh", content=f"{reload_seconds:g}") if reload_seconds else None,
        element("title", "Runs"),
        element("style", Markup(STYLE)),
    )


def _runs(runs: Sequence[SurveyedRun]) -> str:
    return f"{len(runs)} run{'s' * (len(runs) != 1)}"


def _legend() -> list[Markup | str]:
    struck = element("span", "struck out", class_="outdated")
    about = "Accuracies in %. Best is the epoch of the highest PGD-10 accuracy, last the last one. A figure "
    return [about, struck, " is of a checkpoint that has changed since it was evaluated."]


def _curves(runs: Sequence[SurveyedRun]) -> list[Markup]:
    charts = []
    for figure, title in (("PGD10_acc", "PGD-10"), ("clean_acc", "clean")):
        lines = [_line(run, figure, run.name, hue(number)) for number, run in enumerate(runs)]
        charts.append(line_chart(lines, xlabel="epoch", ylabel=f"{title} accuracy (%)", top=100))
    return _shown(charts)


def _line(run: SurveyedRun, figure: str, name: str, color: str, dashed: bool = False) -> Line:
    rows = [row for row in run.epochs if row.get(figure) is not None]
    return Line(name, [(row["epoch"] + 1, row[figure]) for row in rows], color, dashed)


def _scatters(runs: Sequence[SurveyedRun]) -> list[Markup]:
    """PGD-10 of training, which every run has, and the attack that most runs were evaluated under."""
    trained, evaluated = [], []
    attack = shared_attack(
        Row({}, {one.attack: Accuracy(one.percent, one.n, "") for one in run.figures}, "") for run in runs
    )
    for number, run in enumerate(runs):
        rows = [row for row in run.epochs if None not in (row.get("clean_acc"), row.get("PGD10_acc"))]
        if rows:
            ends = {"best": max(rows, key=lambda row: row["PGD10_acc"]), "last": rows[-1]}
            trained += [_dot(run, number, side, row["clean_acc"], row["PGD10_acc"]) for side, row in ends.items()]
        for side in SIDES:
            pair = _newest_pair([figure for figure in run.figures if figure.checkpoint == side], attack)
            if pair:
                evaluated.append(_dot(run, number, side, *pair))
    xlabel = "clean accuracy (%); circle: best, square: last"
    return _shown(
        [
            scatter_chart(trained, xlabel=xlabel, ylabel="PGD-10 accuracy in training (%)"),
            scatter_chart(evaluated, xlabel=xlabel, ylabel=f"accuracy under {attack}, evaluated (%)"),
        ]
    )


def _newest_pair(figures: Sequence[Figure], attack: str | None) -> tuple[float, float] | None:
    """Clean and robust accuracy of the newest evaluation by ``attack`` of a checkpoint as it is now."""
    current = [figure for figure in figures if not figure.outdated]
    for robust in reversed([figure for figure in current if figure.attack == attack]):
        for clean in current:
            if clean.attack == CLEAN and clean.conditions == robust.conditions:
                return clean.percent, robust.percent
    return None


def _dot(run: SurveyedRun, number: int, side: str, clean: float, robust: float) -> Dot:
    name = f"{run.name}, {side}: clean {clean:.2f}, robust {robust:.2f}"
    return Dot(name, clean, robust, hue(number), square=side == "last")


def _shown(charts: Iterable[Markup]) -> list[Markup]:
    return [element("figure", chart) for chart in charts if chart] or [element("p", "nothing yet", class_="faint")]


def _details(runs: Sequence[SurveyedRun]) -> list[Markup]:
    """One part of the page for each run; pictures until the page would be too large."""
    parts, left = [], MOST_PICTURES
    for number, run in enumerate(runs):
        shown = {}
        for place, content in run.pictures.items():
            left -= len(content)
            if left >= 0:
                shown[place] = content
        parts.append(_detail(number, run, shown, opened=len(runs) <= OPEN_BELOW))
    return parts


def _detail(number: int, run: SurveyedRun, pictures: dict[str, bytes], *, opened: bool) -> Markup:
    lines = [
        _line(run, "PGD10_acc", "PGD-10", hue(number)),
        _line(run, "clean_acc", "clean", hue(number), dashed=True),
    ]
    curves = line_chart(lines, xlabel="epoch", ylabel="accuracy (%): PGD-10 solid, clean dashed", top=100)
    left_out = [place for place in run.pictures if place not in pictures]
    pairs = [element("div", element("dt", key), element("dd", value)) for key, value in _settings(run).items()]
    return element(
        "details",
        element("summary", swatch(hue(number)), run.name),
        *(element("p", fault, class_="fault") for fault in run.faults),
        element("div", *_shown([curves]), class_="charts"),
        element("div", *(_image(place, content) for place, content in pictures.items()), class_="charts"),
        element("p", f"not in this page, which has enough pictures: {', '.join(left_out)}") if left_out else None,
        element("h3", "settings") if pairs else None,
        element("dl", *pairs) if pairs else None,
        id=f"run-{number}",
        data_run=run.name,
        open="" if opened else None,
    )


def _settings(run: SurveyedRun) -> dict:
    """What made the run: nothing of this machine, and nothing that its method makes no use of."""
    method = run.settings.get("method")
    hidden = PLACES | (unused_fields(TrainConfig(method=method)) if method in METHODS else set())
    return {key: value for key, value in run.settings.items() if key not in hidden and value not in (None, "")}


def _image(place: str, content: bytes) -> Markup:
    data = f"data:image/png;base64,{base64.b64encode(content).decode()}"
    return element("figure", element("figcaption", place), element("img", src=data, alt=place))
