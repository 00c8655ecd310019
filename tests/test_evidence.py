"""The evidence: its tables agree with the runs, and those in results/ are made from the raw files beside them."""

import json
import shutil
from functools import partial

import matplotlib.pyplot as plt
import pytest
from commands import run_in_process
from conftest import ROOT

from engine.training.run_folder import ALPHA_COLUMNS, COLUMNS, RELIABILITY_COLUMNS
from scripts.reproduce.evidence import alpha, exceeds, overfitting, read_runs, reliability
from utils.tables import write_csv

CPU = ROOT / "results" / "cpu"


def write_run(folder, method, seed, accuracies, suffix="", eps=0.1, epochs=6, robust=(25, 24, 23)):
    """A run folder as a training and an evaluation write it; accuracies by attack. Long runs have a reliability.csv."""
    folder = folder / f"{method}_{seed}_{suffix}"
    for kind in ("best_PGD10_acc_model_eval", "last_epoch_model_eval"):
        (folder / kind).mkdir(parents=True)
        figures = {
            attack: {"accuracy": value, "n": 10, "bounded": True, "per_class": {"cat": value, "dog": value}}
            for attack, value in accuracies.items()
        }
        evaluation = {"conditions": {"checkpoint": "x.pth", "eps": eps}, "figures": figures}
        (folder / kind / "eval.json").write_text(json.dumps({"evaluations": [evaluation]}))
    config = {"method": method, "seed": seed, "desc_str": suffix, "model": "small_resnet", "epochs": epochs}
    (folder / "config.json").write_text(json.dumps(config))
    rows = [{"epoch": epoch, "train_adv_acc": 20, "PGD10_acc": value} for epoch, value in enumerate(robust, 1)]
    write_csv(folder / "results.csv", COLUMNS, [[row.get(name, "") for name in COLUMNS] for row in rows])
    if suffix == "long" and method != "AT":
        columns = (*RELIABILITY_COLUMNS, *ALPHA_COLUMNS)
        without, complete = [1, 10, 50, *[""] * (len(columns) - 3)], [2, 10, 50, 40, *range(len(ALPHA_COLUMNS))]
        write_csv(folder / "reliability.csv", columns, [without, complete])


@pytest.fixture
def make(monkeypatch, capsys):
    return partial(run_in_process, monkeypatch, capsys, "scripts/reproduce/evidence.py")


@pytest.fixture
def runs(tmp_path):
    for seed, (at, dgad) in enumerate([(20, 30), (22, 31), (24, 32)], start=1):
        write_run(tmp_path / "runs", "AT", seed, {"Clean": 2 * at, "AutoAttack": at})
        write_run(tmp_path / "runs", "DGAD", seed, {"Clean": 50 - seed, "AutoAttack": dgad})
        write_run(tmp_path / "runs", "DGAD", seed, {"Clean": 40 + seed}, "noMAP_ELS_PCR")
        write_run(tmp_path / "runs", "DGAD", seed, {"Clean": 48 + seed}, "beta1")
    write_run(tmp_path / "runs", "AT", 42, {"Clean": 60, "AutoAttack": 40}, "teacher")
    return tmp_path / "runs"


def rows_of(path):
    lines = [line for line in path.read_text().splitlines() if line.startswith("| ") and not line.startswith("| ---")]
    return [line.strip("| ").split(" | ") for line in lines]


def test_means_deviations_and_differences_are_those_computed_by_hand(make, runs, tmp_path):
    assert make(f"{runs} --out {tmp_path / 'out'}").status == 0
    rows = rows_of(tmp_path / "out" / "methods.md")
    assert rows[1] == ["DGAD", "3", "48.00 ± 1.00", "-", "-", "-", "31.00 ± 1.00"]
    assert rows[2] == ["AT", "3", "44.00 ± 4.00", "-", "-", "-", "22.00 ± 2.00"]
    assert rows[3] == ["(the robust teacher)", "1", "60.00", "-", "-", "-", "40.00"]
    assert rows[-3] == ["DGAD", "4.0"]  # two standard errors: 2 sqrt((1 + 16) / 3) = 4.8
    assert rows[-1] == ["DGAD", "**9.0**"]  # 2 sqrt((1 + 4) / 3) = 2.6
    assert exceeds([1.0, 3.0], [4.0, 6.0]) is True  # 3 > 2 sqrt(2 / 2 + 2 / 2) = 2.83
    assert exceeds([1.0, 3.0], [3.8, 5.8]) is False
    rows = rows_of(tmp_path / "out" / "ablation.md")
    assert rows[1] == ["yes", "yes", "yes", "5", "3", "48.00 ± 1.00", "-", "-", "-", "31.00 ± 1.00"]
    assert rows[2] == ["yes", "yes", "yes", "1", "3", "**50.00 ± 1.00**", "-", "-", "-", "-"]
    assert rows[3] == ["no", "yes", "yes", "5", "3", "**42.00 ± 1.00**", "-", "-", "-", "-"]


def test_each_figure_is_drawn_if_the_runs_have_its_data(make, runs, tmp_path):
    assert make(f"{runs} --out {tmp_path / 'some'}").status == 0
    assert [path.name for path in (tmp_path / "some").glob("*.png")] == ["tradeoff.png"]
    write_run(runs, "IAD-I", 1, {"PGD-20": 20}, "long", epochs=60)
    write_run(runs, "TRADES", 1, {"Clean": 30, "PGD-20": 20, "AutoAttack": 10})
    assert make(f"{runs} --out {tmp_path / 'all'}").status == 0
    drawn = sorted(path.stem for path in (tmp_path / "all").glob("*.png"))
    assert drawn == ["alpha", "overfitting", "per_class", "reliability", "tradeoff"]


def test_curves_are_means_over_seeds_with_their_range(tmp_path):
    write_run(tmp_path, "IAD-I", 1, {"PGD-20": 20}, "long", robust=(30, 29, "", 28))  # "": not validated
    write_run(tmp_path, "IAD-I", 2, {"PGD-20": 20}, "long", robust=(30, 33, "", 36))
    runs = read_runs(tmp_path)
    (axes,) = overfitting(runs).axes
    curve, best, _ = axes.get_lines()
    assert curve.get_label() == "IAD-I (2 seeds): test, PGD-10"
    assert curve.get_xydata().tolist() == [[1, 30], [2, 31], [4, 32]] and best.get_xydata().tolist() == [[4, 32]]
    (band,) = axes.collections
    assert {tuple(point) for point in band.get_paths()[0].vertices} >= {(2, 29), (2, 33), (4, 28), (4, 36)}
    (axes,) = reliability(runs).axes
    assert [line.get_ydata().tolist() for line in axes.get_lines()] == [[50, 50], [40]]
    (axes,) = alpha(runs).axes
    shares = [100 * number / sum(range(len(ALPHA_COLUMNS))) for number in range(len(ALPHA_COLUMNS))]
    assert axes.patches[0].get_data().values.tolist() == pytest.approx(shares)  # both seeds have the same
    plt.close("all")


@pytest.mark.parametrize(
    ("pattern", "made"), [("*_long", ["overfitting.png"]), ("DGAD_*_beta1", []), ("AT_?_", ["methods.md"])]
)
def test_the_runs_of_one_table_make_what_they_can(make, runs, tmp_path, pattern, made):
    write_run(runs, "AT", 1, {}, "long")
    for folder in set(runs.iterdir()) - set(runs.glob(pattern)):
        shutil.rmtree(folder)
    assert make(f"{runs} --out {tmp_path / 'out'}").status == 0
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == made


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda folder: shutil.rmtree(folder) or folder.mkdir(), "no evaluated student"),
        (lambda folder: (folder / "AT_1_" / "results.csv").unlink(), "incomplete run"),
        (lambda folder: (folder / "AT_1_" / "config.json").write_text("{"), "incomplete run"),
        (lambda folder: shutil.copytree(folder / "AT_1_", folder / "again"), "AT 1 is there 2 times"),
        (lambda folder: write_run(folder, "AT", 9, {"Clean": 1}, eps=0.2), "different conditions"),
        (lambda folder: write_run(folder, "AT", 9, {"Clean": 1}, epochs=7), "trained with --epochs 6 and 7"),
    ],
    ids=["empty", "no rows", "damaged", "twice", "other conditions", "other settings"],
)
def test_runs_that_make_no_table_end_with_one_line(make, runs, tmp_path, spoil, message):
    spoil(runs)
    ended = make(f"{runs} --out {tmp_path / 'out'}")
    assert ended.status == 2 and message in ended.err and len(ended.err.splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_missing_evaluations_are_reported(make, runs, tmp_path):
    write_run(runs, "AT", 4, {"Clean": 52})
    write_run(runs, "AT", 5, {})
    for folder in (runs / "AT_5_").glob("*_eval"):
        shutil.rmtree(folder)
    ended = make(f"{runs} --out {tmp_path / 'out'}")
    assert ended.status == 0 and "1 runs that are not evaluated" in ended.out
    row = next(row for row in rows_of(tmp_path / "out" / "methods.md") if row[0] == "AT")
    assert row[1:3] == ["4", "46.00 ± 5.16"] and row[-1] == "22.00 ± 2.00 (of 3)"


def test_the_committed_tables_and_figures_come_from_the_committed_runs(make, tmp_path):
    assert make(f"{CPU / 'raw'} --out {tmp_path}").status == 0
    assert {path.name for path in tmp_path.iterdir()} == {path.name for path in CPU.iterdir()} - {"raw"}
    for page in tmp_path.glob("*.md"):
        assert page.read_text() == (CPU / page.name).read_text()


def test_epochs_of_the_committed_runs_count_from_1():
    for path in ROOT.glob("results/**/raw/**/*.csv"):
        assert path.read_text().splitlines()[1].startswith("1,"), path
