"""Make the tables and figures of results/cpu: python scripts/reproduce/evidence.py RUNS --out DIR

RUNS holds the runs of the tables CPU-methods, CPU-ablation and CPU-overfitting, or a copy of them without weights. DIR
gets methods.md, ablation.md and the figures that these runs have data for. Means and sample standard deviations are
over seeds.
"""

import json
import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from math import comb
from pathlib import Path
from statistics import mean, stdev, variance
from typing import Any, NamedTuple

import matplotlib.pyplot as plt
from matplotlib.figure import Figure

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # this file is run from its folder

from engine.checkpoint import BEST_PGD10, LAST
from engine.evaluation.records import read_evaluations, results_folder
from engine.training.run_folder import ALPHA_COLUMNS
from utils.cli import run_command
from utils.errors import UserError
from utils.files import read_json, write_text
from utils.flags import parser_for
from utils.log import logger
from utils.plots import name_points, save_figure
from utils.tables import markdown_table, read_csv

ATTACKS = ("Clean", "FGSM", "PGD-20", "C&W-inf-30", "AutoAttack")  # from the weakest to the strongest
KINDS = {"best": BEST_PGD10, "last": LAST}
TEACHER, LONG = "teacher", "long"  # suffixes of runs in tables.csv
FULL = ("yes", "yes", "yes", "5")  # MAP, ELS, PCR and beta of DGAD as it is published
NONE = "-"
SHARED = (
    *("model", "dataset", "limit_train", "epochs", "bs"),
    *("lr_schedule", "lr_max", "epsilon", "num_steps", "val_size"),
)

DIFFERENCES = """Best checkpoints, row minus column in points; bold: more than twice its standard error,
sqrt(s₁²/n₁ + s₂²/n₂) with the deviations s over n seeds. Of equal methods with three seeds each, about one pair in nine
would be bold. A seed decides the training images, the initial weights and the order of the batches; all runs share one
teacher and the test images, whose randomness is in no deviation."""


class Run(NamedTuple):
    """One trained network: its settings, the rows of results.csv and reliability.csv, and its accuracies.

    ``results[kind][attack]`` is a result of eval.json, of the newest evaluation of the checkpoint ``kind``;
    ``conditions`` has the conditions of each.
    """

    config: dict
    epochs: list[dict[str, str]]
    reliability: list[dict[str, str]]
    results: dict[str, dict[str, dict]]
    conditions: set[str]

    @property
    def suffix(self) -> str:
        """--desc_str; empty for a plain run of a method."""
        return self.config["desc_str"]


Group = Sequence[Run]  # runs that differ only in their seed


def evidence(arguments: Sequence[str]) -> None:
    """Write tables and figures. Raises UserError for runs that make no table, a damaged file, and a full disk."""
    parser = parser_for(__doc__)
    parser.add_argument("runs", metavar="RUNS", help="folder of the runs")
    parser.add_argument("--out", metavar="DIR", required=True, help="folder of the tables and figures")
    options = parser.parse_args(arguments)
    runs, out = read_runs(Path(options.runs)), Path(options.out)
    students = [run for run in runs if run.suffix != TEACHER]
    teachers = [run for run in runs if run.suffix == TEACHER and run.config["method"] == "AT"]
    pages = {"methods": methods_page(plain_methods(students), teachers), "ablation": ablation_page(students)}
    try:
        out.mkdir(parents=True, exist_ok=True)
        for name, page in pages.items():
            if page:
                write_text(out / f"{name}.md", page)
        for draw in (tradeoff, overfitting, reliability, alpha, per_class):
            if figure := draw(students):
                save_figure(figure, out / f"{draw.__name__}.png")
    except OSError as error:
        raise UserError(f"--out {out}: cannot be written ({error.strerror}); name another folder") from error
    logger.info("%d runs: %s", len(runs), out)


def read_runs(folder: Path) -> list[Run]:
    """All evaluated runs below a folder, by path; others are left out with a warning.

    Raises UserError if there is no student, a file is damaged, a run is there twice, or runs of one table have
    different settings or conditions of evaluation. Teachers and long runs may have their own settings.
    """
    paths = [path.parent for path in sorted(folder.rglob("config.json"))]
    runs = [_read(path) for path in paths if any(path.glob("*_eval/eval.json"))]
    if len(runs) < len(paths):
        logger.warning("left out: %d runs that are not evaluated", len(paths) - len(runs))
    if not any(run.suffix != TEACHER for run in runs):
        raise UserError(f"{folder}: no evaluated student below it; reproduce.py --table CPU-methods trains some")
    names = Counter((run.config["method"], run.suffix, str(run.config["seed"])) for run in runs)
    (name, count), *_ = names.most_common(1)
    if count > 1:
        raise UserError(f"{folder}: {' '.join(filter(None, name))} is there {count} times; keep one of them")
    for key in (*SHARED, "limit_test"):
        values = sorted({str(run.config.get(key)) for run in runs if run.suffix not in (TEACHER, LONG)})
        if len(values) > 1:
            raise UserError(f"{folder}: trained with --{key} {' and '.join(values)}; give the folder of one comparison")
    if len(set().union(*(run.conditions for run in runs))) > 1:
        raise UserError(f"{folder}: evaluated under different conditions; give the folder of one comparison")
    return runs


def _read(folder: Path) -> Run:
    try:
        config, epochs = read_json(folder / "config.json"), read_csv(folder / "results.csv")
        path = folder / "reliability.csv"
        watched = read_csv(path) if path.exists() else []
    except (OSError, ValueError) as error:
        raise UserError(f"{folder}: incomplete run ({error})") from error
    results, conditions = {}, set()
    for kind, name in KINDS.items():
        path = results_folder(folder / name) / "eval.json"
        newest = read_evaluations(path)[-1] if path.exists() else {"figures": {}, "conditions": {}}
        results[kind] = newest["figures"]
        if newest["conditions"]:
            shared = {key: value for key, value in newest["conditions"].items() if key not in ("checkpoint", "sha256")}
            conditions.add(json.dumps(shared, sort_keys=True))
    return Run(config, epochs, watched, results, conditions)


def grouped(runs: Iterable[Run], key: Callable[[Run], Any]) -> dict[Any, list[Run]]:
    """Runs by the value of ``key``; runs with None are left out."""
    groups = defaultdict(list)
    for run in runs:
        if (name := key(run)) is not None:
            groups[name].append(run)
    return dict(groups)


def plain_methods(runs: Iterable[Run]) -> dict[str, list[Run]]:
    """The seeds of each method without a suffix."""
    return grouped(runs, lambda run: None if run.suffix else run.config["method"])


def strongest(methods: Mapping[str, Group], kind: str) -> str:
    """The strongest attack that every run was evaluated with."""
    runs = [run for group in methods.values() for run in group]
    return ([attack for attack in ATTACKS if all(attack in run.results[kind] for run in runs)] or [ATTACKS[0]])[-1]


def accuracies(group: Group, kind: str, attack: str) -> list[float]:
    """Accuracy in percent of each run that was evaluated with the attack."""
    return [run.results[kind][attack]["accuracy"] for run in group if attack in run.results[kind]]


def methods_page(methods: Mapping[str, Group], teachers: Group) -> str | None:
    """The comparison of all methods as Markdown; None without plain runs."""
    if not methods:
        return None
    parts = ["# Every method under one setting", describe([run for group in methods.values() for run in group])]
    for kind in KINDS:
        rows = [[name, len(methods[name]), *cells(methods[name], kind)] for name in ranked(methods, kind)]
        rows += [["(the robust teacher)", len(teachers), *cells(teachers, kind)]] if teachers else []
        parts += [f"## The {kind} checkpoint", markdown_table(["method", "seeds", *ATTACKS], rows)]
    attacks = dict.fromkeys((ATTACKS[0], strongest(methods, "best"), ATTACKS[-1]))
    parts += ["## Which differences exceed two standard errors", DIFFERENCES.replace("\n", " ")]
    return "\n\n".join(parts + [differences(methods, attack) for attack in attacks]) + "\n"


def describe(runs: Group) -> str:
    """The setting that runs share, as a sentence or two."""
    config = runs[0].config
    settings = ", ".join(f"{key} {config[key]}" for key in SHARED if config.get(key))
    results = [run.results[kind] for run in runs for kind in KINDS]
    sizes = {attack: sorted({one[attack]["n"] for one in results if attack in one}) for attack in ATTACKS}
    images = ", ".join(f"{attack} {'/'.join(map(str, counts))}" for attack, counts in sizes.items() if counts)
    seeds = ", ".join(map(str, sorted({run.config["seed"] for run in runs})))
    chosen = f"{config['limit_test']} test images" if config.get("limit_test") else "the test images"
    return (
        f"Accuracy in %, mean ± sample standard deviation over the seeds {seeds}. Setting: {settings}. Test images: "
        f"{images}. Best is the epoch of the highest PGD-10 accuracy on {chosen}, as the papers choose it."
    )


def cells(group: Group, kind: str) -> list[str]:
    """Mean and deviation under each attack, with the number of seeds if it is not all; a dash without any."""
    texts = []
    for values in (accuracies(group, kind, attack) for attack in ATTACKS):
        spread = f" ± {stdev(values):.2f}" if len(values) > 1 else ""
        fewer = f" (of {len(values)})" if len(values) < len(group) else ""
        texts.append(f"{mean(values):.2f}{spread}{fewer}" if values else NONE)
    return texts


def ranked(groups: Mapping[str, Group], kind: str, attack: str | None = None) -> list[str]:
    """Names of groups by their mean under an attack (default: the strongest), the highest first."""
    attack = attack or strongest(groups, kind)
    means = {name: mean(accuracies(group, kind, attack) or [-1.0]) for name, group in groups.items()}
    return sorted(means, key=means.get, reverse=True)


def differences(groups: Mapping[str, Group], attack: str, kind: str = "best") -> str:
    """A table of the differences of all pairs of groups with several seeds, under its title."""
    values = {name: accuracies(groups[name], kind, attack) for name in ranked(groups, kind, attack)}
    values = {name: results for name, results in values.items() if len(results) > 1}
    names, rows, bold = list(values), [], set()
    for row, name in enumerate(names[:-1]):
        later = range(row + 1, len(names))
        gaps = [f"{mean(values[name]) - mean(values[names[column]]):.1f}" for column in later]
        rows.append([name, *[""] * row, *gaps])
        bold |= {(row, column) for column in later if exceeds(values[name], values[names[column]])}
    if not rows:
        return f"**{attack}**: one seed each."
    title = f"**{attack}**: {len(bold)} of {comb(len(names), 2)} pairs differ by more."
    return f"{title}\n\n{markdown_table(['', *names[1:]], rows, bold)}"


def exceeds(some: Sequence[float], others: Sequence[float]) -> bool:
    """Whether two means differ by more than two standard errors of their difference."""
    error = (variance(some) / len(some) + variance(others) / len(others)) ** 0.5
    return abs(mean(some) - mean(others)) > 2 * error


def ablation_page(students: Sequence[Run]) -> str | None:
    """DGAD without its parts and with other beta as Markdown; None without DGAD itself, or with nothing else."""
    rows = grouped((run for run in students if run.config["method"] == "DGAD"), _ablation_row)
    full = rows.get(FULL)
    if not full or len(rows) == 1:
        return None
    parts = ["# The parts of DGAD", describe([run for group in rows.values() for run in group])]
    parts.append("Bold: more than two standard errors from DGAD with all its parts and beta 5 (the first row).")
    for kind in KINDS:
        lines, bold = [], set()
        for number, (row, group) in enumerate(
            sorted(rows.items(), key=lambda item: (item[0].count("no"), item[0] != FULL))
        ):
            lines.append([*row, len(group), *cells(group, kind)])
            for column, attack in enumerate(ATTACKS, start=len(row) + 1):
                ours, theirs = (accuracies(one, kind, attack) for one in (group, full))
                if min(len(ours), len(theirs)) > 1 and exceeds(ours, theirs):
                    bold.add((number, column))
        header = ["MAP", "ELS", "PCR", "beta", "seeds", *ATTACKS]
        parts += [f"## The {kind} checkpoint", markdown_table(header, lines, bold)]
    return "\n\n".join(parts) + "\n"


def _ablation_row(run: Run) -> tuple[str, ...] | None:
    """The cells of MAP, ELS, PCR and beta, by the suffix of the run."""
    if run.suffix.startswith("beta"):
        return (*FULL[:3], run.suffix.removeprefix("beta"))
    if not run.suffix.endswith("PCR"):
        return None if run.suffix else FULL
    parts = ["no" if part.startswith("no") else "yes" for part in run.suffix.split("_")]
    return (*parts, "5" if parts[2] == "yes" else NONE)


def tradeoff(runs: Sequence[Run]) -> Figure | None:
    """Robust against clean accuracy of each method's best checkpoint, with deviations over seeds; Natural left out."""
    methods = plain_methods(run for run in runs if run.config["method"] != "Natural")
    attack = strongest(methods, "best")
    if len(methods) < 2 or not all(ATTACKS[0] in run.results["best"] for group in methods.values() for run in group):
        return None
    figure, axes = plt.subplots(figsize=(7, 5), layout="constrained")
    points = []
    for number, group in enumerate(methods.values()):
        values = [accuracies(group, "best", title) for title in (ATTACKS[0], attack)]
        xerr, yerr = (stdev(one) if len(one) > 1 else 0 for one in values)
        points.append(tuple(map(mean, values)))
        color = plt.colormaps["turbo"]((number + 0.5) / len(methods))
        axes.errorbar(*points[-1], xerr=xerr, yerr=yerr, fmt="o", capsize=2, elinewidth=0.8, color=color)
    axes.set(xlabel="clean accuracy (%)", ylabel=f"accuracy under {attack} (%)")
    axes.margins(0.12)
    axes.grid(alpha=0.3)
    name_points(axes, points, list(methods))
    return figure


def overfitting(runs: Sequence[Run]) -> Figure | None:
    """Robust accuracy per epoch of the long runs: on test images (PGD-10), and on training images (their own attack).

    Means over seeds; the band reaches from the lowest to the highest seed on test images.
    """
    _, axes = plt.subplots(figsize=(8, 4.5), layout="constrained")
    for number, (name, group) in enumerate(_long(runs).items()):
        rows, style = _mean_rows([run.epochs for run in group]), {"color": f"C{number}"}
        test = _points(rows, "PGD10_acc")
        epochs = ([row["PGD10_acc"] for row in same] for same in zip(*(run.epochs for run in group), strict=False))
        seeds = [list(map(float, values)) for values in epochs if "" not in values]
        axes.plot(*test, label=f"{name}: test, PGD-10", **style)
        axes.fill_between(test[0], [min(one) for one in seeds], [max(one) for one in seeds], alpha=0.2, lw=0, **style)
        axes.plot(*max(zip(*test, strict=True), key=lambda point: point[1]), "o", **style)
        axes.plot(*_points(rows, "train_adv_acc"), ":", label=f"{name}: training, its own attack", **style)
    return _finished(axes, "accuracy under attack (%)")


def reliability(runs: Sequence[Run]) -> Figure | None:
    """Accuracy of the teacher on clean and on the student's adversarial training images (figure 1 of IAD)."""
    _, axes = plt.subplots(figsize=(8, 4.5), layout="constrained")
    for number, (name, rows) in enumerate(_reliability_rows(runs).items()):
        for column, style, images in (("teacher_clean_acc", "--", "clean"), ("teacher_adv_acc", "-", "adversarial")):
            label = f"{name}: {images} images"
            axes.plot(*_points(rows, column), style, color=f"C{number}", marker=".", label=label)
    return _finished(axes, "accuracy of the teacher (%)")


def alpha(runs: Sequence[Run]) -> Figure | None:
    """The teacher's probability of the label on adversarial images, in the first and the last epoch that have it."""
    counted = {
        name: [row for row in rows if row[ALPHA_COLUMNS[0]] != ""] for name, rows in _reliability_rows(runs).items()
    }
    counted = {name: rows for name, rows in counted.items() if rows}
    if not counted:
        return None
    size = (4.5 * len(counted), 3.5)
    figure, axes = plt.subplots(1, len(counted), figsize=size, sharey=True, layout="constrained", squeeze=False)
    edges = [number / len(ALPHA_COLUMNS) for number in range(len(ALPHA_COLUMNS) + 1)]
    for axis, (name, rows) in zip(axes[0], counted.items(), strict=True):
        for row, style in ((rows[0], "--"), (rows[-1], "-")):
            counts = [row[column] for column in ALPHA_COLUMNS]
            shares = [100 * count / sum(counts) for count in counts]
            axis.stairs(shares, edges, ls=style, label=f"epoch {row['epoch']:g}")
        axis.set(xlabel="alpha: teacher's probability of the label", title=name)
        axis.legend(fontsize="small")
    axes[0, 0].set_ylabel("share of the adversarial images (%)")
    return figure


def per_class(runs: Sequence[Run], attack: str = "PGD-20") -> Figure | None:
    """Accuracy of each class under PGD-20, best checkpoints, mean over seeds."""
    means = {}
    for method, group in plain_methods(runs).items():
        if results := [run.results["best"][attack]["per_class"] for run in group if attack in run.results["best"]]:
            means[method] = {name: mean(one[name] for one in results) for name in results[0]}
    if not means:
        return None
    methods = sorted(means, key=lambda method: mean(means[method].values()), reverse=True)
    classes = list(means[methods[0]])
    figure, axes = plt.subplots(figsize=(9, 0.4 * len(methods) + 1.5), layout="constrained")
    table = [[means[method][name] for name in classes] for method in methods]
    axes.imshow(table, cmap="Blues", vmin=0, vmax=100, aspect="auto")
    axes.set_xticks(range(len(classes)), classes, rotation=30, ha="right", fontsize="small")
    axes.set_yticks(range(len(methods)), methods, fontsize="small")
    axes.set_title(f"accuracy (%) of each class under {attack}", fontsize="medium")
    for row, values in enumerate(table):
        for column, value in enumerate(values):
            color = "white" if value > 50 else "black"
            axes.text(column, row, f"{value:.0f}", ha="center", va="center", fontsize="small", color=color)
    return figure


def _long(runs: Sequence[Run]) -> dict[str, list[Run]]:
    """The seeds of each method's long run, by the method's name and their number."""
    groups = grouped(runs, lambda run: run.config["method"] if run.suffix == LONG else None)
    return {f"{method} ({len(group)} seed{'s' * (len(group) > 1)})": group for method, group in groups.items()}


def _reliability_rows(runs: Sequence[Run]) -> dict[str, list[dict]]:
    """reliability.csv of the long runs of each method with a teacher, means over seeds."""
    long = {name: [run.reliability for run in group] for name, group in _long(runs).items()}
    return {name: _mean_rows(tables) for name, tables in long.items() if all(tables)}


def _mean_rows(tables: Sequence[Sequence[dict[str, str]]]) -> list[dict]:
    """A row for each epoch that all seeds have, with their means; "" where a seed has no value."""
    rows = []
    for same in zip(*tables, strict=False):
        columns = {key: [row[key] for row in same] for key in same[0]}
        rows.append({key: "" if "" in values else mean(map(float, values)) for key, values in columns.items()})
    return rows


def _points(rows: Sequence[dict], column: str) -> tuple[list[float], list[float]]:
    """Epochs, from 1, and the values that they have."""
    known = [row for row in rows if row[column] != ""]
    return [row["epoch"] for row in known], [row[column] for row in known]


def _finished(axes, ylabel: str) -> Figure | None:
    """The figure with labels; None if nothing was drawn."""
    if not axes.lines:
        plt.close(axes.figure)
        return None
    axes.set(xlabel="epoch", ylabel=ylabel)
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
    return axes.figure


if __name__ == "__main__":
    run_command(lambda: evidence(sys.argv[1:]))
