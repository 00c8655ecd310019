"""The comparison table: one row per evaluation, then the means over runs that differ only in the seed."""

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from statistics import mean, stdev
from typing import NamedTuple

from engine.evaluation.records import NOT_ATTACKED, WORST
from engine.reporting.runs import CONFIG, COSTS, NO_EVALUATION, NONE, Evaluation, Run, read_run, read_runs
from methods import count_teachers
from utils.config import TrainConfig
from utils.errors import UserError
from utils.log import logger

CLEAN = "Clean"
ALWAYS_SHOWN = {"method", "student", "teacher", "seed", "checkpoint"}
# Accuracies are compared between rows that agree in these columns: the same attacks on the same images.
COMPARABLE = ("dataset", "images", "image size", "eps", "judged", "restarts", "steps", "surrogate")
# Settings in which repetitions of a run may differ; not the files of student and teachers, nor desc_str.
REPEATED = {"seed", *(spec.name for spec in fields(TrainConfig) if not spec.metadata["affects_result"])}
REPEATED -= {"model_path", "teacher_path", "std_teacher_path", "desc_str"}


class Accuracy(NamedTuple):
    """Accuracy in percent over n images; accuracies of equal ``basis`` are over the same images and attacks."""

    percent: float
    n: int
    basis: tuple


class Row(NamedTuple):
    """One evaluation of a run: labels by column title, accuracies by attack, and what runs with other seeds share."""

    run: Run
    labels: dict[str, str]
    accuracies: dict[str, Accuracy]
    family: str


def read_rows(paths: Iterable[str], protocol: str) -> list[Row]:
    """Return a row per evaluation by ``protocol`` in folders of runs, or of checkpoints.

    Damaged files cause warnings; a run with a damaged config.json is skipped. Raises UserError for a path that does not
    exist or has no evaluations.
    """
    rows: dict[tuple[Path, str], Row] = {}
    for path in map(Path, paths):
        if not path.exists():
            raise UserError(f"{path}: no such file or folder; give folders of runs, or checkpoints")
        runs, selected, problems = read_runs([path]) if path.is_dir() else [read_run(path.parent)], {}, []
        for run in runs:
            problems += [f"{run.path / file}: {message}" for file, message in run.problems.items()]
            for entry in run.evaluations if CONFIG not in run.problems else ():
                if entry.labels["protocol"] == protocol and (path.is_dir() or entry.checkpoint == path.name):
                    selected[run.path.resolve(), json.dumps(entry.conditions, sort_keys=True)] = make_row(run, entry)
        for problem in problems:
            logger.warning("WARNING: %s", problem)
        if not selected:
            command = "python main_eval.py --model_path PATH" + f" --protocol {protocol}" * (protocol != "paper")
            reason = "; ".join([f"no evaluation by protocol {protocol}", *problems])
            raise UserError(f"{path}: {reason}; evaluate a checkpoint with: {command}")
        rows |= selected
    return list(rows.values())


def make_row(run: Run, entry: Evaluation = NO_EVALUATION) -> Row:
    """Return the row of an evaluation, or of a run without one."""
    config = run.config
    columns = {
        "dataset": config.get("dataset"),
        "method": config.get("method", run.path / entry.checkpoint),
        "student": config.get("model"),
        "teacher": teacher_of(config),
        "seed": config.get("seed"),
        "checkpoint": entry.kind,
        "precision": config.get("precision"),
        "desc_str": config.get("desc_str"),
    }
    columns |= entry.labels | {"run": run.path}  # dataset and student are those of the evaluation
    labels = {title: NONE if value in (None, "") else str(value) for title, value in columns.items()}
    settings = {key: value for key, value in config.items() if key not in REPEATED}
    others = ("seed", "sha256", "bs")  # no result depends on bs
    conditions = {key: value for key, value in entry.conditions.items() if key not in others}
    accuracies = {
        title: Accuracy(result["accuracy"], result["n"], _basis(entry.results, title))
        for title, result in entry.results.items()
    }
    return Row(run, labels, accuracies, json.dumps([settings, conditions], sort_keys=True))


def teacher_of(config: Mapping) -> str:
    """Return the names of the teachers that a run's method uses; a dash for none."""
    keys = ("teacher_model", "std_teacher_model")[: count_teachers(config.get("method"))]
    return " + ".join(str(config[key]) for key in keys if key in config) or NONE


def _basis(results: Mapping[str, Mapping], title: str) -> tuple:
    """Return the images that an accuracy covers, since attacks may run on a subset, and the worst case's attacks."""
    attacks = [result for result in results.values() if result.get("bounded")] if title == WORST else [results[title]]
    correct = zip(*(str(result.get("correct", "")) for result in attacks), strict=False)
    left_out = tuple(number for number, marks in enumerate(correct) if NOT_ATTACKED in marks)
    return left_out, results[title].get("settings") if title == WORST else None


def shown_columns(rows: Sequence[Row]) -> list[str]:
    """Return the titles of the columns to show: the usual ones, and those in which rows differ."""
    differing = {title for title in rows[0].labels if len({row.labels[title] for row in rows}) > 1}
    shown = [title for title in rows[0].labels if title in ALWAYS_SHOWN | differing - {"run"}]
    unique = {tuple(row.labels[title] for title in shown) for row in rows}
    return shown if len(unique) == len(rows) else [*shown, "run"]


def comparison_table(rows: Sequence[Row], shown: Sequence[str]) -> tuple[list[str], list[list[str]], set]:
    """Return header, cells (a line per row, then one per family) and (row, column) of the best accuracies."""
    titles = list(dict.fromkeys(title for row in rows for title in row.accuracies))
    counts = {title: {row.accuracies[title].n for row in rows if title in row.accuracies} for title in titles}
    common = {title: f" (n={min(n)})" for title, n in counts.items() if len(n) == 1}
    costs = [title for title in COSTS if any(title in row.run.costs for row in rows)]
    cells = []
    for members in [*([row] for row in rows), *families(rows)]:
        cells.append([_label(members, title) for title in shown])
        for title in titles:
            accuracies = [row.accuracies.get(title) for row in members]
            alike = None not in accuracies and len({(accuracy.n, accuracy.basis) for accuracy in accuracies}) == 1
            text = mean_and_deviation([accuracy.percent for accuracy in accuracies]) if alike else NONE
            cells[-1].append(text if title in common or not alike else f"{text} (n={accuracies[0].n})")
        cells[-1] += [mean_and_deviation([row.run.costs.get(title) for row in members], 0) for title in costs]
    bold = {(number, len(shown) + column) for column, title in enumerate(titles) for number in _best(rows, title)}
    return [*shown, *(title + common.get(title, "") for title in titles), *costs], cells, bold


def families(rows: Iterable[Row]) -> list[list[Row]]:
    """Return groups of rows that differ only in the seed; several evaluations of a run are in different groups."""
    groups, evaluations = defaultdict(list), Counter()
    for row in rows:
        run = row.family, row.labels["seed"]
        if row.accuracies and row.labels["seed"] != NONE:
            groups[row.family, evaluations[run]].append(row)
            evaluations[run] += 1
    return [group for group in groups.values() if len(group) > 1]


def _label(members: Sequence[Row], title: str) -> str:
    if title == "seed" and len(members) > 1:
        return f"mean ± sd ({len(members)} seeds)"
    values = {row.labels[title] for row in members}
    return values.pop() if len(values) == 1 else NONE


def mean_and_deviation(values: Sequence[float | None], digits: int = 2) -> str:
    """Return the mean and, for several values, ± the sample standard deviation; a dash if a value is missing."""
    if None in values or not values:
        return NONE
    return f"{mean(values):.{digits}f}" + (f" ± {stdev(values):.{digits}f}" if len(values) > 1 else "")


def _best(rows: Sequence[Row], title: str) -> list[int]:
    """Return the numbers of the rows with the highest accuracy among comparable ones; none if there is only one."""
    groups = defaultdict(list)
    for number, row in enumerate(rows):
        if accuracy := row.accuracies.get(title):
            key = (accuracy.n, accuracy.basis, *(row.labels[name] for name in COMPARABLE))
            groups[key].append((round(accuracy.percent, 2), number))
    compared = [group for group in groups.values() if len(group) > 1]
    return [number for group in compared for percent, number in group if percent == max(group)[0]]


def shared_attack(rows: Iterable[Row]) -> str | None:
    """Return the attack that most rows with a clean accuracy have; of several, the one with the lowest mean."""
    percents = defaultdict(list)
    for row in rows:
        for title in row.accuracies.keys() - {CLEAN, WORST} if CLEAN in row.accuracies else ():
            percents[title].append(row.accuracies[title].percent)
    return min(percents, key=lambda title: (-len(percents[title]), mean(percents[title]), title), default=None)
