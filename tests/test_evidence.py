"""The comparison with equal tuning: its choices, its table, and everything at smoke scale."""

import json
from functools import partial

import pytest
from commands import run_in_process
from conftest import ROOT

from scripts.reproduce.evidence import GRID, PIECES, RESULTS, SEEDS, TRAIN, Run, Study, evidence, page, read_results
from utils.config import TrainConfig
from utils.flags import parse

SCRIPT = "scripts/reproduce/evidence.py"
MACHINE = {"device": "CPU", "torch": "2", "scale": "smoke", "flags": []}


@pytest.fixture
def make(monkeypatch, capsys):
    return partial(run_in_process, monkeypatch, capsys, SCRIPT)


def add(results, run, held_out, ema=None, raw=None):
    """A trained run, evaluated if AutoAttack accuracies are given."""
    epochs = [{"epoch": epoch, "PGD10_acc": value} for epoch, value in enumerate((held_out - 1, held_out, 0), 1)]
    evaluated = {"ema": ema, "raw": raw}
    results[run.name] = {"epochs": epochs, **MACHINE} | {
        weights: {"Clean": 2.0 * value, "AutoAttack": value, "images": {"Clean": 9, "AutoAttack": 5}}
        for weights, value in evaluated.items()
        if value is not None
    }


@pytest.fixture
def results():
    """AT, RSLAD and DGAD tuned with seed 1 and trained with seeds 1 and 2; AT is evaluated."""
    results = {}
    for method, tuned in {"AT": (20, 22, 21), "RSLAD": (20, 19, 23), "DGAD": (23, 20, 19)}.items():
        for flags, held_out in zip(GRID[method], tuned, strict=True):
            add(results, Run(method, flags, 1), held_out)
    for method, flags, held_out in (
        ("AT", GRID["AT"][1], 21),
        ("RSLAD", GRID["RSLAD"][2], 23),
        ("DGAD", GRID["DGAD"][0], 20),
    ):
        add(results, Run(method, flags, 2), held_out)
    add(results, Run("AT", GRID["AT"][1], 1), 22, ema=20, raw=18)
    add(results, Run("AT", GRID["AT"][1], 2), 22, ema=22, raw=18)
    return results


METHODS_COMPARED, TWO = ["AT", "RSLAD", "DGAD"], [1, 2]


def test_every_method_has_three_values_and_the_flags_of_its_runs_are_valid():
    for values in GRID.values():
        assert len(set(values)) == 3
        for flags in values:
            parse(TrainConfig, flags.split(), description="", choices={})
    assert len(SEEDS["full"]) == 3


def test_held_out_accuracy_chooses_the_value_and_the_best_distillation(results):
    study = Study(METHODS_COMPARED, TWO, results)
    best = study.rows()["RSLAD"]
    assert best == [Run("RSLAD", GRID["RSLAD"][2], seed) for seed in TWO]  # 23 in its second of three epochs
    assert study.best_distillation() == "RSLAD"  # (23 + 23) / 2, DGAD (23 + 20) / 2
    assert list(study.rows()) == [
        *METHODS_COMPARED,
        *(f"{method} + {piece}" for method in ("AT", "RSLAD") for piece in PIECES),
    ]
    assert study.rows()["AT + AWP"][0].flags == f"{GRID['AT'][1]} {PIECES['AWP']}"


def test_nothing_is_chosen_before_all_that_it_depends_on_is_trained(results, tmp_path):
    first = [step.run for step in Study(METHODS_COMPARED, TWO, {}).steps(tmp_path)]
    assert first == [Run(method, flags, 1) for method in METHODS_COMPARED for flags in GRID[method]]
    del results[Run("DGAD", GRID["DGAD"][0], 2).name]
    study = Study(METHODS_COMPARED, TWO, results)
    assert study.best_distillation() is None and "RSLAD + AWP" not in study.rows() and "AT + AWP" in study.rows()
    del results[Run("DGAD", GRID["DGAD"][1], 1).name]
    assert "DGAD" not in study.rows()


def test_an_evaluation_needs_a_checkpoint_and_trainings_come_first(results, tmp_path):
    study = Study(METHODS_COMPARED, TWO, results)
    assert {step.part for step in study.steps(tmp_path)} == {TRAIN}  # the checkpoints are on another machine
    run = Run("RSLAD", GRID["RSLAD"][2], 1)
    (tmp_path / run.folder / "Folder").mkdir(parents=True)
    (tmp_path / run.folder / "Folder" / "best_PGD10_acc_model.pth").touch()
    steps = study.steps(tmp_path)
    assert [step.part for step in steps[-2:]] == ["ema", "raw"] and steps[-1].run == steps[-2].run == run
    assert all(step.part == TRAIN and step.run.flags != GRID["AT"][1] for step in steps[:-2])  # AT is done


def test_means_errors_and_differences_are_those_computed_by_hand(results):
    for seed, value in ((1, 25), (2, 27)):
        add(results, Run("RSLAD", GRID["RSLAD"][2], seed), 23, ema=value)
    text = page(Study(METHODS_COMPARED, TWO, results))
    rows = {line.split(" | ")[0].strip("| "): line.strip("| ").split(" | ") for line in text.splitlines()[::-1]}
    # Deviation sqrt(2) over two seeds: two standard errors are 2; of a difference sqrt(8).
    assert rows["AT"][2:] == ["2", "42.00 ± 4.00", "-", "21.00 ± 2.00", "36.00 ± 0.00", "-", "18.00 ± 0.00", "-"]
    assert rows["RSLAD"][2:] == ["2", "52.00 ± 4.00", "-", "26.00 ± 2.00", "-", "-", "-", "+5.00 ± 2.83"]
    assert rows["DGAD"][2:] == ["0", *["-"] * 7]
    assert "**--kl_weight 3: 23**" in text and "AutoAttack 5, Clean 9" in text


def test_results_make_a_table_and_a_figure(make, results, tmp_path):
    (tmp_path / RESULTS).write_text(json.dumps(results))
    ended = make(f"--table {tmp_path} --methods AT RSLAD DGAD --seeds 1 2")
    assert ended.status == 0, ended.err
    assert {path.name for path in tmp_path.iterdir()} == {RESULTS, "fair.md", "fair.png"}


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("", "--out: needed"),
        ("--out OUT --methods ADA", "--methods ADA: must be of AT, "),
        ("--out OUT --jobs 0", "--jobs 0"),
        ("--out OUT --minutes nan", "--minutes nan"),
        ("--table OUT", "has no complete results"),
        ("--out OUT -- --bs 0", "--bs 0: must be"),
        ("--table BAD", "no results of evidence.py"),
        ("--out DONE --scale full", "has results of other scale (smoke)"),
        ("--out DONE --scale smoke -- --epochs 3", "has results of other flags ([])"),
    ],
)
def test_a_bad_request_ends_with_one_line(make, results, tmp_path, flags, message):
    for name, content in (("BAD", {"AT": {"epochs": [{}]}}), ("DONE", results)):
        (tmp_path / name).mkdir()
        (tmp_path / name / RESULTS).write_text(json.dumps(content))
    for name in ("OUT", "BAD", "DONE"):
        flags = flags.replace(name, str(tmp_path / name))
    ended = make(flags)
    assert ended.status == 2 and message in ended.err and len(ended.err.splitlines()) == 1
    assert not (tmp_path / "OUT").exists()


@pytest.mark.slow
@pytest.mark.dist
def test_everything_runs_at_smoke_scale_and_continues(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    methods = ["AT", "IGDM"]
    flags = f"--scale smoke --out out --work work --threads 1 --jobs 2 --methods {' '.join(methods)}".split()
    evidence([*flags, "--minutes", "0.3"])
    stopped = read_results(tmp_path / "out")  # what has ended before the time limit, if anything
    evidence(flags)
    results = read_results(tmp_path / "out")
    for name, result in stopped.items():  # what was done is not repeated
        assert results[name]["train seconds"] == result["train seconds"]
    rows = Study(methods, TWO, results).rows()
    assert len(rows) == len(methods) + 4
    assert all({"epochs", "ema", "raw"} <= results[run.name].keys() for runs in rows.values() for run in runs)
    evidence([*flags, "--list"])
    assert capsys.readouterr().out == ""


def test_epochs_of_the_committed_runs_count_from_1():
    for path in ROOT.glob("results/**/raw/**/*.csv"):
        assert path.read_text().splitlines()[1].startswith("1,"), path
