"""One table and one picture of evaluated runs: python scripts/compare.py RUNS... [--out DIR] [--protocol paper]

RUNS are run folders, trees of them, or checkpoints. Every evaluation kept under them is a row; runs that differ in
nothing but the seed are summed up below by mean and sample standard deviation. The table is printed and written to
DIR as comparison.csv, .md and .tex; comparison.png shows robust against clean accuracy.
"""

import argparse
import json
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import fields
from itertools import product
from pathlib import Path
from statistics import mean, stdev
from typing import NamedTuple

import matplotlib
import matplotlib.pyplot as plt
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.transforms import Bbox

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # this file is run from its folder

from attacks.suite import PROTOCOLS
from engine.records import WORST, place_of, read_evaluations, sha256
from engine.run_folder import BEST_CLEAN, BEST_PGD10, LAST
from methods import WITH_TWO_TEACHERS, WITHOUT_TEACHER
from utils.command import run_command
from utils.config import TrainConfig
from utils.errors import UserError
from utils.files import write_atomically
from utils.log import logger
from utils.plots import save_figure
from utils.report import Cell, latex_table, markdown_table, text_table, write_csv

CLEAN, NONE = "Clean", "-"
KINDS = {BEST_PGD10: "best", BEST_CLEAN: "best clean", LAST: "last"}
MARKERS = {"best": "o", "best clean": "^", "last": "s"}
ALWAYS_SHOWN = {"method", "student", "teacher", "seed", "checkpoint"}
IF_NEEDED = {"run", "sha256"}
FARTHEST = 60  # pixels from a point to its name; farther, it is hard to see which is whose
STRONGEST = ("AutoAttack", "C&W-inf", "PGD-20")

# Title of a column -> the condition of an evaluation that it shows, and how.
CONDITIONS: dict[str, tuple[str, Callable]] = {
    "eps": ("eps", lambda eps: f"{255 * eps:.4g}/255"),
    "evaluation seed": ("seed", str),
    "image size": ("image_size", str),
    "restarts": ("restarts", str),
    "judged": ("judge", str),
    "batch": ("bs", str),
    "surrogate": ("surrogate", lambda digest: digest[:8]),
}
# Settings in which the same run may differ. The teachers' files are none, since they may hold different teachers, nor
# is the user's word, since it may stand for other code.
PLACES = {spec.name for spec in fields(TrainConfig) if spec.metadata["place"]}
PLACES -= {"teacher_path", "std_teacher_path", "desc_str"}


class Accuracy(NamedTuple):
    """Accuracy in percent over n images."""

    percent: float
    n: int


class Row(NamedTuple):
    """One evaluation: cells by title of column, accuracies by attack, and all that runs of other seeds share."""

    labels: dict[str, str]
    accuracies: dict[str, Accuracy]
    family: str


class Table(NamedTuple):
    """The text of every cell, and which cells hold the best figures."""

    header: list[str]
    cells: list[list[str]]
    bold: set[Cell]


def compare(arguments: Sequence[str]) -> None:
    """Print the table and write the files. Raises UserError before anything is written."""
    parser = _Parser(description=__doc__, allow_abbrev=False, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("runs", metavar="RUNS", nargs="+", help="run folders, trees of them, or checkpoints")
    parser.add_argument("--out", metavar="DIR", default="comparison", help="folder of the files [default: comparison]")
    parser.add_argument("--protocol", choices=PROTOCOLS, default="paper", help="whose evaluations [default: paper]")
    asked = parser.parse_args(arguments)
    rows = gather(asked.runs, asked.protocol)
    shown = shown_columns(rows)
    table = tabulate(rows, shown)
    write(Path(asked.out), table, f"accuracy in %, protocol {asked.protocol}", picture(rows, shown))
    logger.info("\n%s\n\nfiles: %s", text_table(table.header, table.cells), Path(asked.out) / "comparison.*")


class _Parser(argparse.ArgumentParser):
    def error(self, message):
        raise UserError(f"{message.removeprefix('argument ')} (--help lists the flags)")


def gather(words: Iterable[str], protocol: str) -> list[Row]:
    """Rows of all evaluations by a protocol that are kept under files and folders, each once.

    Raises UserError for a word that does not exist or has none under it, and for a damaged file.
    """
    found: dict[Path, list[Row]] = {}
    for word in words:
        path = Path(word)
        if not path.exists():
            raise UserError(f"{word}: no such file or folder; name run folders, trees of them, or checkpoints")
        places = sorted(path.rglob("eval.json")) if path.is_dir() else [place_of(path)]
        places = {place.resolve(): place for place in places if place.exists()}
        found |= {real: read_rows(place, protocol) for real, place in places.items() if real not in found}
        if not any(found[real] for real in places):
            flag = "" if protocol == "paper" else f" --protocol {protocol}"
            raise UserError(
                f"{word}: nothing there was evaluated by protocol {protocol}; "
                f"this evaluates a checkpoint: python main_eval.py --model_path PATH{flag}"
            )
    return [row for rows in found.values() for row in rows]


def read_rows(place: Path, protocol: str) -> list[Row]:
    """Rows of the evaluations in one file; those of a checkpoint that was overwritten since are left out.

    Raises UserError where the file, or the config.json beside the checkpoint, is damaged.
    """
    evaluations, folder = read_evaluations(place), place.parent.parent
    rows, outdated = {}, set()
    try:
        kept = [entry for entry in evaluations if entry["conditions"]["protocol"] == protocol]
        paths = {folder / entry["conditions"]["checkpoint"] for entry in kept}
        digests = {path: sha256(path) for path in paths if path.is_file()}
        for entry in kept:
            conditions, path = entry["conditions"], folder / entry["conditions"]["checkpoint"]
            if digests.get(path, conditions["sha256"]) == conditions["sha256"]:
                # The newest of equal conditions, which stands last, remains.
                rows[json.dumps(conditions, sort_keys=True)] = _row(path, conditions, entry["figures"])
            else:
                outdated.add(path)
    except OSError as error:
        raise UserError(f"{error.filename}: cannot be read ({error.strerror})") from error
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{place}: damaged; delete it and evaluate the checkpoint again") from error
    for path in outdated:
        logger.warning("%s has changed since it was evaluated: figures of the earlier one are left out", path)
    return list(rows.values())


def _row(checkpoint: Path, conditions: dict, figures: dict) -> Row:
    config = _config_beside(checkpoint)
    labels = {
        "dataset": conditions["dataset"],
        "method": config.get("method", str(checkpoint)),
        "student": conditions["model"],
        "teacher": _teacher(config),
        "seed": str(config.get("seed", NONE)),
        "checkpoint": KINDS.get(checkpoint.name, checkpoint.stem),
        **{title: _cell(conditions.get(key), words) for title, (key, words) in CONDITIONS.items()},
        "run": str(checkpoint.parent),
        "sha256": _cell(conditions["sha256"], lambda digest: digest[:8]),
    }
    shared = [
        {key: value for key, value in config.items() if key not in PLACES | {"seed"}},
        {key: value for key, value in conditions.items() if key not in ("seed", "sha256")},
    ]
    accuracies = {title: Accuracy(float(one["accuracy"]), int(one["n"])) for title, one in figures.items()}
    return Row(labels, accuracies, json.dumps(shared, sort_keys=True))


def _config_beside(checkpoint: Path) -> dict:
    """The settings of the run that a checkpoint comes from; {} where they are not kept."""
    path = checkpoint.with_name("config.json")
    if not path.exists():
        return {}
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        return config if "method" in config else {}
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"{path}: damaged; without it the checkpoint is shown by its path: delete it") from error


def _teacher(config: dict) -> str:
    method = config.get("method")
    keys = [] if method in WITHOUT_TEACHER else ["teacher_model"]
    keys += ["std_teacher_model"] if method in WITH_TWO_TEACHERS else []
    return " + ".join(str(config[key]) for key in keys if key in config) or NONE


def _cell(value, words: Callable) -> str:
    return NONE if value is None else words(value)


def shown_columns(rows: Sequence[Row]) -> list[str]:
    """Titles of the columns before the figures: those that always stand, and those in which rows differ.

    Folder and content of a checkpoint are shown only where nothing else tells two rows apart.
    """
    differing = {title for title in rows[0].labels if len({row.labels[title] for row in rows}) > 1}
    shown = [title for title in rows[0].labels if title in ALWAYS_SHOWN | (differing - IF_NEEDED)]
    for title in [title for title in rows[0].labels if title in IF_NEEDED & differing]:
        names = [[*(row.labels[name] for name in shown), *_sizes(row)] for row in rows]
        if any(names.count(name) > 1 for name in names):
            shown.append(title)
    return shown


def _sizes(row: Row) -> list[tuple[str, int]]:
    return [(title, accuracy.n) for title, accuracy in row.accuracies.items()]


def tabulate(rows: Sequence[Row], shown: Sequence[str]) -> Table:
    """A line for each evaluation and, below, one for each family of runs that differ in their seed alone."""
    titles = list(dict.fromkeys(title for row in rows for title in row.accuracies))
    counts = {title: {row.accuracies[title].n for row in rows if title in row.accuracies} for title in titles}
    agreed = {title for title in titles if len(counts[title]) == 1}
    header = [*shown, *(f"{title} (n={min(counts[title])})" if title in agreed else title for title in titles)]
    cells = []
    for members in [*([row] for row in rows), *families(rows)]:
        figures = [_figure([row.accuracies.get(title) for row in members], title in agreed) for title in titles]
        cells.append([*(_label(members, title) for title in shown), *figures])
    bold = {(number, len(shown) + column) for column, title in enumerate(titles) for number in _best(rows, title)}
    return Table(header, cells, bold)


def families(rows: Iterable[Row]) -> list[list[Row]]:
    """Groups of two or more rows that differ in the seed of their runs, and perhaps in that of their evaluations.

    Where a seed stands in a group more than once, the group is parted by the seed of the evaluations.
    """
    parts = []
    for group in _grouped(rows, lambda row: row.family):
        parts += [group] if _seeds_differ(group) else _grouped(group, lambda row: row.labels["evaluation seed"])
    return [part for part in parts if len(part) > 1 and _seeds_differ(part)]


def _grouped(rows: Iterable[Row], key: Callable[[Row], str]) -> list[list[Row]]:
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(key(row), []).append(row)
    return list(groups.values())


def _seeds_differ(group: Sequence[Row]) -> bool:
    seeds = {row.labels["seed"] for row in group}
    return NONE not in seeds and len(seeds) == len(group)


def _label(members: Sequence[Row], title: str) -> str:
    if title == "seed" and len(members) > 1:
        return f"mean ± sd ({len(members)} seeds)"
    values = {row.labels[title] for row in members}
    return values.pop() if len(values) == 1 else NONE


def _figure(accuracies: Sequence[Accuracy | None], agreed: bool) -> str:
    """One row's figure, or mean and deviation of several where all have one over equally many images."""
    if None in accuracies or len({accuracy.n for accuracy in accuracies}) > 1:
        return NONE
    percents = [accuracy.percent for accuracy in accuracies]
    deviation = f" ± {stdev(percents):.2f}" if len(percents) > 1 else ""
    return f"{mean(percents):.2f}{deviation}" + ("" if agreed else f" (n={accuracies[0].n})")


def _best(rows: Sequence[Row], title: str) -> list[int]:
    """Numbers of the rows with the best figure of an attack, among those of the same data set and epsilon.

    None where there is nothing to compare with.
    """
    rivals: dict[tuple, dict[int, float]] = {}
    for number, row in enumerate(rows):
        if title in row.accuracies:
            group = rivals.setdefault((row.labels["dataset"], row.labels["eps"]), {})
            group[number] = round(row.accuracies[title].percent, 2)
    contests = [group for group in rivals.values() if len(group) > 1]
    return [number for group in contests for number in group if group[number] == max(group.values())]


def write(folder: Path, table: Table, title: str, drawn: Figure | None) -> None:
    """Write comparison.csv, .md, .tex and .png. Raises UserError where the folder does not take them."""
    header, cells, bold = table
    tex = f"% {title}; needs \\usepackage{{booktabs}}\n{latex_table(header, cells, bold)}\n"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_csv(folder / "comparison.csv", header, cells)
        _write_text(folder / "comparison.md", f"{markdown_table(header, cells, bold)}\n\n{title}\n")
        _write_text(folder / "comparison.tex", tex)
        if drawn:
            save_figure(drawn, folder / "comparison.png")
        else:
            (folder / "comparison.png").unlink(missing_ok=True)  # one of an earlier call would seem to belong here
    except OSError as error:
        raise UserError(f"--out {folder}: cannot be written to ({error.strerror}); name another folder") from error


def _write_text(path: Path, text: str) -> None:
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def picture(rows: Sequence[Row], shown: Sequence[str]) -> Figure | None:
    """Robust against clean accuracy of the rows that have both; None, and a warning, where there are none."""
    attack = shared_attack(rows)
    drawn = [row for row in rows if {CLEAN, attack} <= row.accuracies.keys()]
    if len(drawn) < len(rows):
        lacking = f"{CLEAN} and {attack}" if attack else f"{CLEAN} and an attack"
        logger.warning("comparison.png shows %d of %d rows: the others lack %s", len(drawn), len(rows), lacking)
    return scatter(drawn, attack, point_names(drawn, shown)) if drawn else None


def point_names(rows: Sequence[Row], shown: Iterable[str]) -> list[str]:
    """What tells each row from those of the same colour and marker, its method and kind of checkpoint; "" for nothing.

    A value without letters says nothing without the title of its column.
    """
    names = []
    for row in rows:
        alike = [other.labels for other in rows if _look(other) == _look(row)]
        told = [title for title in shown if len({labels[title] for labels in alike}) > 1]
        cells = [(title, row.labels[title]) for title in told]
        words = (_short(cell) if any(map(str.isalpha, cell)) else f"{title} {cell}" for title, cell in cells)
        names.append(", ".join(words))
    return names


def _look(row: Row) -> tuple[str, str]:
    return row.labels["method"], row.labels["checkpoint"]


def shared_attack(rows: Iterable[Row]) -> str | None:
    """The attack that most rows have beside their clean accuracy; of several the strongest, by name, then by mean."""
    percents: dict[str, list[float]] = {}
    for row in rows:
        for title in row.accuracies.keys() - {CLEAN, WORST} if CLEAN in row.accuracies else ():
            percents.setdefault(title, []).append(row.accuracies[title].percent)

    def rank(title: str) -> tuple:
        known = [place for place, name in enumerate(STRONGEST) if title.startswith(name)]
        return -len(percents[title]), *(known or [len(STRONGEST)]), mean(percents[title]), title

    return min(percents, key=rank, default=None)


def scatter(rows: Sequence[Row], attack: str, names: Sequence[str]) -> Figure:
    """Draw the accuracies of ``rows``: a colour for each method, a marker for each kind of checkpoint.

    ``names`` (one a row, "" for none) are written beside the points.
    """
    side = 6 + sum(map(bool, names)) / 24  # inches; more names need more room
    figure, axes = plt.subplots(figsize=(side + 2, side), layout="constrained")
    methods = list(dict.fromkeys(row.labels["method"] for row in rows))
    shades = matplotlib.colormaps["tab10" if len(methods) <= 10 else "turbo"].resampled(max(10, len(methods)))
    colors = {method: shades(number) for number, method in enumerate(methods)}
    marks = {row.labels["checkpoint"]: MARKERS.get(row.labels["checkpoint"], "D") for row in rows}
    points = [(row.accuracies[CLEAN].percent, row.accuracies[attack].percent) for row in rows]
    for row, point in zip(rows, points, strict=True):
        look = {"color": colors[row.labels["method"]], "marker": marks[row.labels["checkpoint"]], "markersize": 8}
        axes.plot(*point, markeredgecolor="white", **look)
    axes.set_xlabel(f"clean accuracy (%), {_images(rows, CLEAN)}")
    axes.set_ylabel(f"robust accuracy under {attack} (%), {_images(rows, attack)}")
    axes.margins(0.15)
    axes.grid(alpha=0.3)
    key = [Patch(color=color, label=_short(method)) for method, color in colors.items()]
    key += [Line2D([], [], color="0.4", marker=mark, linestyle="", label=_short(kind)) for kind, mark in marks.items()]
    figure.legend(handles=key, loc="outside right upper", fontsize="small")
    name_points(axes, points, names)
    return figure


def name_points(axes, points: Sequence[tuple[float, float]], names: Sequence[str]) -> None:
    """Write a name near each point, where it covers neither a point nor another name; warn of those without room."""
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
        logger.warning("comparison.png: %d points are too close to others to be named", unnamed)


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


def _images(rows: Iterable[Row], title: str) -> str:
    counts = sorted({row.accuracies[title].n for row in rows})
    return f"n={counts[0]}" if len(counts) == 1 else f"n={counts[0]} to {counts[-1]}"


def _short(text: str, longest: int = 40) -> str:
    return text if len(text) <= longest else f"…{text[1 - longest :]}"


if __name__ == "__main__":
    run_command(lambda: compare(sys.argv[1:]))
