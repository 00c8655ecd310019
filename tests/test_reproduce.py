"""The tables of published results: commands fit together, finished ones are skipped, ours appear next to theirs."""

import json
from pathlib import Path

import pytest
from conftest import user_error

from engine.training.settings import resolve
from scripts.reproduce.reproduce import Planner, Run, _table, carry_out, load_tables, reproduce, show
from utils.config import EvalConfig, TinyEvalConfig, TinyTrainConfig, TrainConfig
from utils.flags import parse

TABLES = load_tables()
TRAINING = {"main.py": TrainConfig, "main_tiny.py": TinyTrainConfig}
EVALUATION = {"main_eval.py": EvalConfig, "main_eval_tinyimagenet.py": TinyEvalConfig}


def planned(out, scale, tables, seeds=(), data=(), teacher=None):
    planner = Planner(out, scale, seeds, teacher, data)
    return planner, {name: planner.plan(TABLES[name], ["*"]) for name in tables}


@pytest.mark.parametrize("table", TABLES)
@pytest.mark.parametrize("scale", ["full", "short", "smoke"])
def test_the_commands_of_a_table_fit_together(tmp_path, table, scale):
    planner, _ = planned(tmp_path, scale, [table], data=["--threads", "1"])
    folders, published = set(), {row.file for row in TABLES[table] if row.file}
    for run in planner.runs.values():
        for script, *flags in run.commands:
            if script in TRAINING:
                config, _ = resolve(*parse(TRAINING[script], flags, description="", choices={}))
                assert run.folder not in folders
                assert config.bs == 128 or scale == "smoke" or not table.startswith("IAD")  # ARD's own code: 256
                for needed in filter(None, (config.teacher_path, config.std_teacher_path)):
                    assert Path(needed).parent in folders or any(needed.endswith(file) for file in published)
                folders.add(run.folder)
            else:
                config = parse(EVALUATION[script], flags, description="", choices={}).config
                (checkpoint,) = map(Path, config.model_path)
                assert {checkpoint, checkpoint.parent} & folders or scale == "full"
            assert config.threads == 1


def test_seeds_data_and_rows_are_those_of_the_command_line(tmp_path):
    planner, rows = planned(tmp_path, "full", ["CPU-methods"], [4, 5], ["--dataset=folder", "--data_root", "d"])
    folders = [run.folder for run in rows["CPU-methods"]["RSLAD"]]
    names = [f"small_resnet_from_small_resnet_eps8_seed{seed}" for seed in (4, 5)]
    assert folders == [tmp_path / "cpu" / "Folder" / "RSLAD" / name for name in names]
    planner = Planner(tmp_path, "full", [], "/there.pt", [])
    assert list(planner.plan(TABLES["DGAD-CIFAR10"], ["DGAD_*18"])) == ["DGAD_resnet18"]
    teacher, student = planner.runs.values()  # the teacher is added
    assert "/there.pt" in student.commands[0] and "/there.pt" in teacher.commands[0]


@pytest.mark.slow
@pytest.mark.parametrize("group", ["IAD", "RSLAD", "DGAD", "CPU", "precision", "GPU"])
def test_every_table_is_made_at_smoke_scale(group, tmp_path, run):
    planner, tables = planned(tmp_path, "smoke", [name for name in TABLES if name.startswith(group)], [1])
    for each in planner.runs.values():
        for script, *flags in each.commands:
            run(script, " ".join(flags))
    for name, rows in tables.items():
        show(name, {row: [run.folder for run in runs] for row, runs in rows.items()}, tmp_path, "smoke")
        text = (tmp_path / f"{name}.md").read_text()
        evaluated = [row for row, (run_of_row,) in rows.items() if len(run_of_row.commands) > 1]
        assert evaluated and all(f"| {row} | ours, " in text for row in evaluated)


BAD = {
    "--table": "must be one of IAD-2-CIFAR10, ",
    "--table IAD-14": "must be one of",
    "--table IAD-4 --rows ADR": "no such row in IAD-4",
    "--table RSLAD-3-CIFAR10 --rows AT typo": "--rows typo: no such row in RSLAD-3-CIFAR10",
    "--table IAD-4 --seeds 1 1": "--seeds 1 1: a seed is repeated",
    "--table IAD-4 --jobs 0": "--jobs 0: must be at least 1",
    "--table IAD-4 -- --epochs 3": "unrecognized arguments: --epochs 3",
    "--table RSLAD-2": "models/model_cifar_wrn.pt: no such teacher",
}


@pytest.mark.parametrize("flags", BAD)
def test_a_bad_request_is_one_line(tmp_path, flags):
    with user_error(BAD[flags]):
        reproduce(["--out", str(tmp_path / "out"), *flags.split()])
    assert not (tmp_path / "out").exists()


def test_the_program_lists_commands(caplog):
    caplog.set_level("INFO")
    reproduce(["--table", "RSLAD-3-CIFAR10", "--rows", "RSLAD", "--scale", "full", "--list"])
    scripts = [line.split()[1] for line in caplog.messages]
    assert scripts == ["main_eval.py", "main.py", "main_eval.py"]


def test_a_failure_stops_only_the_runs_that_need_it_and_finished_commands_are_skipped(tmp_path, monkeypatch, caplog):
    caplog.set_level("INFO")
    fails = "sys.argv[1] == 'b' and not os.path.exists('may')"
    for name in ("main.py", "main_tiny.py"):
        (tmp_path / name).write_text(f"import os, sys; open('log', 'a').write(sys.argv[1]); sys.exit({fails})")
    (tmp_path / "main_eval.py").write_text("import os, sys; print(sys.argv[2:]); sys.exit(not os.path.exists('may'))")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("scripts.reproduce.reproduce.ROOT", tmp_path)
    monkeypatch.setattr("scripts.reproduce.reproduce.versions", lambda: {"git": "abc"})

    def run(name, *args, needs=()):
        return Run(name, [["main.py", name], *args], tmp_path, tmp_path / "best.pth", list(needs))

    a, b = run("a", ["main_eval.py", "x"]), run("b", ["main_tiny.py", "c"])
    runs = [run("d", needs=[b]), b, run("e", needs=[a]), a]
    assert carry_out(runs, tmp_path / "out", 2) is False  # e needs only the training of a
    assert sorted((tmp_path / "log").read_text()) == ["a", "b", "e"]
    assert "d: skipped" in caplog.text and caplog.text.count("b main: failed (status 1)") == 1
    (tmp_path / "may").touch()
    assert carry_out(runs, tmp_path / "out", 1) is True
    assert (tmp_path / "log").read_text()[3:] == "bdc"
    state = str(["--state", str(tmp_path / "out/state/abc")])  # unfinished evaluations are kept apart by revision
    assert (tmp_path / "out/logs/a_main_eval.txt").read_text().count(state) == 2


def write_evaluation(folder, **accuracies):
    folder.mkdir(parents=True)
    figures = {attack: {"accuracy": value, "n": 500} for attack, value in accuracies.items()}
    (folder / "eval.json").write_text(json.dumps({"evaluations": [{"conditions": {}, "figures": figures}]}))


def test_our_results_are_beside_the_papers_with_deviation_and_number_of_images(tmp_path):
    write_evaluation(tmp_path / "s1/best_PGD10_acc_model_eval", Clean=80.0, AutoAttack=47.0)
    write_evaluation(tmp_path / "s2/best_PGD10_acc_model_eval", Clean=82.0)
    write_evaluation(tmp_path / "other/last_epoch_model_eval", Clean=50.0)
    rows = {"ARD_AT": [tmp_path / "s1", tmp_path / "s2"], "own": [tmp_path / "other"]}
    show("IAD-2-CIFAR100", rows, tmp_path, "short")
    lines = (tmp_path / "IAD-2-CIFAR100.md").read_text().splitlines()
    assert "| ARD_AT | paper | 56.65 | 35.82 | 27.04 | - | 25.30 | 23.34 |" in lines
    assert "| ARD_AT | ours, best (2) | 81.00 ± 1.41 | - | - | - | - | 47.00 |" in lines
    assert "| own | ours, last (1) | 50.00 | - | - | - | - | - |" in lines
    assert lines[-1].endswith("ours at scale short, test images: Clean 500, AutoAttack 500")


def test_the_papers_results_belong_to_rows_of_ours_and_name_their_source():
    published = _table("published")
    assert {line["source"] for line in published} == {"paper", "quoted", "RobustBench"}
    assert len({(line["table"], line["row"]) for line in published}) == len(published)
    for line in published:
        accuracies = [float(line[key]) for key in list(line)[3:] if line[key]]
        assert accuracies == sorted(accuracies, reverse=True), line  # from the weakest to the strongest attack
        if line["table"] in TABLES:
            assert line["row"] in {row.row for row in TABLES[line["table"]]}, line
