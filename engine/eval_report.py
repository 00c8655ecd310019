"""Tables of an evaluation: eval.csv and eval.md beside the checkpoint, and several checkpoints side by side."""

from pathlib import Path

from engine.records import Record
from engine.run_folder import BEST_PGD10, LAST
from utils.files import write_atomically
from utils.report import markdown_table, text_table, write_csv

SIDES = {BEST_PGD10: "best", LAST: "last"}


def write_report(record: Record) -> None:
    """Write every figure that is kept: eval.csv with a row for each, eval.md with a table row for each evaluation."""
    rows, sections = [], []
    for evaluation in record.evaluations:
        conditions, figures = evaluation["conditions"], evaluation["figures"]
        about = [conditions[key] for key in ("protocol", "dataset", "model", "seed")]
        for title, figure in figures.items():
            exact = {key: figure.get("parameters", {}).get(key, "") for key in ("step_size", "steps", "restarts")}
            rows.append(
                [*about, title, figure["accuracy"], figure["n"], conditions["eps"], *exact.values(), figure["settings"]]
            )
        sections.append(_section(conditions, evaluation["versions"], figures))
    header = [
        "protocol",
        "dataset",
        "model",
        "seed",
        "attack",
        "accuracy",
        "n",
        "eps",
        "step_size",
        "steps",
        "restarts",
    ]
    folder = record.path.parent
    write_csv(folder / "eval.csv", [*header, "settings"], rows)
    text = "\n".join(sections)
    write_atomically(folder / "eval.md", lambda temporary: temporary.write_text(text, encoding="utf-8"))


def _section(conditions: dict, versions: dict, figures: dict) -> str:
    shown = {key: value for key, value in (conditions | versions).items() if value is not None}
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
    newest = next(iter(results.values()))
    rows = []
    for run, sides in groups.items():
        cells = [" / ".join(f"{figures[title]['accuracy']:.2f}" for figures in sides.values()) for title in newest]
        rows.append([_short(run), " / ".join(filter(None, sides)), *cells])
    header = ["accuracy in %", "", *(f"{title} (n={figure['n']})" for title, figure in newest.items())]
    return text_table(header, rows)


def _short(run: Path) -> str:
    return "/".join(run.parts[-2:])
