"""The comparison with equal tuning: its choices, its table, what it runs, and one run at smoke scale."""

import json
import re

import pytest
from conftest import ROOT, user_error

from engine.training.settings import resolve
from scripts.reproduce import evidence as module
from scripts.reproduce.evidence import RESULTS, SEEDS, TRAINING, evidence, read_results
from scripts.reproduce.evidence_page import page
from scripts.reproduce.study import GRID, PIECES, TRAIN, Run, Study
from utils.config import TrainConfig
from utils.flags import parse

MACHINE = {"device": "CPU", "torch": "2", "scale": "smoke", "flags": []}
COMPARED, TWO = ["AT", "RSLAD", "DGAD"], [1, 2]
AT, RSLAD, DGAD = GRID["AT"][1], GRID["RSLAD"][2], GRID["DGAD"][0]  # what the tuning below chooses


def add(results, run, held_out, ema=None, raw=None):
    """A trained run, evaluated if AutoAttack accuracies are given."""
    epochs = [{"epoch": epoch, "PGD10_acc": value} for epoch, value in enumerate((held_out - 1, held_out, 0), 1)]
    result = results[run.name] = {"epochs": epochs, "train seconds": 9.0, **MACHINE}
    for weights, value in {"ema": ema, "raw": raw}.items():
        if value is not None:
            result[weights] = {"Clean": 2.0 * value, "AutoAttack": value, "images": {"Clean": 9, "AutoAttack": 5}}
            result[f"{weights} seconds"] = 9.0


@pytest.fixture
def results():
    """AT, RSLAD and DGAD tuned with seed 1 and trained with seeds 1 and 2; AT is evaluated."""
    results = {}
    for method, tuned in {"AT": (20, 22, 21), "RSLAD": (20, 19, 23), "DGAD": (23, 20, 19)}.items():
        for flags, held_out in zip(GRID[method], tuned, strict=True):
            add(results, Run(method, flags, 1), held_out)
    for method, flags, held_out in (("RSLAD", RSLAD, 23), ("DGAD", DGAD, 20)):
        add(results, Run(method, flags, 2), held_out)
    for seed, ema in ((1, 20), (2, 22)):
        add(results, Run("AT", AT, seed), 22, ema=ema, raw=18)
    return results


def test_every_method_has_three_values_and_the_flags_of_its_runs_are_valid():
    assert len(SEEDS["full"]) == 3 and all(len(set(values)) == 3 for values in GRID.values())
    for method, values in GRID.items():
        for flags in (*values, *(f"{values[0]} {piece}" for piece in PIECES.values())):
            args = f"--method {method} --teacher_model small_resnet {TRAINING['full']} {flags}".split()
            resolve(*parse(TrainConfig, args, description="", choices={}))


def test_held_out_accuracy_chooses_the_value_and_the_best_distillation(results):
    rows = Study(COMPARED, TWO, results).rows()
    assert rows["RSLAD"] == [Run("RSLAD", RSLAD, seed) for seed in TWO]  # 23 in its second of three epochs
    pieces = [f"{method} + {piece}" for method in ("AT", "RSLAD") for piece in PIECES]  # DGAD: (23 + 20) / 2
    assert list(rows) == [*COMPARED, *pieces] and rows["AT + AWP"][0].flags == f"{AT} {PIECES['AWP']}"


def test_an_evaluation_needs_a_checkpoint_and_comes_first(results, tmp_path):
    study = Study(COMPARED, TWO, results)
    assert {part for _, part in study.steps(tmp_path)} == {TRAIN}  # the checkpoints are on another machine
    run = Run("RSLAD", RSLAD, 1)
    (tmp_path / run.folder / "Folder").mkdir(parents=True)
    (tmp_path / run.folder / "Folder" / "best_PGD10_acc_model.pth").touch()
    ema, raw, *trainings = study.steps(tmp_path)
    assert (ema, raw) == ((run, "ema"), (run, "raw"))
    assert all(part == TRAIN and other.flags != AT for other, part in trainings)  # AT is done


def rows_of(text):
    return {line.split(" | ")[0].strip("| "): line.strip("| ").split(" | ") for line in text.splitlines()[::-1]}


def test_means_errors_and_differences_are_those_computed_by_hand(results):
    for seed, value in ((1, 25), (2, 27)):
        add(results, Run("RSLAD", RSLAD, seed), 23, ema=value)
    text = page(Study(COMPARED, TWO, results))
    averaged, raw, _ = map(rows_of, re.split("## Raw|## Tuning", text))
    # Deviation sqrt(2) over two seeds: two standard errors are 2; of a difference sqrt(8).
    assert averaged["AT"][2:] == ["2", "42.0 ± 4.0", "-", "21.0 ± 2.0", "-"]
    assert averaged["RSLAD"][2:] == ["2", "52.0 ± 4.0", "-", "26.0 ± 2.0", "+5.0 ± 2.8"]
    assert "DGAD" not in averaged  # has no result
    assert raw["AT"][2:] == ["2", "36.0 ± 0.0", "-", "18.0 ± 0.0", "-"] and raw["RSLAD"][2:] == ["0", *["-"] * 4]
    assert "**--kl_weight 3: 23**" in text and "AutoAttack 5, Clean 9" in text


def test_the_committed_page_and_the_table_in_the_readme_are_those_of_the_committed_results():
    folder = ROOT / "results" / "fair"
    text = page(Study(list(GRID), SEEDS["full"], read_results(folder)))
    assert (folder / "fair.md").read_text(encoding="utf-8") == text
    table = text.partition("## Averaged weights\n\n")[2].partition("\n\n")[0]
    assert table in (ROOT / "README.md").read_text(encoding="utf-8")


def test_an_incomplete_study_has_a_table_that_names_what_is_missing(results, tmp_path):
    del results[Run("DGAD", GRID["DGAD"][2], 1).name], results[Run("AT", AT, 2).name]
    (tmp_path / RESULTS).write_text(json.dumps(results))
    evidence(["--table", str(tmp_path), "--methods", "AT", "TRADES", "--seeds", "1", "2"])
    assert {path.name for path in tmp_path.iterdir()} == {RESULTS, "fair.md", "fair.png"}
    text = (tmp_path / "fair.md").read_text()
    comparison = rows_of(text.partition("## Tuning")[0])
    assert comparison["AT"][2] == "1" and not {"DGAD", "TRADES"} & comparison.keys()
    assert "| RSLAD | --kl" in text  # --methods forgets no result
    missing = text.partition("Missing runs:")[2].partition("##")[0]
    for name in (f"TRADES {GRID['TRADES'][2]} --seed 1", f"AT {AT} --seed 2", f"AT {AT} {PIECES['AWP']} --seed 1"):
        assert f" {name};" in missing
    assert f"AT {AT} --seed 1" not in missing and f"RSLAD {GRID['RSLAD'][0]} " not in missing


BAD = {
    "": "--out: required",
    "--out OUT --methods ADA": "--methods ADA: must be among AT, ",
    "--out OUT --jobs 0": "--jobs 0",
    "--out OUT --seeds 1 1": "--seeds 1 1: a seed is repeated",
    "--table OUT": "has no results",
    "--out OUT -- --bs 0": "--bs 0: must be",
    "--table BAD": "no results of evidence.py",
    "--out DONE --scale full": "has results of other scale .smoke",
    "--out DONE --scale smoke -- --epochs 3": "has results of other flags",
}


@pytest.mark.parametrize("flags", BAD)
def test_a_bad_request_is_one_line(results, tmp_path, flags):
    message = BAD[flags]
    for name, content in (("BAD", {"AT": {"epochs": [{}]}}), ("DONE", results)):
        (tmp_path / name).mkdir()
        (tmp_path / name / RESULTS).write_text(json.dumps(content))
    for name in ("OUT", "BAD", "DONE"):
        flags = flags.replace(name, str(tmp_path / name))
    with user_error(message):
        evidence(flags.split())
    assert not (tmp_path / "OUT").exists()


# What evidence.py sees of the scripts. A file "fail" names a flag that fails.
MAIN = """
import json, pathlib, sys
flags = dict(zip(sys.argv[1:], sys.argv[2:]))
fail = pathlib.Path("fail")
if fail.exists() and fail.read_text() in sys.argv:
    sys.exit("error: the reason")
if "--out" in flags:
    folder, name = pathlib.Path(flags["--out"], "x_eval"), "eval.json"
    figures = {attack: {"accuracy": 50.0, "n": 5} for attack in ("Clean", "AutoAttack")}
    text = json.dumps({"evaluations": [{"conditions": {}, "figures": figures}]})
else:
    folder, name, text = pathlib.Path(flags["--root_path"], "run"), "results.csv", "epoch,PGD10_acc\\n1,20\\n"
folder.mkdir(parents=True)
(folder / name).write_text(text)
(folder / "best_PGD10_acc_model.pth").touch()
"""


def test_a_study_reports_what_fails_and_continues(tmp_path, monkeypatch, caplog):
    for name in ("main.py", "main_eval.py"):
        (tmp_path / name).write_text(MAIN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(module, "ROOT", tmp_path)
    caplog.set_level("INFO")
    flags = f"--scale smoke --out out --work {tmp_path / 'work'} --jobs 2 --methods AT RSLAD --seeds 1".split()
    (tmp_path / "fail").write_text("--awp")
    with pytest.raises(SystemExit, match="1"):
        evidence(flags)
    log = tmp_path / "work" / "logs" / "AT_lr_max_0.1_awp"
    assert caplog.text.count(f"failed (status 1): error: the reason (log {log}") == 1
    first = json.loads((tmp_path / "out" / RESULTS).read_text())
    (tmp_path / "fail").unlink()
    evidence(flags)
    results = json.loads((tmp_path / "out" / RESULTS).read_text())
    assert len(results) == 10 and first.items() <= results.items()  # what was done is not repeated
    rows = Study(["AT", "RSLAD"], [1], results).rows()
    assert len(rows) == 6
    assert all({"epochs", "ema", "raw"} <= results[run.name].keys() for runs in rows.values() for run in runs)
    assert (tmp_path / "out" / "fair.md").read_text().count("Missing runs: none.") == 1


@pytest.mark.slow
def test_a_run_is_trained_and_evaluated_at_smoke_scale(tmp_path, run):
    options = module._parser().parse_args(f"--scale smoke --out {tmp_path} --work {tmp_path}".split())
    runner = module.Runner(Study(["IGDM"], [1], {}), options, [])
    one = Run("IGDM", f"{GRID['IGDM'][0]} {PIECES['AWP']}", 1)
    for part in (TRAIN, "ema", "raw"):
        script, *args = runner.command(one, part)
        run(script, " ".join(args))
        runner.add(one, part, "", 1.0)
    assert {"epochs", "ema", "raw"} <= runner.study.results[one.name].keys()
