"""The scripts of published tables: what they list fits together, what is finished is skipped, ours beside theirs."""

import csv
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from commands import run_here
from conftest import ROOT

from engine.training.run_folder import RunFolder
from engine.training.settings import resolve
from methods import WITHOUT_TEACHER
from scripts.reproduce.beside import PUBLISHED, beside
from utils.config import EvalConfig, TinyEvalConfig, TinyTrainConfig, TrainConfig
from utils.errors import UserError
from utils.flags import parse

pytestmark = pytest.mark.skipif(os.name != "posix", reason="shell scripts")
REPRODUCE = ROOT / "scripts" / "reproduce"
TABLES = sorted(
    path.stem for path in REPRODUCE.glob("*.sh") if 'source "$(dirname "$0")/table_setting.sh"' in path.read_text()
)
TRAINING = {"main.py": TrainConfig, "main_tiny.py": TinyTrainConfig}
EVALUATING = {"main_eval.py": EvalConfig, "main_eval_tinyimagenet.py": TinyEvalConfig}


def listed(script, out, *options, data=()):
    """Commands that a script lists: each a list of words without the interpreter."""
    command = ["bash", str(REPRODUCE / f"{script}.sh"), "--list", *options, str(out), *data]
    ended = subprocess.run(command, capture_output=True, text=True, check=True)
    lines = [line for line in ended.stdout.splitlines() if not line.startswith("#")]
    assert lines and all(line.startswith("python ") for line in lines)
    return [shlex.split(line)[1:] for line in lines]


@pytest.mark.parametrize("script", [*TABLES, "methods_cpu", "ablation_cpu", "overfitting_cpu"])
def test_listed_commands_fit_together(tmp_path, script):
    for scale in ("full", "short", "smoke"):
        folders, rows = set(), set()
        for name, *words in listed(script, tmp_path, "--scale", scale):
            if name in TRAINING:
                config, given = parse(TRAINING[name], words, description="", choices={})
                config, _ = resolve(config, given)
                teacher = None if config.method in WITHOUT_TEACHER else config.teacher_model
                path = RunFolder(config, teacher=teacher, writes=False).path
                assert path not in folders or config.desc_str.startswith("teacher"), "two runs, one folder"
                for needed in (config.teacher_path, config.std_teacher_path):
                    assert not needed or scale == "full" or os.path.dirname(needed) in map(str, folders), words
                folders.add(path)
            elif name in EVALUATING:
                config = parse(EVALUATING[name], words, description="", choices={}).config
                (judged,) = config.model_path
                outside = script == "rslad_table2" and scale == "full"  # of published teachers
                assert outside or {judged, os.path.dirname(judged)} & set(map(str, folders)), judged
                rows.add(os.path.basename(config.out))
        if script in TABLES and scale != "smoke":
            assert {row["row"] for row in published(script)} <= rows


@pytest.mark.parametrize("script", TABLES)
def test_a_table_is_made_at_the_smallest_scale(script, tmp_path, monkeypatch, capsys):
    rows = []
    for name, *words in listed(script, tmp_path, "--scale", "smoke"):
        ended = run_here(monkeypatch, capsys, name, shlex.join(words))
        assert ended.status == 0, f"{name} {shlex.join(words)}\n{ended.err}"
        rows += [os.path.basename(words[words.index("--out") + 1])] if name in EVALUATING else []
    table = (tmp_path / "figures" / "beside.md").read_text()
    assert rows and all(re.search(rf"^\| {row} \| ours \(1\)( \| [\d.]+){{5}}", table, re.M) for row in rows), table


def test_a_script_carries_out_its_list_and_prints_the_table(tmp_path):
    command = ["bash", str(REPRODUCE / "rslad_table2.sh"), "--scale", "smoke", str(tmp_path)]
    environment = os.environ | {"JOBS": "2", "PYTHON": sys.executable}
    ended = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.count("ours (1)") == 2


def test_data_flags_may_leave_the_data_set_out(tmp_path):
    plain, rooted = (listed("methods_cpu", tmp_path, data=data) for data in ((), ("--data_root", "place")))
    assert [[word for word in line if word not in ("--data_root", "place")] for line in rooted] == plain


def published(table):
    with open(PUBLISHED, newline="") as file:
        return [row for row in csv.DictReader(file) if row["table"] == table]


def test_the_papers_figures_name_tables_of_ours_and_where_they_were_read():
    with open(PUBLISHED, newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["table"] for row in rows} <= set(TABLES)
    assert {row["source"] for row in rows} == {"paper", "quoted", "RobustBench"}
    for row in rows:
        figures = [float(row[key]) for key in list(row)[3:] if row[key]]
        assert figures == sorted(figures, reverse=True), row  # each attack is stronger than the one before it
    assert len({(row["table"], row["row"]) for row in rows}) == len(rows)


CHAINS = """
source {common}
chain "$(line -c 'print(1); open("{out}/a", "a").write("a")')"
chain "$(line -c 'import sys; open("{out}/b", "a").write("b"); sys.exit(open("{out}/may").read() != "yes")')" \\
  "$(line -c 'open("{out}/after", "a").write("c, d")')"
chain "$(line -c 'open("{out}/other", "a").write("o")')"
tell "$(line -c 'print("the table")')"
"""


def test_a_failed_command_ends_its_chain_alone_and_what_is_finished_is_skipped(tmp_path):
    script, out = tmp_path / "chains.sh", tmp_path / "out"
    script.write_text(CHAINS.format(common=REPRODUCE / "common.sh", out=out))
    out.mkdir()

    def run(may):
        (out / "may").write_text(may)
        environment = os.environ | {"JOBS": "2", "PYTHON": sys.executable}
        return subprocess.run(["bash", script, out], capture_output=True, text=True, env=environment, timeout=120)

    ended = run("no")
    assert ended.returncode == 1 and "the table" not in ended.stdout
    assert ended.stderr.splitlines()[-1].startswith("failed:") and str(out / "logs") in ended.stderr
    assert not (out / "after").exists() and (out / "other").exists()
    ended = run("yes")
    assert (ended.returncode, ended.stdout.splitlines()[-1]) == (0, "the table"), ended.stderr
    kept = {name: (out / name).read_text() for name in ("a", "b", "after", "other")}
    assert kept == {"a": "a", "b": "bb", "after": "c, d", "other": "o"}


SETTLED = """
source {common}
chain "$(line -c 'import time; time.sleep(2); open("{out}/late", "w").close()')"
chain "$(line -c 'raise SystemExit(1)')"
settle "$chained"
touch "{out}/further"
"""


def test_a_failure_that_others_wait_for_ends_the_script_when_all_chains_have_ended(tmp_path):
    script, out = tmp_path / "chains.sh", tmp_path / "out"
    script.write_text(SETTLED.format(common=REPRODUCE / "common.sh", out=out))
    environment = os.environ | {"JOBS": "2", "PYTHON": sys.executable}
    with open(tmp_path / "told", "w") as told:  # the end of a pipe would be that of the last chain
        status = subprocess.run(
            ["bash", script, out], stdout=told, stderr=told, env=environment, timeout=120
        ).returncode
    assert (out / "late").exists() and not (out / "further").exists()
    assert status == 1 and (tmp_path / "told").read_text().splitlines()[-1].startswith("failed:")


KEEPING = """
source {common}
chain "$(line -c 'import sys; print(sys.argv[1])' "$state")"
settle
"""


def test_pieces_of_an_evaluation_lie_apart_for_each_revision_wherever_out_is(tmp_path):
    script, out = tmp_path / "chains.sh", tmp_path / "an out (1)"
    script.write_text(KEEPING.format(common=REPRODUCE / "common.sh"))
    environment = os.environ | {"PYTHON": sys.executable}
    ended = subprocess.run(["bash", script, out], capture_output=True, text=True, env=environment, timeout=120)
    assert ended.returncode == 0, ended.stderr
    (log,) = (out / "logs").iterdir()
    place = Path(log.read_text().strip())
    assert place.parent == out / "state" and place.name  # the revision, or what stands for one outside of git


def keep(place, **accuracies):
    place.mkdir(parents=True)
    figures = {title: {"accuracy": value, "n": 500} for title, value in accuracies.items()}
    (place / "eval.json").write_text(json.dumps({"evaluations": [{"conditions": {}, "figures": figures}]}))


def test_ours_stand_beside_theirs_with_their_spread_and_the_number_of_images(tmp_path, caplog):
    keep(tmp_path / "ARD_AT/seed1_eval", Clean=80.0, AutoAttack=47.0)
    keep(tmp_path / "ARD_AT/seed2_eval", Clean=82.0)
    keep(tmp_path / "of_ours/seed1_eval", Clean=50.0)
    beside(["iad_cifar100", str(tmp_path), "--scale", "short"])
    lines = (tmp_path / "beside.md").read_text().splitlines()
    assert "| ARD_AT | paper | 56.65 | 35.82 | 27.04 | - | 25.30 | 23.34 |" in lines
    assert "| ARD_AT | ours (2) | 81.00 ± 1.41 | - | - | - | - | 47.00 |" in lines
    assert "| of_ours | ours (1) | 50.00 | - | - | - | - | - |" in lines
    assert lines[-1] == "accuracy in %; ours at scale short, images: Clean 500, AutoAttack 500"
    with pytest.raises(UserError, match="no_such_table"):
        beside(["no_such_table", str(tmp_path / "nothing")])
