"""Evaluated runs side by side: the evaluations kept under folders as the rows of one table."""

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import fields
from pathlib import Path
from statistics import mean, stdev
from typing import NamedTuple

from engine.checkpoint import BEST_CLEAN, BEST_PGD10, LAST
from engine.evaluation.records import NOT_ATTACKED, WORST, is_plain, read_evaluations, results_path, sha256
from methods import WITH_TWO_TEACHERS, WITHOUT_TEACHER
from utils.config import TrainConfig
from utils.errors import UserError
from utils.files import read_json
from utils.log import logger
from utils.plots import shortened
from utils.tables import Cell

CLEAN, NONE = "Clean", "-"
KINDS = {BEST_PGD10: "best", BEST_CLEAN: "best clean", LAST: "last"}
STRONGEST = ("AutoAttack", "C&W-inf", "PGD-20")

# Settings of a run that have a column of their own, which tells apart families alike in all others.
SETTINGS = ("precision", "desc_str")

# Title of a column -> the condition of an evaluation that it shows, and how.
CONDITIONS: dict[str, tuple[str, Callable]] = {
    "eps": ("eps", lambda eps: f"{255 * eps:.4g}/255"),
    "evaluation seed": ("seed", str),
    "image size": ("image_size", str),
    "steps": ("steps", str),
    "restarts": ("restarts", str),
    "judged": ("judge", str),
    "batch": ("bs", str),
    "surrogate": ("surrogate", lambda digest: digest[:8]),
    "images": ("images", lambda fingerprint: f"{fingerprint:08x}"),
}

# Figures are compared with those of rows that agree in these columns: the same attacks on the same images.
COMPARABLE = ("dataset", "images", "image size", "eps", "judged", "restarts", "steps", "surrogate")

ALWAYS_SHOWN = {"method", "student", "teacher", "seed", "checkpoint"}
# Columns shown only where rows that differ in them are alike in these others (None: in all that are shown), since the
# others explain the difference.
IF_NEEDED = {"images": {"dataset", "evaluation seed", "image size"}, "run": None, "sha256": None}

# Settings in which the same run may differ. The teachers' files are none, since they may hold different teachers, nor
# is the user's word, since it may stand for other code.
PLACES = {spec.name for spec in fields(TrainConfig) if not spec.metadata["affects_result"]}
PLACES -= {"teacher_path", "std_teacher_path", "desc_str"}


class Accuracy(NamedTuple):
    """Accuracy in percent over n images; accuracies with the same n and basis are over the same images and attacks."""

    percent: float
    n: int
    basis: str


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


def gather(words: Iterable[str], protocol: str) -> list[Row]:
    """Rows of all evaluations by a protocol that are kept under files and folders, each once.

    Raises UserError for a word that does not exist or has none under it, and for a damaged file.
    """
    found: dict[Path, list[Row]] = {}
    for word in words:
        path = Path(word)
        if not path.exists():
            raise UserError(f"{word}: no such file or folder; name run folders, trees of them, or checkpoints")
        places = sorted(path.rglob("eval.json")) if path.is_dir() else [results_path(path)]
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
        "teacher": teacher_of(config),
        "seed": _cell(config.get("seed")),
        "checkpoint": KINDS.get(checkpoint.name, checkpoint.stem),
        **{key: _cell(config.get(key)) for key in SETTINGS},
        **{title: _cell(conditions.get(key), words) for title, (key, words) in CONDITIONS.items()},
        "run": str(checkpoint.parent),
        "sha256": _cell(conditions["sha256"], lambda digest: digest[:8]),
    }
    shared = [
        {key: value for key, value in config.items() if key not in PLACES | {"seed"}},
        {key: value for key, value in conditions.items() if key not in ("seed", "sha256")},
    ]
    accuracies = {
        title: Accuracy(float(one["accuracy"]), int(one["n"]), _basis(figures, title)) for title, one in figures.items()
    }
    return Row(labels, accuracies, json.dumps(shared, sort_keys=True))


def _config_beside(checkpoint: Path) -> dict:
    """The settings of the run that a checkpoint comes from; {} where they are not kept."""
    path = checkpoint.with_name("config.json")
    if not path.exists():
        return {}
    try:
        config = read_json(path)
        for value in config.values():
            if isinstance(value, dict) or (isinstance(value, list) and not all(map(is_plain, value))):
                raise ValueError("no settings of a run")
        return config if "method" in config else {}
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: damaged; without it the checkpoint is shown by its path: delete it") from error


def teacher_of(config: dict) -> str:
    """The names of the teachers that a run's method learns from; a dash for none."""
    method = config.get("method")
    keys = [] if method in WITHOUT_TEACHER else ["teacher_model"]
    keys += ["std_teacher_model"] if method in WITH_TWO_TEACHERS else []
    return " + ".join(str(config[key]) for key in keys if key in config) or NONE


def _cell(value, words: Callable = str) -> str:
    return NONE if value in (None, "") else words(value)


def _basis(figures: dict, title: str) -> str:
    """Which of an evaluation's images a figure is over and, for the worst case, over which attacks.

    AutoAttack may meet a part of the images, which another seed chooses differently.
    """
    bounded = [figure for figure in figures.values() if figure.get("bounded")]
    over = bounded if title == WORST else [figures[title]]
    met = zip(*(figure.get("correct", "") for figure in over), strict=False)
    left_out = [number for number, marks in enumerate(met) if NOT_ATTACKED in marks]
    return json.dumps([figures[title].get("settings") if title == WORST else None, left_out])


def shown_columns(rows: Sequence[Row]) -> list[str]:
    """Titles of the columns before the figures: those that always stand, and those in which rows differ.

    Fingerprint of the images, folder and content of a checkpoint are shown only where nothing else tells rows apart.
    """
    differing = {title for title in rows[0].labels if len({row.labels[title] for row in rows}) > 1}
    shown = [title for title in rows[0].labels if title in ALWAYS_SHOWN | (differing - IF_NEEDED.keys())]
    for title, others in IF_NEEDED.items():
        known = [name for name in shown if others is None or name in others]
        if _distinct(rows, [*known, title]) > _distinct(rows, known):
            shown.append(title)
    return shown


def _distinct(rows: Iterable[Row], shown: Sequence[str]) -> int:
    """How many rows can be told apart by these columns and the numbers of images."""
    sizes = [[(title, accuracy.n) for title, accuracy in row.accuracies.items()] for row in rows]
    return len({(*(row.labels[title] for title in shown), *size) for row, size in zip(rows, sizes, strict=True)})


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
    bold = {(number, len(shown) + column) for column, title in enumerate(titles) for number in best(rows, title)}
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
    """One row's figure, or mean and deviation of several where all have one over the same images and attacks."""
    if None in accuracies or len({(accuracy.n, accuracy.basis) for accuracy in accuracies}) > 1:
        return NONE
    percents = [accuracy.percent for accuracy in accuracies]
    deviation = f" ± {stdev(percents):.2f}" if len(percents) > 1 else ""
    return f"{mean(percents):.2f}{deviation}" + ("" if agreed else f" (n={accuracies[0].n})")


def best(rows: Sequence[Row], title: str) -> list[int]:
    """Numbers of the rows with the best figure of an attack among the comparable; none where there is no rival."""
    contests: dict[tuple, dict[int, float]] = {}
    for number, row in enumerate(rows):
        if title in row.accuracies:
            percent, n, basis = row.accuracies[title]
            rivals = contests.setdefault((n, basis, *(row.labels[name] for name in COMPARABLE)), {})
            rivals[number] = round(percent, 2)
    contested = [rivals for rivals in contests.values() if len(rivals) > 1]
    return [number for rivals in contested for number in rivals if rivals[number] == max(rivals.values())]


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


def point_names(rows: Sequence[Row], shown: Iterable[str]) -> list[str]:
    """What tells each row from those of the same method and kind of checkpoint, as one text; "" for nothing.

    A value without letters says nothing without the title of its column.
    """
    names = []
    for row in rows:
        alike = [other.labels for other in rows if _look(other) == _look(row)]
        told = [title for title in shown if len({labels[title] for labels in alike}) > 1]
        cells = [(title, row.labels[title]) for title in told]
        words = (shortened(cell) if any(map(str.isalpha, cell)) else f"{title} {cell}" for title, cell in cells)
        names.append(", ".join(words))
    return names


def _look(row: Row) -> tuple[str, str]:
    return row.labels["method"], row.labels["checkpoint"]
