"""The evidence on a CPU as tables and pictures: python scripts/reproduce/evidence.py RUNS --out DIR

RUNS is what methods_cpu.sh, ablation_cpu.sh and overfitting_cpu.sh left in one folder, or a copy of it without the
weights. DIR gets methods.md, ablation.md and the pictures that these runs have figures for. Means and sample standard
deviations are over seeds.
"""

import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import fields
from math import comb
from pathlib import Path
from statistics import mean, stdev, variance

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # this file is run from its folder

from engine.unused_fields import unused_fields
from scripts.reproduce.evidence_pictures import PICTURES
from scripts.reproduce.evidence_runs import (
    ATTACKS,
    KINDS,
    SHARED,
    TEACHER,
    Run,
    grouped,
    plain_methods,
    read_runs,
    strongest,
)
from utils.cli import run_command
from utils.config import METHOD, TrainConfig
from utils.errors import UserError
from utils.files import write_text
from utils.flags import parser_for, spelling
from utils.log import logger
from utils.plots import save_figure
from utils.tables import markdown_table

FULL, WITHOUT_PCR = "MAP_ELS_PCR", "MAP_ELS_noPCR"  # rows of the ablation
NONE = "-"

Group = Sequence[Run]  # runs that differ in their seed alone

READING = """Best checkpoints, row minus column in points; bold: more than twice its standard error,
sqrt(s₁²/n₁ + s₂²/n₂) with the deviations s over n seeds. With three seeds each and no difference at all, about one pair
in nine would still be bold. A seed chooses the training images, the first weights and the order of the batches; the one
teacher and the test images are the same for all, and their chance is in no deviation."""


def evidence(arguments: Sequence[str]) -> None:
    """Write tables and pictures. Raises UserError for folders that make no table, a damaged file, and a full disk."""
    parser = parser_for(__doc__)
    parser.add_argument("runs", metavar="RUNS", help="folder of the runs")
    parser.add_argument("--out", metavar="DIR", required=True, help="folder of the tables and pictures")
    asked = parser.parse_args(arguments)
    runs, out = read_runs(Path(asked.runs)), Path(asked.out)
    teachers = [run for run in runs if run.word == TEACHER]
    students = [run for run in runs if run.word != TEACHER]
    pages = {"methods": methods_page(plain_methods(students), teachers), "ablation": ablation_page(students)}
    try:
        out.mkdir(parents=True, exist_ok=True)
        for name, page in pages.items():
            if page:
                write_text(out / f"{name}.md", page)
        for name, draw in PICTURES.items():
            figure = draw(students)
            if figure:
                save_figure(figure, out / f"{name}.png")
    except OSError as error:
        raise UserError(f"--out {out}: cannot be written to ({error.strerror}); name another folder") from error
    logger.info("%d runs: %s", len(runs), out)


def methods_page(methods: Mapping[str, Group], teachers: Group) -> str | None:
    """The comparison of all methods as Markdown; None where there is none."""
    if not methods:
        return None
    parts = ["# Every method under one setting", about([run for group in methods.values() for run in group])]
    parts += own_settings(methods)
    for kind in KINDS:
        ordered = falling(methods, kind, strongest(methods, kind))
        rows = [[name, len(methods[name]), *cells(methods[name], kind)] for name in ordered]
        robust = [run for run in teachers if run.method == "AT"]
        rows += [["(the robust teacher)", len(robust), *cells(robust, kind)]] if robust else []
        parts += [f"## The {kind} checkpoint", markdown_table(["method", "seeds", *ATTACKS], rows)]
    parts += ["## Which differences exceed two standard errors", READING.replace("\n", " ")]
    attacks = dict.fromkeys((ATTACKS[0], strongest(methods, "best"), ATTACKS[-1]))
    parts += [differences(methods, attack) for attack in attacks]
    return "\n\n".join(parts) + "\n"


def about(runs: Sequence[Run]) -> str:
    """The setting that runs share, in words."""
    shared = runs[0].config
    settings = ", ".join(f"{key} {shared[key]}" for key in SHARED if shared.get(key))
    figures = [run.figures[kind] for run in runs for kind in KINDS]
    sizes = {attack: sorted({found[attack]["n"] for found in figures if attack in found}) for attack in ATTACKS}
    images = ", ".join(f"{attack} {'/'.join(map(str, counts))}" for attack, counts in sizes.items() if counts)
    seeds = ", ".join(map(str, sorted({run.config["seed"] for run in runs})))
    chosen = f"{shared['limit_test']} test images" if shared.get("limit_test") else "the test images"
    return (
        f"Accuracy in %, mean ± sample standard deviation over the seeds {seeds}. Setting: {settings}. Test images: "
        f"{images}. Best is the epoch of the highest PGD-10 accuracy on {chosen}, as the papers choose it."
    )


def own_settings(methods: Mapping[str, Group]) -> list[str]:
    """The settings of the methods' own that are not the defaults, as a paragraph, if there are any."""
    told = defaultdict(list)
    for method, group in methods.items():
        unused = unused_fields(TrainConfig(method=method))
        for spec in fields(TrainConfig):
            value = group[0].config.get(spec.name, spec.default)
            if spec.metadata["group"] == METHOD and spec.name not in {"method", *unused} and value != spec.default:
                told[f"{spelling(spec)} {value}"].append(method)
    listed = [f"`{what}` ({', '.join(who)})" for what, who in told.items()]
    return [f"Methods' own settings that are not the defaults: {'; '.join(listed)}."] if listed else []


def cells(group: Group, kind: str) -> list[str]:
    """Mean and deviation of each attack, with the number of seeds where not all have it; a dash where none has."""
    return [_cell(_values(group, kind, attack), len(group)) for attack in ATTACKS]


def _cell(values: Sequence[float], seeds: int) -> str:
    if not values:
        return NONE
    spread = f" ± {stdev(values):.2f}" if len(values) > 1 else ""
    return f"{mean(values):.2f}{spread}" + f" (of {len(values)})" * (len(values) < seeds)


def _values(group: Group, kind: str, attack: str) -> list[float]:
    values = [run.accuracy(kind, attack) for run in group]
    return [value for value in values if value is not None]


def falling(groups: Mapping[str, Group], kind: str, attack: str) -> list[str]:
    """Names of groups by their mean under an attack; those without one last."""
    means = {name: mean(_values(group, kind, attack) or [-1.0]) for name, group in groups.items()}
    return sorted(means, key=means.get, reverse=True)


def differences(groups: Mapping[str, Group], attack: str, kind: str = "best") -> str:
    """A table of the differences of all pairs, in falling order, under its title."""
    values = {name: _values(group, kind, attack) for name, group in groups.items()}
    values = {name: found for name, found in values.items() if len(found) > 1}
    ordered = [name for name in falling(groups, kind, attack) if name in values]
    rows, bold = [], set()
    for row, name in enumerate(ordered[:-1]):
        gaps = [mean(values[name]) - mean(values[other]) for other in ordered]
        rows.append([name, *(f"{gap:.1f}" if row < column else "" for column, gap in enumerate(gaps) if column)])
        later = range(row + 1, len(ordered))
        bold |= {(row, column) for column in later if exceeds(values[name], values[ordered[column]])}
    if not rows:
        return f"**{attack}**: one seed each."
    title = f"**{attack}**: {len(bold)} of {comb(len(ordered), 2)} pairs differ by more."
    return f"{title}\n\n{markdown_table(['', *ordered[1:]], rows, bold)}"


def exceeds(some: Sequence[float], others: Sequence[float]) -> bool:
    """Whether two means differ by more than two standard errors of their difference."""
    error = (variance(some) / len(some) + variance(others) / len(others)) ** 0.5
    return abs(mean(some) - mean(others)) > 2 * error


def ablation_page(students: Sequence[Run]) -> str | None:
    """DGAD's parts and its beta as Markdown; None where there is no DGAD as it is, or nothing else of it."""
    parts = grouped(students, _part)
    if FULL not in parts or len(parts) == 1:
        return None
    full = parts[FULL]
    betas = {float(name.removeprefix("beta")): group for name, group in parts.items() if name.startswith("beta")}
    betas |= {5.0: full} | ({0.0: parts[WITHOUT_PCR]} if WITHOUT_PCR in parts else {})
    switched = sorted(
        (name for name in parts if not name.startswith("beta")), key=lambda name: (name.count("no"), name)
    )
    rows = [[*("no" if word.startswith("no") else "yes" for word in name.split("_")), parts[name]] for name in switched]
    pages = ["# The parts of DGAD", about([run for group in parts.values() for run in group])]
    pages.append("Bold: more than two standard errors from DGAD with all its parts and beta 5.")
    pages += [_against(full, ["MAP", "ELS", "PCR"], rows, kind) for kind in KINDS]
    pages.append("## The weight of the consistency term (PCR)")
    rows = [[f"{beta:g}", betas[beta]] for beta in sorted(betas)]
    pages += [_against(full, ["beta"], rows, kind) for kind in KINDS]
    return "\n\n".join(pages) + "\n"


def _part(run: Run) -> str | None:
    """The row of the ablation that a run belongs to, as ablation_cpu.sh names it."""
    if run.method != "DGAD":
        return None
    return FULL if not run.word else run.word if run.word.startswith(("MAP", "noMAP", "beta")) else None


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
