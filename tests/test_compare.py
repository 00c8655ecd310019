"""Tables in every format, and the comparison of evaluated runs."""

import hashlib
import json
import re
import shutil
from pathlib import Path
from unittest.mock import Mock

import matplotlib.pyplot as plt
import pytest
from commands import SMALL
from conftest import user_error
from PIL import Image
from run_files import contents

from engine.reporting.tables import read_rows, shared_attack, shown_columns
from scripts.compare import compare, draw
from utils.plots import save_curves
from utils.tables import latex_table, markdown_table, read_csv, text_table

HEADER = ["network", "Clean (n=20)"]
ROWS = [["a_b|c", "46.50"], ["d", "47.00 ± 0.71"], ["e", "-"]]

BEST, LAST = "best_PGD10_acc_model.pth", "last_epoch_model.pth"
RESULTS = {"Clean": 90, "PGD-20": 50, "AutoAttack": 40}


def test_cells_cannot_break_a_table():
    lines = markdown_table(HEADER, [*ROWS, ["x\ny\x1b[31m\ud800", "1"]], bold={(0, 1)}).splitlines()
    assert [len(re.findall(r"(?<!\\)\|", line)) for line in lines] == [3] * 6
    assert lines[2] == r"| a_b\|c | **46.50** |"
    latex = latex_table(["C&W"], [["%_&#${}~^\\"], ["[x]"], ["1 ± 2"]], bold={(2, 0)})
    assert [line.split() for line in latex.splitlines()] == [
        [r"\begin{tabular}{l}"],
        [r"\toprule"],
        [r"C\&W", r"\\"],
        [r"\midrule"],
        [r"\%\_\&\#\$\{\}\textasciitilde{}\^{}\textbackslash{}", r"\\"],
        [r"{[}x]", r"\\"],
        [r"\textbf{1", r"$\pm$", r"2}", r"\\"],
        [r"\bottomrule"],
        [r"\end{tabular}"],
    ]


@pytest.fixture(autouse=True)
def folder(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)


def table(arguments):
    """Compare; return the table's rows."""
    compare(arguments.split())
    return read_csv("comparison/comparison.csv")


def make_evaluation(run, results=None, checkpoint=BEST, n=20, details=None, **conditions):
    """Add an evaluation of a run's checkpoint; ``n`` images, or one number per attack; ``details`` per attack."""
    results = results or RESULTS
    n = n if isinstance(n, dict) else dict.fromkeys(results, n)
    entry = {"checkpoint": checkpoint, "sha256": "ab" * 32, "model": "small_resnet", "dataset": "Digits"}
    entry |= {"protocol": "paper", "eps": 8 / 255, "seed": 42, "images": 1, "image_size": 16, "steps": None}
    entry |= {"restarts": 1, "judge": "every"} | conditions
    results = {title: {"accuracy": accuracy, "n": n[title], "settings": ""} for title, accuracy in results.items()}
    results = {title: result | (details or {}).get(title, {}) for title, result in results.items()}
    path = run / f"{Path(checkpoint).stem}_eval" / "eval.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    earlier = json.loads(path.read_text())["evaluations"] if path.exists() else []
    path.write_text(json.dumps({"evaluations": [*earlier, {"conditions": entry, "figures": results}]}))
    return path


def make_run(run, method, seed=42, **settings):
    """Make a run's folder with its settings, as training does."""
    run.mkdir(parents=True)
    config = {"method": method, "model": "small_resnet", "teacher_model": "resnet18", "std_teacher_model": "vgg16"}
    config |= {"dataset": "Digits", "seed": seed, "desc_str": "", "root_path": str(run.parent)} | settings
    (run / "config.json").write_text(json.dumps(config))
    return run


def cells(rows):
    return [list(row.values()) for row in rows]


def bold():
    return re.findall(r"\*\*(.+?)\*\*", Path("comparison/comparison.md").read_text())


def test_one_table_in_four_formats(tmp_path, caplog):
    caplog.set_level("INFO")
    make_evaluation(make_run(tmp_path / "runs/a", "AT"), {"Clean": 95, "PGD-20": 47.5})
    other = make_run(tmp_path / "runs/b", "DGAD")
    make_evaluation(other, {"Clean": 90, "PGD-20": 55, "AutoAttack": 50})
    make_evaluation(other, {"Clean": 95, "PGD-20": 52.5, "AutoAttack": 51.25}, LAST)
    header = ["method", "student", "teacher", "seed", "checkpoint"]
    header += ["Clean (n=20)", "PGD-20 (n=20)", "AutoAttack (n=20)"]
    rows = [
        ["AT", "small_resnet", "-", "42", "best", "95.00", "47.50", "-"],
        ["DGAD", "small_resnet", "resnet18", "42", "best", "90.00", "55.00", "50.00"],
        ["DGAD", "small_resnet", "resnet18", "42", "last", "95.00", "52.50", "51.25"],
    ]
    assert cells(table("runs")) == rows
    assert text_table(header, rows) in caplog.text
    best = {(0, 5), (2, 5), (1, 6), (2, 7)}  # of each column, and both of two equal ones
    assert Path("comparison/comparison.md").read_text().startswith(markdown_table(header, rows, best))
    latex = Path("comparison/comparison.tex").read_text()
    assert latex_table(header, rows, best) in latex and latex.startswith("% ") and "booktabs" in latex.splitlines()[0]
    with Image.open("comparison/comparison.png") as figure:
        assert figure.format == "PNG"


def test_runs_that_differ_only_in_the_seed_are_averaged_below(tmp_path):
    for seed, accuracy in ((1, 44), (2, 46), (3, 51)):
        run = make_run(tmp_path / f"runs/{seed}", "DGAD", seed)
        make_evaluation(run, {"Clean": 90, "PGD-20": accuracy}, bs=100 * seed)  # no result depends on bs
    make_evaluation(make_run(tmp_path / "runs/4", "DGAD", 4, alp_beta=5.0))
    make_evaluation(make_run(tmp_path / "runs/5", "DGAD", 5, std_teacher_path="another file"))
    make_evaluation(make_run(tmp_path / "runs/6", "DGAD", 6), eps=4 / 255)
    make_evaluation(make_run(tmp_path / "runs/7", "DGAD", 7, precision="bf16"))
    make_evaluation(make_run(tmp_path / "runs/8", "DGAD", 8, desc_str="other code"))
    rows = table("runs")
    assert [row["seed"] for row in rows] == [*"12345678", "mean ± sd (3 seeds)"]
    assert (rows[6]["precision"], rows[7]["desc_str"]) == ("bf16", "other code")
    # mean (44 + 46 + 51) / 3 = 47, deviations -3, -1, 4: sqrt((9 + 1 + 16) / 2) = 3.6056
    means = ["best", "-", "-", "8/255", "-", "90.00 ± 0.00", "47.00 ± 3.61", "-"]  # the fifth: the batch size
    assert cells(rows)[-1][4:] == means


OTHER = {
    "images": {"images": 2},
    "image size": {"image_size": 32},
    "eps": {"eps": 4 / 255},
    "judged": {"judge": "last"},
    "restarts": {"restarts": 5},
    "steps": {"steps": 50},
    "surrogate": {"surrogate": "cd" * 32},
}


@pytest.mark.parametrize("column", OTHER)
def test_accuracies_under_other_conditions_are_neither_compared_nor_averaged(tmp_path, column):
    for seed, accuracy, conditions in ((1, 80, {}), (2, 82, {}), (3, 99, OTHER[column])):
        make_evaluation(make_run(tmp_path / f"runs/{seed}", "AT", seed), {"Clean": accuracy}, **conditions)
    rows = table("runs")
    assert [row["Clean (n=20)"] for row in rows] == ["80.00", "82.00", "99.00", "81.00 ± 1.41"]
    assert rows[0][column] == rows[1][column] == rows[3][column] != rows[2][column]  # the reason is shown
    assert bold() == ["82.00"]
    make_evaluation(tmp_path / "runs/1", {"Clean": 98}, **OTHER[column])
    table("runs")
    assert bold() == ["82.00", "99.00"]


def test_accuracies_on_other_numbers_of_images_are_neither_compared_nor_averaged(tmp_path):
    for seed, accuracy, n in ((1, 40, 20), (2, 41, 20), (3, 90, 3)):
        one, results = make_run(tmp_path / f"runs/{seed}", "AT", seed), {"Clean": 90, "PGD-20": accuracy}
        make_evaluation(one, results, n={"Clean": 9, "PGD-20": n})
    rows = table("runs")
    assert list(rows[0])[-2:] == ["Clean (n=9)", "PGD-20"]
    assert [row["PGD-20"] for row in rows] == ["40.00 (n=20)", "41.00 (n=20)", "90.00 (n=3)", "-"]
    assert rows[-1]["Clean (n=9)"] == "90.00 ± 0.00" and bold() == ["90.00", "90.00", "41.00 (n=20)", "90.00"]


def test_accuracies_on_other_subsets_of_the_images_are_neither_compared_nor_averaged(tmp_path):
    """AutoAttack on 2 of 4 images; the third run's evaluation seed chose others."""
    for seed, correct, accuracy in ((1, "10--", 50), (2, "11--", 100), (3, "--00", 0)):
        details = {"Clean": {"correct": "1111", "bounded": True}, "AutoAttack": {"correct": correct, "bounded": True}}
        details["worst case"] = {"settings": "over Clean, AutoAttack"}
        results = {"Clean": 100, "AutoAttack": accuracy, "worst case": accuracy}
        n = {"Clean": 4, "AutoAttack": 2, "worst case": 2}
        make_evaluation(make_run(tmp_path / f"runs/{seed}", "AT", seed), results, n=n, details=details, seed=seed)
    assert cells(table("runs"))[-1][-3:] == ["100.00 ± 0.00", "-", "-"]
    assert bold() == ["100.00"] * 5  # clean of all, the others of the second


def test_the_worst_case_over_other_attacks_is_neither_compared_nor_averaged(tmp_path):
    attacks = {"few": "over FGSM, PGD-20", "more": "over FGSM, PGD-20, AutoAttack"}
    for seed, (name, accuracy) in enumerate((("few", 60), ("few", 62), ("more", 40), ("more", 41)), start=1):
        details = {"worst case": {"settings": attacks[name]}, "Clean": {"settings": name}}
        results = {"Clean": 90 + seed, "worst case": accuracy}
        make_evaluation(make_run(tmp_path / f"runs/{name}/{seed}", "AT", seed), results, details=details)
    assert cells(table("runs"))[-1][-2:] == ["92.50 ± 1.29", "-"]
    assert bold() == ["62.00", "94.00", "41.00"]
    assert cells(table("runs/more"))[-1][-2:] == ["93.50 ± 0.71", "40.50 ± 0.71"]


def test_several_evaluations_of_a_run_are_not_several_seeds(tmp_path):
    for seed in (1, 2):
        make_evaluation(make_run(tmp_path / f"each/{seed}", "AT", seed), seed=seed)
        both = make_run(tmp_path / f"both/{seed}", "AT", seed)
        make_evaluation(both, {"Clean": 90 + seed}, seed=7)
        make_evaluation(both, {"Clean": 80 + seed}, seed=8)
    make_evaluation(make_run(tmp_path / "one/1", "AT", 1), seed=7)
    make_evaluation(tmp_path / "one/1", seed=8)
    assert [row["seed"] for row in table("each")] == ["1", "2", "mean ± sd (2 seeds)"]
    assert [row[-1] for row in cells(table("both"))][-2:] == ["91.50 ± 0.71", "81.50 ± 0.71"]
    assert [row["seed"] for row in table("one")] == ["1", "1"]


def test_columns_are_shown_where_rows_differ(tmp_path):
    one = make_run(tmp_path / "runs/a", "AT")
    make_evaluation(one, {"Clean": 90, "PGD-20": 60}, eps=4 / 255)
    make_evaluation(one, {"Clean": 90, "PGD-20": 40})
    make_evaluation(one, {"Clean": 91, "PGD-10": 70}, protocol="official")
    make_evaluation(make_run(tmp_path / "runs/b", "AKD2"), {"Clean": 80, "PGD-20": 45})
    make_evaluation(make_run(tmp_path / "runs/c", "Natural"), {"Clean": 99, "PGD-20": 0}, dataset="CIFAR10")
    rows = table("runs")
    assert list(rows[0])[:7] == ["dataset", "method", "student", "teacher", "seed", "checkpoint", "eps"]
    assert [row["eps"] for row in rows] == ["4/255", "8/255", "8/255", "8/255"]
    assert [row["teacher"] for row in rows] == ["-", "-", "resnet18 + vgg16", "-"]
    assert bold() == ["90.00", "45.00"]
    (row,) = table("runs --protocol official")
    assert list(row.items())[-2:] == [("Clean (n=20)", "91.00"), ("PGD-10 (n=20)", "70.00")]
    for name, beta in (("a", 1.0), ("b", 5.0)):  # otherwise equal rows show their folder
        make_evaluation(make_run(tmp_path / "equal" / name, "AT", alp_beta=beta))
    assert [row["run"] for row in table("equal")] == ["equal/a", "equal/b"]
    make_evaluation(tmp_path / "equal/a", weights="raw", normalize="cifar10")
    assert [(row["weights"], row["normalization"]) for row in table("equal/a")] == [("-", "-"), ("raw", "cifar10")]
    make_evaluation(tmp_path / "some", checkpoint="net.pth")  # without settings
    make_evaluation(tmp_path / "some", checkpoint="net.pt")
    assert cells(table("some"))[0][:5] == ["some/net.pth", "small_resnet", "-", "-", "net"]
    assert [row["checkpoint"] for row in table("some")] == ["net", "net.pt"]


def test_of_equal_evaluations_only_the_newest_of_the_present_checkpoint_is_a_row(tmp_path, caplog, monkeypatch):
    one = make_run(tmp_path / "runs/a", "AT")
    (one / BEST).write_bytes(b"weights")
    for accuracy in (80, 90):
        make_evaluation(one, {"Clean": accuracy}, sha256=hashlib.sha256(b"weights").hexdigest())
    assert [row["Clean (n=20)"] for row in table(f"runs/a/{BEST} runs {one}")] == ["90.00"]
    make_evaluation(one, {"Clean": 70}, LAST)
    (one / BEST).write_bytes(b"another network")
    assert [row["Clean (n=20)"] for row in table("runs")] == ["70.00"]
    assert f"runs/a/{BEST}: has changed since its evaluation" in caplog.text
    monkeypatch.setattr("engine.reporting.runs.sha256", Mock(side_effect=PermissionError(13, "Permission denied")))
    assert [row["Clean (n=20)"] for row in table("runs")] == ["90.00", "70.00"]
    assert f"runs/a/{BEST}: cannot be read (Permission denied)" in caplog.text


def test_the_best_checkpoint_of_natural_training_is_chosen_by_clean_accuracy(tmp_path):
    for method in ("Natural", "AT"):
        folder = make_run(tmp_path / method, method)
        for checkpoint in ("best_clean_acc_model.pth", BEST):
            make_evaluation(folder, checkpoint=checkpoint)
    kinds = [(row.labels["method"], row.labels["checkpoint"]) for row in read_rows([str(tmp_path)], "paper")]
    assert kinds == [("AT", "best"), ("AT", "best clean"), ("Natural", "best PGD-10"), ("Natural", "best")]


def test_results_written_with_out_know_method_and_seed(train, run):
    train(f"{SMALL} --method Natural --epochs 1 --seed 7")
    evaluate = "--model_path tuned_models --attacks clean --limit_test 8 --no-pictures --out kept"
    run("main_eval.py", evaluate)
    shutil.rmtree("tuned_models")
    assert {(row.labels["method"], row.labels["seed"]) for row in read_rows(["kept"], "paper")} == {("Natural", "7")}


def test_the_figure_shows_the_strongest_attack_that_most_rows_have(tmp_path):
    make_evaluation(make_run(tmp_path / "a", "AT"), {"Clean": 90, "PGD-20": 50, "AutoAttack": 44, "worst case": 1})
    for seed in (1, 2):
        make_evaluation(make_run(tmp_path / f"b{seed}", "DGAD", seed), {"Clean": 91, "PGD-20": 50 + seed})
    results = {"Clean": 92, "PGD-20": 53, "PGD-TRADES-20": 60}
    make_evaluation(make_run(tmp_path / "c", "DGAD", alp_beta=5.0), results, LAST, n=30)
    rows = read_rows([str(tmp_path)], "paper")
    assert [shared_attack(rows[:k]) for k in (1, 2, 4)] == ["AutoAttack", "PGD-20", "PGD-20"]
    (axes,) = draw(rows, shown_columns(rows)).axes
    assert axes.get_ylabel() == "accuracy under PGD-20 (%), n=20 to 30"
    assert [line.get_label() for line in axes.lines] == ["AT, best", "DGAD, best", "DGAD, last"]
    assert [line.get_xydata().tolist() for line in axes.lines] == [[[90, 50]], [[91, 51], [91, 52]], [[92, 53]]]
    make_evaluation(make_run(tmp_path / "eps" / "a", "AT"), eps=4 / 255)
    make_evaluation(make_run(tmp_path / "eps" / "b", "DGAD"))
    make_evaluation(tmp_path / "eps" / ("_" * 99), checkpoint="net.pth")  # matplotlib hides labels with _
    rows = read_rows([str(tmp_path / "eps")], "paper")
    figure = draw(rows, shown_columns(rows))
    names = ["/net.pth, 8/255, net", "AT, 4/255, best", "DGAD, 8/255, best"]
    assert sorted(text.get_text() for text in figure.legends[0].texts) == names
    plt.close("all")


def test_a_run_with_damaged_settings_is_left_out_and_without_an_attack_there_is_no_figure(tmp_path, caplog):
    for name in ("whole", "damaged"):
        make_evaluation(make_run(tmp_path / "runs" / name, name))
    (tmp_path / "runs/damaged/config.json").write_text("{")
    assert [row["method"] for row in table("runs")] == ["whole"]
    assert "damaged/config.json: damaged" in caplog.text and Path("comparison/comparison.png").exists()
    make_evaluation(make_run(tmp_path / "b", "AT"), {"Clean": 90})
    table("b")
    assert "shows 0 of 1 rows, those with both Clean and an attack" in caplog.text
    assert not Path("comparison/comparison.png").exists()


def test_curves_show_only_validated_epochs(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr("utils.plots.save_figure", lambda figure, path: drawn.append(figure))
    rows = [{"epoch": 1, "clean_acc": None, "PGD10_acc": ""}, {"epoch": "2", "clean_acc": "50", "PGD10_acc": 40.0}]
    save_curves(rows, tmp_path / "curves.png")
    assert [line.get_xydata().tolist() for line in drawn[0].axes[0].lines] == [[[2, 50]], [[2, 40]]]
    plt.close(drawn[0])


BAD = {
    "": "RUNS",
    "runs --protocol whitebox": "--protocol",
    "runs --protocl paper": "--protocl .*did you mean --protocol[?]",
    "runs nowhere": "nowhere: no such file or folder",
    "runs empty": "empty: no evaluation by protocol paper; .* python main_eval.py --model_path PATH",
    f"runs empty/{BEST}": f"empty/{BEST}: no evaluation by",
    "runs --protocol official": "runs: no evaluation .* --model_path PATH --protocol official",
    "runs damaged": "damaged/best_PGD10_acc_model_eval/eval.json: damaged",
    "runs unreadable": "unreadable/config.json: damaged",
    "runs --out file/deeper": "--out file/deeper: cannot be written to",
    "runs --out taken": "--out taken: cannot be written to",
}


@pytest.mark.parametrize("arguments", BAD)
def test_bad_input_is_one_error_and_writes_nothing(tmp_path, arguments):
    make_evaluation(make_run(tmp_path / "runs/a", "AT"))
    make_run(tmp_path / "empty", "AT").joinpath(BEST).touch()
    make_evaluation(tmp_path / "damaged").write_text('{"evaluations": [{"figures": {}}]}')
    make_evaluation(make_run(tmp_path / "unreadable", "AT")).parents[1].joinpath("config.json").write_text("{")
    (tmp_path / "file").touch()
    (tmp_path / "taken/comparison.csv").mkdir(parents=True)
    before = contents(tmp_path)
    with user_error(BAD[arguments]):
        table(arguments)
    assert contents(tmp_path) == before
