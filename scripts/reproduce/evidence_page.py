"""The table and the figure of evidence.py."""

from collections.abc import Sequence
from statistics import mean, variance

from matplotlib.figure import Figure

from engine.reporting.runs import NONE
from scripts.reproduce.study import ATTACKS, BASE, WEIGHTS, Run, Study
from utils.plots import plt
from utils.tables import markdown_table


def two_errors(*groups: Sequence[float]) -> float:
    """Two standard errors of a mean, or of the difference of two means."""
    return 2 * sum(variance(values) / len(values) for values in groups) ** 0.5


def page(study: Study) -> str:
    """The comparison and the tuning as Markdown."""
    results = study.results.values()
    machines = {f"{result['device']}, PyTorch {result['torch']}" for result in results}
    images = {f"{attack} {n}" for one in results for w in WEIGHTS if w in one for attack, n in one[w]["images"].items()}
    parts = [
        "# Methods with an equal budget of tuning",
        f"Accuracy in %, mean ± two standard errors over seeds. Test images: {', '.join(sorted(images)) or NONE}.",
        f"Hardware: {'; '.join(sorted(machines)) or NONE}. Missing runs: {missing(study)}.",
        "## Averaged weights",
        _comparison(study, "ema"),
        "## Raw weights of the same runs",
        _comparison(study, "raw"),
        "## Tuning",
        f"PGD-10 accuracy in % of the best epoch on held-out images, seed {study.seeds[0]}; bold: chosen.",
        _tuning(study) + "\n",
    ]
    return "\n\n".join(parts)


def _comparison(study: Study, weights: str) -> str:
    """Accuracies of the averaged or the raw weights, and the difference from BASE, as Markdown."""
    lines, base = [], study.runs(BASE) if BASE in study.methods else []
    for title, runs in _evaluated(study).items():
        cells = [study.accuracies(runs, weights, attack) for attack in ATTACKS]
        ours, theirs = cells[-1], study.accuracies(base, weights, ATTACKS[-1])
        known = title != BASE and min(len(ours), len(theirs)) > 1
        gap = f"{mean(ours) - mean(theirs):+.1f} ± {two_errors(ours, theirs):.1f}" if known else NONE
        lines.append([title, f"`{runs[0].flags}`", len(cells[0]), *map(_cell, cells), gap])
    return markdown_table(["method", "chosen", "seeds", *ATTACKS, f"{ATTACKS[-1]} minus {BASE}"], lines)


def _tuning(study: Study) -> str:
    """Held-out accuracy of each method's values, the chosen one bold, as Markdown."""
    lines, bold = [], set()
    for number, method in enumerate(study.methods):
        scores = study.tuning(method)
        lines.append([method, *(f"{flags}: {NONE if score is None else score}" for flags, score in scores.items())])
        if None not in scores.values():
            bold.add((number, 1 + list(scores).index(max(scores, key=scores.get))))
    return markdown_table(["method", "first value", "second value", "third value"], lines, bold)


def missing(study: Study) -> str:
    """The runs that are missing in the table, as far as they are known."""
    return "; ".join(run.name for run in study.left()) or "none"


def _evaluated(study: Study) -> dict[str, list[Run]]:
    """The rows of which a run is evaluated."""
    rows = study.rows().items()
    return {title: runs for title, runs in rows if any(study.accuracies(runs, kind, ATTACKS[0]) for kind in WEIGHTS)}


def _cell(values: Sequence[float]) -> str:
    errors = f" ± {two_errors(values):.1f}" if len(values) > 1 else ""
    return f"{mean(values):.1f}{errors}" if values else NONE


def draw(study: Study) -> Figure:
    """Accuracy of each row with two standard errors, one panel per attack: averaged weights filled, raw ones empty."""
    rows = _evaluated(study)
    size = (10, 0.35 * len(rows) + 1.3)
    figure, axes = plt.subplots(1, len(ATTACKS), figsize=size, sharey=True, layout="constrained")
    for axis, attack in zip(axes, ATTACKS, strict=True):
        for weights, shift, fill in (("ema", -0.12, "C0"), ("raw", 0.12, "white")):
            for number, runs in enumerate(rows.values()):
                if values := study.accuracies(runs, weights, attack):
                    style = {"fmt": "o", "color": "C0", "markerfacecolor": fill, "elinewidth": 0.8, "capsize": 2}
                    error = two_errors(values) if len(values) > 1 else 0
                    axis.errorbar(mean(values), number + shift, xerr=error, **style)
        axis.set_xlabel(f"{attack} (%)")
        axis.grid(alpha=0.3)
    axes[0].set_yticks(range(len(rows)), rows)
    axes[0].invert_yaxis()
    figure.suptitle("filled: averaged weights, empty: raw weights", fontsize="medium")
    return figure
