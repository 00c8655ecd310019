"""The table of a report's page: a row for each run, with its settings, its epochs and every evaluated figure."""

from collections.abc import Sequence
from typing import NamedTuple

from engine.reporting.runs import Figure, SurveyedRun
from engine.reporting.tables import NONE, teacher_of
from utils.markup import Markup, element, joined
from utils.svg import hue, swatch

SIDES = ("best", "last")  # these checkpoints' columns stand beside each other, any other's after them
# Conditions of an evaluation that part the figures of one attack into columns, where they differ.
PARTING = ("protocol", "eps", "judged", "steps", "restarts", "surrogate")


class Cell(NamedTuple):
    """What a cell of the table shows, and a number or text by which rows are sorted ("" stands last)."""

    content: Markup | str
    key: object = ""
    title: str | None = None


class Column(NamedTuple):
    """A column: its heading, small words below it, whether it holds numbers, and its cells, one for each run."""

    heading: str
    below: str
    numbers: bool
    cells: Sequence[Cell]


def table_of(runs: Sequence[SurveyedRun]) -> Markup:
    """The table as HTML; its script finds columns by ``data-column`` and what to sort by in ``data-key``."""
    columns = _columns(runs)
    headings = [
        element(
            *("th", column.heading, element("small", column.below) if column.below else None),
            **{"class_": "number" if column.numbers else None, "data_column": f"{column.heading} {column.below}"},
            **{"tabindex": 0, "scope": "col"},
        )
        for column in columns
    ]
    rows = [
        element("tr", *(_td(cell, column.numbers) for cell, column in zip(cells, columns, strict=True)))
        for cells in zip(*(column.cells for column in columns), strict=True)
    ]
    return element("table", element("thead", element("tr", *headings)), element("tbody", *rows), class_="sortable")


def _td(cell: Cell, number: bool) -> Markup:
    return element("td", cell.content, class_="number" if number else None, data_key=cell.key, title=cell.title)


def _columns(runs: Sequence[SurveyedRun]) -> list[Column]:
    settings = [run.settings for run in runs]
    names = {"method": "method", "network": "model", "data set": "dataset"}
    texts = {title: [_setting(one, key) for one in settings] for title, key in names.items()}
    teachers = [Cell(teacher, "" if teacher == NONE else teacher) for teacher in map(teacher_of, settings)]
    return [
        Column("run", "", False, [_name(number, run) for number, run in enumerate(runs)]),
        Column("epochs", "done of all", True, [_done(run) for run in runs]),
        *(Column(title, "", False, cells) for title, cells in list(texts.items())[:2]),
        Column("teacher", "", False, teachers),
        Column("data set", "", False, texts["data set"]),
        Column("epsilon", "in training, of 255", True, [_setting(one, "epsilon") for one in settings]),
        Column("seed", "", True, [_setting(one, "seed") for one in settings]),
        Column("best clean", "in training", True, [_highest(run, "clean_acc") for run in runs]),
        Column("best PGD-10", "in training", True, [_highest(run, "PGD10_acc") for run in runs]),
        *_figure_columns(runs),
    ]


def _setting(settings: dict, key: str) -> Cell:
    value = settings.get(key)
    return Cell(NONE) if value in (None, "") else Cell(f"{value:g}" if isinstance(value, float) else str(value), value)


def _name(number: int, run: SurveyedRun) -> Cell:
    faults = "; ".join(run.faults)
    warning = element("div", faults, class_="fault") if faults else None
    return Cell(joined([swatch(hue(number)), element("a", run.name, href=f"#run-{number}"), warning]), run.name)


def _done(run: SurveyedRun) -> Cell:
    done = int(max((row["epoch"] + 1 for row in run.epochs), default=0))
    return Cell(f"{done} of {run.settings.get('epochs', '?')}", done)


def _highest(run: SurveyedRun, figure: str) -> Cell:
    rows = [row for row in run.epochs if row.get(figure) is not None]
    if not rows:
        return Cell(NONE)
    best = max(rows, key=lambda row: row[figure])
    return Cell(f"{best[figure]:.2f}", best[figure], f"epoch {best['epoch'] + 1:.0f}")


def _figure_columns(runs: Sequence[SurveyedRun]) -> list[Column]:
    """A column for each attack, checkpoint and set of conditions; attacks stand in the order of the evaluations."""
    figures = [figure for run in runs for figure in run.figures]
    seen = {title: {figure.conditions.get(title, "-") for figure in figures} for title in PARTING}
    parting = [title for title, values in seen.items() if len(values) > 1]

    def column_of(figure: Figure) -> tuple[str, str, str]:
        words = ", ".join(f"{title} {figure.conditions.get(title, '-')}" for title in parting)
        return figure.attack, words, figure.checkpoint

    attacks = list(dict.fromkeys(figure.attack for figure in figures))
    sides = list(dict.fromkeys([*SIDES, *(figure.checkpoint for figure in figures)]))

    def order(place: tuple[str, str, str]) -> tuple:
        attack, words, side = place
        return attacks.index(attack), words, sides.index(side)

    columns = []
    for place in sorted({column_of(figure) for figure in figures}, key=order):
        attack, words, side = place
        cells = [_figures([figure for figure in run.figures if column_of(figure) == place]) for run in runs]
        columns.append(Column(attack, ", ".join(filter(None, [side, words])), True, cells))
    return columns


def _figures(figures: Sequence[Figure]) -> Cell:
    """All figures of one cell, the newest last, which sorts the row."""
    if not figures:
        return Cell(NONE)
    lines = []
    for figure in figures:
        about = ", ".join(f"{title} {value}" for title, value in figure.conditions.items())
        style = "outdated" if figure.outdated else None
        text = f"{figure.percent:.2f} (n={figure.n})"
        lines.append(element("div", text, class_=style, title=f"{figure.settings}; {about}"))
    return Cell(joined(lines), figures[-1].percent)
