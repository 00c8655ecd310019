"""Tables of an evaluation: eval.csv and eval.md beside the checkpoint, and several checkpoints side by side."""

from pathlib import Path

from engine.checkpoint import BEST_PGD10, LAST
from engine.evaluation.records import Record
from utils.files import write_text
from utils.tables import markdown_table, text_table, write_csv

# Conditions that tell the rows of eval.csv apart.
ABOUT = ("checkpoint", "sha256", "protocol", "dataset", "limit_test", "model", "seed", "bs", "judge", "surrogate")
EXACT = ("step_size", "steps", "restarts")
SIDES = {BEST_PGD10: "best", LAST: "last"}


def write_report(record: Record) -> None:
    """Write every figure that is kept: eval.csv with a row for each, eval.md with a table row for each evaluation."""
    rows, sections = [], []
    for evaluation in record.evaluations:
        conditions, figures = evaluation["conditions"], evaluation["figures"]
        about = [conditions[key] for key in ABOUT]
        for title, figure in figures.items():
            exact = {key: figure.get("parameters", {}).get(key, "") for key in EXACT}
            rows.append(
                [*about, title, figure["accuracy"], figure["n"], conditions["eps"], *exact.values(), figure["settings"]]
            )
        sections.append(_section(conditions, figures))
    header = [*ABOUT, "attack", "accuracy", "n", "eps", *EXACT]
    folder = record.path.parent
    write_csv(folder / "eval.csv", [*header, "settings"], rows)
    write_text(folder / "eval.md", "\n".join(sections))


def _section(conditions: dict, figures: dict) -> str:
    newest = next((figure["versions"] for figure in reversed(figures.values()) if "versions" in figure), {})
    shown = {key: value for key, value in (conditions | newest).items() if value is not None}
    table = markdown_table(
        ["accuracy in %", *(f"{title} (n={figure['n']})" for title, figure in figures.items())],
        [[conditions["model"], *(f"{figure['accuracy']:.2f}" for figure in figures.values())]],
    )
    return f"{table}\n\n{', '.join(f'{key} {value}' for key, value in shown.items())}\n"


def comparison(results: dict[Path, dict[str, dict]]) -> str:
    """One table of several checkpoints' figures: a row for each, or for each run, its best and last side by side."""
    groups: dict[Path, dict[str, dict]] = {}
    for path, figures in results.items():
        run = path.parent if path.name in SIDES else path
        groups.setdefault(run, {})[SIDES.get(path.name, "")] = figures
    first = next(iter(results.values()))
    rows = []
    for run, sides in groups.items():
        cells = [" / ".join(f"{figures[title]['accuracy']:.2f}" for figures in sides.values()) for title in first]
        rows.append([_short(run), " / ".join(filter(None, sides)), *cells])
    header = ["accuracy in %", "", *(f"{title} (n={figure['n']})" for title, figure in first.items())]
    return text_table(header, rows)


def _short(run: Path) -> str:
    return "/".join(run.parts[-2:])
