"""The evidence: its tables say what the runs' figures say, and those in results/ come from the runs beside them."""

import json
import shutil
from functools import partial

import matplotlib.pyplot as plt
import pytest
from commands import run_here
from conftest import ROOT

from engine.training.run_folder import ALPHA_COLUMNS, COLUMNS, RELIABILITY_COLUMNS
from methods import METHODS
from scripts.reproduce.evidence import exceeds
from scripts.reproduce.evidence_pictures import alpha, overfitting, reliability
from scripts.reproduce.evidence_runs import read_runs
from utils.tables import write_csv

KEPT = ROOT / "results" / "cpu"


def keep_run(folder, method, seed, accuracies, word="", watched=False, eps=0.1, epochs=6):
    """A run's folder as a training and an evaluation leave it; accuracies by attack."""
    folder = folder / f"{method}_{seed}_{word}"
    for kind in ("best_PGD10_acc_model_eval", "last_epoch_model_eval"):
        (folder / kind).mkdir(parents=True)
        figures = {
            attack: {"accuracy": value, "n": 10, "bounded": True, "per_class": {"cat": value, "dog": value}}
            for attack, value in accuracies.items()
        }
        kept = {"evaluations": [{"conditions": {"checkpoint": "x.pth", "eps": eps}, "figures": figures}]}
        (folder / kind / "eval.json").write_text(json.dumps(kept))
    config = {"method": method, "seed": seed, "desc_str": word, "model": "small_resnet", "epochs": epochs}
    (folder / "config.json").write_text(json.dumps(config))
    rows = [{"epoch": epoch, "train_adv_acc": 20 * epoch, "PGD10_acc": 25 - epoch} for epoch in range(3)]
    write_csv(folder / "results.csv", COLUMNS, [[row.get(name, "") for name in COLUMNS] for row in rows])
    if watched:
        columns = (*RELIABILITY_COLUMNS, *ALPHA_COLUMNS)
        unknown, known = [0, 10, 50, *[""] * (len(columns) - 3)], [1, 10, 50, 40, *range(len(ALPHA_COLUMNS))]
        write_csv(folder / "reliability.csv", columns, [unknown, known])


@pytest.fixture
def show(monkeypatch, capsys):
    return partial(run_here, monkeypatch, capsys, "scripts/reproduce/evidence.py")


@pytest.fixture
def runs(tmp_path):
    for seed, (at, dgad) in enumerate([(20, 30), (22, 31), (24, 32)], start=1):
        keep_run(tmp_path / "runs", "AT", seed, {"Clean": 2 * at, "AutoAttack": at})
        keep_run(tmp_path / "runs", "DGAD", seed, {"Clean": 50 - seed, "AutoAttack": dgad})
        keep_run(tmp_path / "runs", "DGAD", seed, {"Clean": 40 + seed}, "noMAP_ELS_PCR")
        keep_run(tmp_path / "runs", "DGAD", seed, {"Clean": 48 + seed}, "beta1")
    keep_run(tmp_path / "runs", "AT", 42, {"Clean": 60, "AutoAttack": 40}, "teacher")
    return tmp_path / "runs"


def rows_of(path):
    lines = [line for line in path.read_text().splitlines() if line.startswith("| ") and not line.startswith("| ---")]
    return [line.strip("| ").split(" | ") for line in lines]


def test_the_methods_by_hand(show, runs, tmp_path):
    assert show(f"{runs} --out {tmp_path / 'out'}").status == 0
    rows = rows_of(tmp_path / "out" / "methods.md")
    assert rows[1] == ["DGAD", "3", "48.00 ± 1.00", "-", "-", "-", "31.00 ± 1.00"]
    assert rows[2] == ["AT", "3", "44.00 ± 4.00", "-", "-", "-", "22.00 ± 2.00"]
    assert rows[3] == ["(the robust teacher)", "1", "60.00", "-", "-", "-", "40.00"]
    clean, robust = (rows[number] for number in (-3, -1))
    assert clean == ["DGAD", "4.0"]  # two standard errors: 2 sqrt((1 + 16) / 3) = 4.8
    assert robust == ["DGAD", "**9.0**"]  # 2 sqrt((1 + 4) / 3) = 2.6


def test_runs_without_clean_figures_have_their_tables_and_no_picture_of_a_tradeoff(show, tmp_path):
    for method, accuracy in (("AT", 20), ("DGAD", 30)):
        keep_run(tmp_path / "runs", method, 1, {"AutoAttack": accuracy})
    ended = show(f"{tmp_path / 'runs'} --out {tmp_path / 'out'}")
    assert ended.status == 0, ended.err
    made = {path.name for path in (tmp_path / "out").iterdir()}
    assert "methods.md" in made and "tradeoff.png" not in made


def test_the_ablation_by_hand(show, runs, tmp_path):
    assert show(f"{runs} --out {tmp_path / 'out'}").status == 0
    rows = rows_of(tmp_path / "out" / "ablation.md")
    assert rows[1] == ["yes", "yes", "yes", "3", "48.00 ± 1.00", "-", "-", "-", "31.00 ± 1.00"]
    assert rows[2] == ["no", "yes", "yes", "3", "**42.00 ± 1.00**", "-", "-", "-", "-"]
    assert rows[-2] == ["1", "3", "**50.00 ± 1.00**", "-", "-", "-", "-"]
    assert rows[-1] == ["5", "3", "48.00 ± 1.00", "-", "-", "-", "31.00 ± 1.00"]


def test_two_standard_errors_by_hand():
    assert exceeds([1.0, 3.0], [4.0, 6.0]) is True  # 3 > 2 sqrt(2 / 2 + 2 / 2) = 2.83
    assert exceeds([1.0, 3.0], [3.8, 5.8]) is False


def test_each_picture_is_drawn_once_there_is_something_to_show(show, runs, tmp_path):
    assert show(f"{runs} --out {tmp_path / 'some'}").status == 0
    assert sorted(path.name for path in (tmp_path / "some").glob("*.png")) == ["tradeoff.png"]
    keep_run(runs, "IAD-I", 1, {"PGD-20": 20}, "long", watched=True, epochs=60)
    keep_run(runs, "TRADES", 1, {"Clean": 30, "PGD-20": 20, "AutoAttack": 10})
    assert show(f"{runs} --out {tmp_path / 'all'}").status == 0
    drawn = sorted(path.stem for path in (tmp_path / "all").glob("*.png"))
    assert drawn == ["alpha", "overfitting", "per_class", "reliability", "tradeoff"]


def test_curves_are_means_over_seeds_with_their_spread(tmp_path):
    for seed, gain in ((1, 0), (2, 4)):
        keep_run(tmp_path, "IAD-I", seed, {"PGD-20": 20}, "long", watched=True)
        results = tmp_path / f"IAD-I_{seed}_long" / "results.csv"
        rows = [{"epoch": epoch, "train_adv_acc": 0, "PGD10_acc": 30 - epoch + gain * epoch} for epoch in range(3)]
        write_csv(results, COLUMNS, [[row.get(name, "") for name in COLUMNS] for row in rows])
    runs = read_runs(tmp_path)
    (axes,) = overfitting(runs).axes
    curve, best, _ = axes.get_lines()
    assert curve.get_label() == "IAD-I (2 seeds): test, PGD-10"
    assert curve.get_xydata().tolist() == [[1, 30], [2, 31], [3, 32]] and best.get_xydata().tolist() == [[3, 32]]
    (band,) = axes.collections
    assert {tuple(point) for point in band.get_paths()[0].vertices} >= {(2, 29), (2, 33), (3, 28), (3, 36)}
    (axes,) = reliability(runs).axes
    assert [line.get_ydata().tolist() for line in axes.get_lines()] == [[50, 50], [40]]
    (axes,) = alpha(runs).axes
    shares = [100 * number / sum(range(len(ALPHA_COLUMNS))) for number in range(len(ALPHA_COLUMNS))]
    assert axes.patches[0].get_data().values.tolist() == pytest.approx(shares)  # as both seeds have them
    plt.close("all")


@pytest.mark.parametrize(
    ("left", "made"),
    [("*_long", ["overfitting.png"]), ("DGAD_*_beta1", []), ("AT_?_", ["methods.md"])],
    ids=["overfitting alone", "no DGAD as it is", "one method"],
)
def test_what_a_single_script_left_makes_what_it_can(show, runs, tmp_path, left, made):
    keep_run(runs, "AT", 1, {}, "long")
    for folder in set(runs.iterdir()) - set(runs.glob(left)):
        shutil.rmtree(folder)
    ended = show(f"{runs} --out {tmp_path / 'out'}")
    assert ended.status == 0 and sorted(path.name for path in (tmp_path / "out").iterdir()) == made


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda folder: shutil.rmtree(folder) or folder.mkdir(), "no evaluated run of a student"),
        (lambda folder: (folder / "AT_1_" / "results.csv").unlink(), "no whole run"),
        (lambda folder: (folder / "AT_1_" / "config.json").write_text("{"), "no whole run"),
        (lambda folder: shutil.copytree(folder / "AT_1_", folder / "again"), "AT 1 is there 2 times"),
        (lambda folder: keep_run(folder, "AT", 9, {"Clean": 1}, eps=0.2), "different conditions"),
        (lambda folder: keep_run(folder, "AT", 9, {"Clean": 1}, epochs=7), "trained at --epochs 6 and 7"),
    ],
    ids=["empty", "no rows", "damaged", "twice", "other conditions", "other settings"],
)
def test_what_is_no_evidence_is_told_in_one_line(show, runs, tmp_path, spoil, words):
    spoil(runs)
    ended = show(f"{runs} --out {tmp_path / 'out'}")
    assert ended.status == 2 and words in ended.err and len(ended.err.splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_a_figure_of_fewer_seeds_says_so(show, runs, tmp_path):
    keep_run(runs, "AT", 4, {"Clean": 52})
    assert show(f"{runs} --out {tmp_path / 'out'}").status == 0
    row = next(row for row in rows_of(tmp_path / "out" / "methods.md") if row[0] == "AT")
    assert row[2] == "46.00 ± 5.16" and row[-1] == "22.00 ± 2.00 (of 3)"


def test_runs_that_are_still_trained_are_left_out_and_counted(show, runs, tmp_path):
    keep_run(runs, "AT", 4, {"Clean": 52})
    for kept in (runs / "AT_4_").glob("*_eval"):
        shutil.rmtree(kept)
    ended = show(f"{runs} --out {tmp_path / 'out'}")
    assert ended.status == 0 and "1 runs that are not evaluated" in ended.out + ended.err
    assert "| AT | 3 |" in (tmp_path / "out" / "methods.md").read_text()


@pytest.mark.parametrize("page", sorted(path.name for path in KEPT.glob("*.md")))
def test_the_kept_tables_come_from_the_kept_runs(show, tmp_path, page):
    assert show(f"{KEPT / 'raw'} --out {tmp_path}").status == 0
    assert (tmp_path / page).read_text() == (KEPT / page).read_text()


def test_the_readme_shows_the_kept_table():
    best = (KEPT / "methods.md").read_text().partition("## The last")[0]
    shown = (ROOT / "README.md").read_text()
    lines = [line.strip("| ").split(" | ") for line in best.splitlines() if " ± " in line and line.startswith("|")]
    assert len(lines) == len(METHODS)
    for name, _, *figures in lines:
        assert f"| {name} | {' | '.join(figures)} |" in shown
