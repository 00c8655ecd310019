"""The evidence on a CPU as tables and pictures: python scripts/reproduce/evidence.py RUNS --out DIR

RUNS is what methods_cpu.sh, ablation_cpu.sh and overfitting_cpu.sh left in one folder, or a copy of it without the
weights. DIR gets methods.md, ablation.md and the pictures that these runs have figures for. Means and sample standard
deviations are over seeds.
"""

import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from math import comb
from pathlib import Path
from statistics import mean, stdev, variance
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # this file is run from its folder

from engine.records import folder_of, read_evaluations
from engine.run_folder import BEST_PGD10, LAST
from scripts.reproduce.evidence_pictures import PICTURES
from utils.command import run_command
from utils.errors import UserError
from utils.files import read_json, write_text
from utils.flags import parser_for
from utils.log import logger
from utils.plots import save_figure
from utils.report import markdown_table, read_csv

KINDS = {"best": BEST_PGD10, "last": LAST}
ATTACKS = ("Clean", "FGSM", "PGD-20", "C&W-inf-30", "AutoAttack")
SHOWN = (
    "model",
    "dataset",
    "limit_train",
    "epochs",
    "bs",
    "lr_schedule",
    "lr_max",
    "epsilon",
    "num_steps",
    "limit_test",
)
TEACHER = "teacher"  # --desc_str of the teachers
FULL = "MAP_ELS_PCR"
NONE = "-"


class Run(NamedTuple):
    """One trained network: its settings, results.csv and reliability.csv, and figures[kind][attack] of eval.json."""

    config: dict
    epochs: list[dict[str, str]]
    trust: list[dict[str, str]]
    figures: dict[str, dict[str, dict]]

    def accuracy(self, kind: str, attack: str) -> float | None:
        """Accuracy in percent, None where that was not evaluated."""
        figure = self.figures[kind].get(attack)
        return figure and figure["accuracy"]


Group = Sequence[Run]  # runs that differ in their seed alone


def evidence(arguments: Sequence[str]) -> None:
    """Write tables and pictures. Raises UserError for a folder without runs, a damaged file, and a full disk."""
    parser = parser_for(__doc__)
    parser.add_argument("runs", metavar="RUNS", help="folder of the runs")
    parser.add_argument("--out", metavar="DIR", required=True, help="folder of the tables and pictures")
    asked = parser.parse_args(arguments)
    runs, out = read_runs(Path(asked.runs)), Path(asked.out)
    teachers = [run for run in runs if run.config["desc_str"] == TEACHER]
    students = [run for run in runs if run.config["desc_str"] != TEACHER]
    methods = grouped((run for run in students if not run.config["desc_str"]), lambda run: run.config["method"])
    parts = grouped((run for run in students if run.config["method"] == "DGAD"), _part)
    try:
        out.mkdir(parents=True, exist_ok=True)
        write_text(out / "methods.md", methods_page(methods, teachers))
        if len(parts) > 1:
            write_text(out / "ablation.md", ablation_page(parts))
        for name, draw in PICTURES.items():
            figure = draw(students)
            if figure:
                save_figure(figure, out / f"{name}.png")
    except OSError as error:
        raise UserError(f"--out {out}: cannot be written to ({error.strerror}); name another folder") from error
    logger.info("%d runs: %s", len(runs), out)


def read_runs(folder: Path) -> list[Run]:
    """All runs below a folder, by path. Raises UserError where there is none, or a file is damaged."""
    runs = []
    for path in sorted(folder.rglob("config.json")):
        place = path.parent
        try:
            config, epochs = read_json(path), read_csv(place / "results.csv")
            watched = place / "reliability.csv"
            trust = read_csv(watched) if watched.exists() else []
        except (OSError, ValueError) as error:
            raise UserError(f"{place}: no whole run ({error})") from error
        runs.append(Run(config, epochs, trust, {kind: _figures(place / name) for kind, name in KINDS.items()}))
    if not any(run.config["desc_str"] != TEACHER for run in runs):
        raise UserError(f"{folder}: no run of a student below it; methods_cpu.sh makes some")
    return runs


def _figures(checkpoint: Path) -> dict[str, dict]:
    place = folder_of(checkpoint) / "eval.json"
    return read_evaluations(place)[-1]["figures"] if place.exists() else {}


def grouped(runs: Iterable[Run], key: Callable[[Run], str | None]) -> dict[str, list[Run]]:
    """Runs by what ``key`` says of them; those of which it says None are left out."""
    groups: dict[str, list[Run]] = {}
    for run in runs:
        if (name := key(run)) is not None:
            groups.setdefault(name, []).append(run)
    return groups


def _part(run: Run) -> str | None:
    """The row of the ablation that a run of DGAD belongs to."""
    word = run.config["desc_str"]
    return FULL if not word else word if word.startswith(("MAP", "noMAP", "beta")) else None


def methods_page(methods: Mapping[str, Group], teachers: Group) -> str:
    """The comparison of all methods as Markdown."""
    parts = ["# Every method under one setting", about([run for group in methods.values() for run in group])]
    for kind in KINDS:
        ordered = sorted(methods, key=lambda name: _order(methods[name], kind), reverse=True)
        rows = [[name, len(methods[name]), *cells(methods[name], kind)] for name in ordered]
        robust = [run for run in teachers if run.config["method"] == "AT"]
        rows += [["(the robust teacher)", len(robust), *cells(robust, kind)]] if robust else []
        parts += [f"## The {kind} checkpoint", markdown_table(["method", "seeds", *ATTACKS], rows)]
    parts.append("## Which differences exceed two standard errors")
    parts.append(
        "Best checkpoints, row minus column in points; bold: more than twice its standard error, "
        "sqrt(s₁²/n₁ + s₂²/n₂) with the deviations s over n seeds. A deviation of three seeds is itself rough: where "
        "methods did not differ at all, about one pair in nine would still be bold."
    )
    parts += [differences(methods, attack) for attack in ("Clean", "AutoAttack")]
    return "\n\n".join(parts) + "\n"


def about(runs: Group) -> str:
    """The setting of runs in words; what differs between them is left out."""
    alike = {key: value for key, value in runs[0].config.items() if all(run.config[key] == value for run in runs)}
    settings = ", ".join(f"{key} {alike[key]}" for key in SHOWN if key in alike)
    sizes = {
        attack: {str(run.figures["best"][attack]["n"]) for run in runs if attack in run.figures["best"]}
        for attack in ATTACKS
    }
    images = ", ".join(f"{attack} {'/'.join(sorted(counts))}" for attack, counts in sizes.items() if counts)
    seeds = ", ".join(map(str, sorted({run.config["seed"] for run in runs})))
    return (
        f"Accuracy in %, mean ± sample standard deviation over the seeds {seeds}. Setting: {settings}. Test images: "
        f"{images}. Best is the epoch of the highest PGD-10 accuracy."
    )


def cells(group: Group, kind: str) -> list[str]:
    """Mean and deviation of each attack; a dash where no run has it."""
    found = [_values(group, kind, attack) for attack in ATTACKS]
    return [f"{mean(one):.2f}{f' ± {stdev(one):.2f}' if len(one) > 1 else ''}" if one else NONE for one in found]


def _values(group: Group, kind: str, attack: str) -> list[float]:
    values = [run.accuracy(kind, attack) for run in group]
    return [value for value in values if value is not None]


def _order(group: Group, kind: str) -> tuple[float, ...]:
    """What rows are sorted by: the strongest attack first."""
    return tuple(mean(_values(group, kind, attack) or [-1.0]) for attack in reversed(ATTACKS))


def differences(groups: Mapping[str, Group], attack: str, kind: str = "best") -> str:
    """A table of the differences of all pairs, in falling order, under its title."""
    values = {name: _values(group, kind, attack) for name, group in groups.items()}
    values = {name: found for name, found in values.items() if len(found) > 1}
    ordered = sorted(values, key=lambda name: mean(values[name]), reverse=True)
    rows, bold = [], set()
    for row, name in enumerate(ordered[:-1]):
        gaps = [mean(values[name]) - mean(values[other]) for other in ordered]
        rows.append([name, *(f"{gap:.1f}" if row < column else "" for column, gap in enumerate(gaps) if column)])
        later = range(row + 1, len(ordered))
        bold |= {(row, column) for column in later if exceeds(values[name], values[ordered[column]])}
    title = f"**{attack}**: {len(bold)} of {comb(len(ordered), 2)} pairs differ by more."
    return f"{title}\n\n{markdown_table(['', *ordered[1:]], rows, bold)}" if rows else f"**{attack}**: one seed each."


def exceeds(some: Sequence[float], others: Sequence[float]) -> bool:
    """Whether two means differ by more than two standard errors of their difference."""
    error = (variance(some) / len(some) + variance(others) / len(others)) ** 0.5
    return abs(mean(some) - mean(others)) > 2 * error


def ablation_page(parts: Mapping[str, Group]) -> str:
    """DGAD's parts and its beta as Markdown; bold: more than two standard errors from DGAD as it is."""
    betas = {name: group for name, group in parts.items() if name.startswith("beta")}
    switched = {name: group for name, group in parts.items() if name not in betas}
    rows = [
        [*("no" if word.startswith("no") else "yes" for word in name.split("_")), group]
        for name, group in _by_parts(switched)
    ]
    pages = ["# The parts of DGAD", about([run for group in parts.values() for run in group])]
    pages.append("Bold: more than two standard errors from DGAD with all its parts and beta 5.")
    full = switched[FULL]
    pages += [_against(full, ["MAP", "ELS", "PCR"], rows, kind) for kind in KINDS]
    pages.append("## The weight of the consistency term (PCR)")
    weights = {float(name.removeprefix("beta")): group for name, group in betas.items()}
    weights |= {5.0: full} | ({0.0: switched["MAP_ELS_noPCR"]} if "MAP_ELS_noPCR" in switched else {})
    pages += [_against(full, ["beta"], [[f"{beta:g}", weights[beta]] for beta in sorted(weights)], "best")]
    return "\n\n".join(pages) + "\n"


def _by_parts(switched: Mapping[str, Group]) -> list[tuple[str, Group]]:
    """The fewer parts are off, the earlier."""
    return sorted(switched.items(), key=lambda item: (item[0].count("no"), item[0]))


def _against(full: Group, header: list[str], rows: Sequence[list], kind: str) -> str:
    """A table of rows that end with a group; cells that differ from the full method's are bold."""
    lines = [[*words, len(group), *cells(group, kind)] for *words, group in rows]
    bold = set()
    for number, (*_, group) in enumerate(rows):
        for column, attack in enumerate(ATTACKS):
            ours, theirs = _values(group, kind, attack), _values(full, kind, attack)
            if min(len(ours), len(theirs)) > 1 and exceeds(ours, theirs):
                bold.add((number, len(header) + 1 + column))
    return f"The {kind} checkpoint:\n\n{markdown_table([*header, 'seeds', *ATTACKS], lines, bold)}"


if __name__ == "__main__":
    run_command(lambda: evidence(sys.argv[1:]))
