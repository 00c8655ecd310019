"""Tables for documents, and the comparison of evaluated runs."""

import hashlib
import json
import re
from itertools import combinations
from pathlib import Path

import matplotlib.pyplot as plt
import pytest
from commands import run_here
from PIL import Image

from engine.reporting.tables import gather, point_names, shared_attack, shown_columns
from scripts.compare import picture
from utils.plots import name_points
from utils.tables import latex_table, markdown_table, read_csv, text_table

HEADER = ["network", "Clean (n=20)"]
ROWS = [["a_b|c", "46.50"], ["d", "47.00 ± 0.71"], ["e", "-"]]

BEST, LAST = "best_PGD10_acc_model.pth", "last_epoch_model.pth"
SAME = {"images": 1, "image_size": 16, "steps": None, "restarts": 1, "judge": "every"}
FIGURES = {"Clean": 90, "PGD-20": 50, "AutoAttack": 40}


def test_columns_of_numbers_stand_on_the_right_in_every_form():
    text = text_table(HEADER, ROWS).splitlines()
    assert text[2] == f"{'a_b|c':7}  {'46.50':>12}"
    assert len({len(line) for line in text}) == 1
    assert markdown_table(HEADER, ROWS).splitlines()[1] == "| --- | ---: |"
    assert latex_table(HEADER, ROWS).startswith("\\begin{tabular}{lr}\n")


def test_a_bar_in_a_cell_makes_no_column_in_markdown():
    table = markdown_table(HEADER, ROWS, bold={(0, 1)}).splitlines()
    assert {len(re.findall(r"(?<!\\)\|", line)) for line in table} == {3}
    assert table[2] == r"| a_b\|c | **46.50** |"


def test_latex_takes_every_character_for_text():
    assert latex_table(["C&W"], [["%_&#${}~^\\"], ["[x]"], ["1 ± 2"]], bold={(2, 0)}).splitlines() == [
        r"\begin{tabular}{l}",
        r"\toprule",
        r"C\&W \\",
        r"\midrule",
        r"\%\_\&\#\$\{\}\textasciitilde{}\textasciicircum{}\textbackslash{} \\",
        r"{[}x] \\",
        r"\textbf{1 $\pm$ 2} \\",
        r"\bottomrule",
        r"\end{tabular}",
    ]


@pytest.fixture
def compare(monkeypatch, capsys, tmp_path):
    """Run the script inside an empty folder."""
    monkeypatch.chdir(tmp_path)
    return lambda words: run_here(monkeypatch, capsys, "scripts/compare.py", words)


def keep(run, figures=None, checkpoint=BEST, n=20, details=None, **conditions):
    """Keep one more evaluation of a run's checkpoint; ``n`` is a number of images, or one for each attack.

    ``details`` holds by attack what its figure has in addition.
    """
    figures = figures or FIGURES
    counts = n if isinstance(n, dict) else dict.fromkeys(figures, n)
    about = {"checkpoint": checkpoint, "sha256": "ab" * 32, "model": "small_resnet", "dataset": "Digits"}
    about |= {"protocol": "paper", "eps": 8 / 255, "seed": 42} | SAME | conditions
    kept = {title: {"accuracy": accuracy, "n": counts[title], "settings": ""} for title, accuracy in figures.items()}
    kept = {title: figure | (details or {}).get(title, {}) for title, figure in kept.items()}
    place = run / f"{Path(checkpoint).stem}_eval" / "eval.json"
    place.parent.mkdir(parents=True, exist_ok=True)
    before = json.loads(place.read_text())["evaluations"] if place.exists() else []
    entry = {"conditions": about, "versions": {}, "figures": kept}
    place.write_text(json.dumps({"evaluations": [*before, entry]}))
    return place


def trained(run, method, seed=42, **settings):
    """A run's folder with its settings, as training leaves it."""
    run.mkdir(parents=True)
    config = {"method": method, "model": "small_resnet", "teacher_model": "resnet18", "std_teacher_model": "vgg16"}
    config |= {"dataset": "Digits", "seed": seed, "desc_str": "", "root_path": str(run.parent)} | settings
    (run / "config.json").write_text(json.dumps(config))
    return run


def cells(path="comparison/comparison.csv"):
    return [list(row.values()) for row in read_csv(path)]


def in_bold():
    return re.findall(r"\*\*(.+?)\*\*", Path("comparison/comparison.md").read_text())


def test_one_table_in_four_forms(compare, tmp_path):
    keep(trained(tmp_path / "runs/a", "AT"), {"Clean": 95, "PGD-20": 47.5})
    run = trained(tmp_path / "runs/b", "DGAD")
    keep(run, {"Clean": 90, "PGD-20": 55, "AutoAttack": 50})
    keep(run, {"Clean": 95, "PGD-20": 52.5, "AutoAttack": 51.25}, LAST)
    ended = compare("runs")
    assert ended.status == 0, ended.err
    header = ["method", "student", "teacher", "seed", "checkpoint"]
    header += ["Clean (n=20)", "PGD-20 (n=20)", "AutoAttack (n=20)"]
    rows = [
        ["AT", "small_resnet", "-", "42", "best", "95.00", "47.50", "-"],
        ["DGAD", "small_resnet", "resnet18", "42", "best", "90.00", "55.00", "50.00"],
        ["DGAD", "small_resnet", "resnet18", "42", "last", "95.00", "52.50", "51.25"],
    ]
    assert cells() == rows
    assert text_table(header, rows) in ended.out
    best = {(0, 5), (2, 5), (1, 6), (2, 7)}  # of each column, and both where two are equally good
    assert Path("comparison/comparison.md").read_text().startswith(markdown_table(header, rows, best))
    assert latex_table(header, rows, best) in Path("comparison/comparison.tex").read_text()
    with Image.open("comparison/comparison.png") as picture:
        assert picture.format == "PNG"


def test_the_latex_file_is_balanced_and_has_as_many_cells_in_every_row(compare, tmp_path):
    keep(tmp_path / "odd_{name}&100%/run#1", {"Clean": 90, "C&W-inf-30": 45})
    keep(trained(tmp_path / "b", "AT"), {"Clean": 90, "C&W-inf-30": 44})
    assert compare(". --out out").status == 0
    lines = Path("out/comparison.tex").read_text().splitlines()
    assert lines[0].startswith("%") and "booktabs" in lines[0]
    rows = [line for line in lines if line.endswith(r"\\")]
    assert [len(re.findall(r"(?<!\\)&", row)) for row in rows] == [6] * 3
    align = re.fullmatch(r"\\begin\{tabular\}\{([lr]+)\}", lines[1])[1]
    assert len(align) == 7
    plain = re.sub(r"\\[{}%#&_]", "", "\n".join(lines[1:]))
    assert plain.count("{") == plain.count("}") and not re.search(r"[%#]", plain)


def test_runs_that_differ_in_their_seed_alone_are_summed_up_below(compare, tmp_path):
    for seed, accuracy in ((1, 44), (2, 46), (3, 51)):
        keep(trained(tmp_path / f"runs/{seed}", "DGAD", seed), {"Clean": 90, "PGD-20": accuracy})
    keep(trained(tmp_path / "runs/4", "DGAD", 4, alp_beta=5.0))
    keep(trained(tmp_path / "runs/5", "DGAD", 5, std_teacher_path="another file"))
    keep(trained(tmp_path / "runs/6", "DGAD", 6), eps=4 / 255)
    assert compare("runs").status == 0
    rows = cells()
    assert [row[3] for row in rows] == ["1", "2", "3", "4", "5", "6", "mean ± sd (3 seeds)"]
    assert list(read_csv("comparison/comparison.csv")[0])[4:6] == ["checkpoint", "eps"]
    # mean (44 + 46 + 51) / 3 = 47, deviations -3, -1, 4: sqrt((9 + 1 + 16) / 2) = 3.6056
    assert rows[-1][4:] == ["best", "8/255", "90.00 ± 0.00", "47.00 ± 3.61", "-"]


@pytest.mark.parametrize(("key", "one", "other"), [("precision", "fp32", "bf16"), ("desc_str", "", "other code")])
def test_families_of_another_precision_or_word_of_the_user_are_told_apart(compare, tmp_path, key, one, other):
    for seed in (1, 2, 3):
        keep(trained(tmp_path / f"runs/a{seed}", "AT", seed, **{key: one}), {"Clean": 80 + seed})
        keep(trained(tmp_path / f"runs/b{seed}", "AT", seed, **{key: other}), {"Clean": 90 + seed})
    assert compare("runs").status == 0
    rows = read_csv("comparison/comparison.csv")
    means = [[row[key], row["Clean (n=20)"]] for row in rows if row["seed"] == "mean ± sd (3 seeds)"]
    assert means == [[one or "-", "82.00 ± 1.00"], [other, "92.00 ± 1.00"]]
    assert {row[key] for row in rows[:6]} == {one or "-", other}
    assert {"precision", "desc_str", "run"} & rows[0].keys() == {key}
    keep(trained(tmp_path / "alike/1", "AT", **{key: other}))
    keep(trained(tmp_path / "alike/2", "DGAD", **{key: other}))
    assert compare("alike").status == 0
    assert key not in read_csv("comparison/comparison.csv")[0]


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
def test_figures_under_other_conditions_are_neither_rivals_nor_averaged(compare, tmp_path, column):
    keep(trained(tmp_path / "runs/1", "AT", 1), {"Clean": 80})
    keep(trained(tmp_path / "runs/2", "AT", 2), {"Clean": 82})
    keep(trained(tmp_path / "runs/3", "AT", 3), {"Clean": 99}, **OTHER[column])
    assert compare("runs").status == 0
    rows = read_csv("comparison/comparison.csv")
    assert [row["Clean (n=20)"] for row in rows] == ["80.00", "82.00", "99.00", "81.00 ± 1.41"]
    assert rows[0][column] == rows[1][column] == rows[3][column] != rows[2][column]  # the reason is shown
    assert in_bold() == ["82.00"]
    keep(tmp_path / "runs/1", {"Clean": 98}, **OTHER[column])
    assert compare("runs").status == 0
    assert in_bold() == ["82.00", "99.00"]


def test_figures_over_other_numbers_of_images_are_no_rivals(compare, tmp_path):
    for run, accuracy, n in (("a", 40, 20), ("b", 41, 20), ("c", 90, 3)):
        keep(trained(tmp_path / "runs" / run, "AT"), {"Clean": accuracy}, n=n)
    assert compare("runs").status == 0
    assert in_bold() == ["41.00 (n=20)"]


def test_parts_of_the_images_that_seeds_choose_differently_are_compared_with_their_like_alone(compare, tmp_path):
    """AutoAttack on 2 of 4 images; those of the third run are others, as another seed chooses them."""
    for seed, chosen, accuracy in ((1, "10--", 50), (2, "11--", 100), (3, "--00", 0)):
        details = {"Clean": {"correct": "1111", "bounded": True}, "AutoAttack": {"correct": chosen, "bounded": True}}
        details["worst case"] = {"settings": "over Clean, AutoAttack"}
        figures = {"Clean": 100, "AutoAttack": accuracy, "worst case": accuracy}
        n = {"Clean": 4, "AutoAttack": 2, "worst case": 2}
        keep(trained(tmp_path / f"runs/{seed}", "AT", seed), figures, n=n, details=details, seed=seed)
    assert compare("runs").status == 0
    assert cells()[-1][-3:] == ["100.00 ± 0.00", "-", "-"]
    assert in_bold() == ["100.00", "100.00", "100.00", "100.00", "100.00"]  # clean of all, the others of the second


def test_the_worst_case_over_other_attacks_is_neither_a_rival_nor_averaged(compare, tmp_path):
    over = {"few": "over FGSM, PGD-20", "more": "over FGSM, PGD-20, AutoAttack"}
    for seed, (attacks, accuracy) in enumerate((("few", 60), ("few", 62), ("more", 40), ("more", 41)), start=1):
        details = {"worst case": {"settings": over[attacks]}, "Clean": {"settings": f"as {attacks} say it"}}
        figures = {"Clean": 90 + seed, "worst case": accuracy}
        keep(trained(tmp_path / f"runs/{attacks}/{seed}", "AT", seed), figures, details=details)
    assert compare("runs").status == 0
    assert cells()[-1][-2:] == ["92.50 ± 1.29", "-"]  # Clean is the same figure whatever is said of it
    assert in_bold() == ["62.00", "94.00", "41.00"]
    assert compare("runs/more").status == 0
    assert cells()[-1][-2:] == ["93.50 ± 0.71", "40.50 ± 0.71"]
    assert in_bold() == ["94.00", "41.00"]


def test_an_evaluation_with_the_seed_of_its_run_is_summed_up_and_two_of_one_run_are_no_two_seeds(compare, tmp_path):
    for seed in (1, 2):
        keep(trained(tmp_path / f"each/{seed}", "AT", seed), seed=seed)
        run = trained(tmp_path / f"both/{seed}", "AT", seed)
        keep(run, {"Clean": 90 + seed}, seed=7)
        keep(run, {"Clean": 80 + seed}, seed=8)
    keep(trained(tmp_path / "one/1", "AT", 1), seed=7)
    keep(tmp_path / "one/1", seed=8)
    assert compare("each").status == 0
    assert [row[3] for row in cells()] == ["1", "2", "mean ± sd (2 seeds)"]
    assert compare("both").status == 0
    assert [row[-1] for row in cells()][-2:] == ["91.50 ± 0.71", "81.50 ± 0.71"]
    assert compare("one").status == 0
    assert [row[3] for row in cells()] == ["1", "1"]


def test_figures_over_different_numbers_of_images_say_so_and_are_not_averaged(compare, tmp_path):
    for seed, n in ((1, 20), (2, 3)):
        keep(trained(tmp_path / f"runs/{seed}", "AT", seed), n={"Clean": 20, "PGD-20": 20, "AutoAttack": n})
    assert compare("runs").status == 0
    assert list(read_csv("comparison/comparison.csv")[0])[-2:] == ["PGD-20 (n=20)", "AutoAttack"]
    assert [row[-2:] for row in cells()] == [
        ["50.00", "40.00 (n=20)"],
        ["50.00", "40.00 (n=3)"],
        ["50.00 ± 0.00", "-"],
    ]


def test_columns_appear_where_rows_differ_and_figures_compete_on_one_data_set_and_epsilon(compare, tmp_path):
    run = trained(tmp_path / "runs/a", "AT")
    keep(run, {"Clean": 90, "PGD-20": 60}, eps=4 / 255)
    keep(run, {"Clean": 90, "PGD-20": 40})
    keep(trained(tmp_path / "runs/b", "AKD2"), {"Clean": 80, "PGD-20": 45})
    keep(trained(tmp_path / "runs/c", "Natural"), {"Clean": 99, "PGD-20": 0}, dataset="CIFAR10", images=2)
    assert compare("runs").status == 0
    rows = read_csv("comparison/comparison.csv")
    assert list(rows[0])[:7] == ["dataset", "method", "student", "teacher", "seed", "checkpoint", "eps"]
    assert "images" not in rows[0]  # the data set says that they are others
    assert [row["eps"] for row in rows] == ["4/255", "8/255", "8/255", "8/255"]
    assert [row["teacher"] for row in rows] == ["-", "-", "resnet18 + vgg16", "-"]
    assert in_bold() == ["90.00", "45.00"]


def test_runs_that_nothing_else_tells_apart_are_shown_with_their_folders(compare, tmp_path):
    keep(trained(tmp_path / "runs/a", "AT", alp_beta=1.0), {"Clean": 90})
    keep(trained(tmp_path / "runs/b", "AT", alp_beta=5.0), {"Clean": 91})
    assert compare("runs").status == 0
    assert [row["run"] for row in read_csv("comparison/comparison.csv")] == ["runs/a", "runs/b"]
    keep(trained(tmp_path / "copies/a", "AT"))
    keep(trained(tmp_path / "copies/b", "AT"))
    assert compare("copies").status == 0
    assert [row["run"] for row in read_csv("comparison/comparison.csv")] == ["copies/a", "copies/b"]


def test_an_evaluation_is_one_row_however_often_it_is_named_and_the_newest_of_its_conditions(compare, tmp_path):
    run = trained(tmp_path / "runs/a", "AT")
    (run / BEST).write_bytes(b"weights")
    digest = hashlib.sha256(b"weights").hexdigest()
    keep(run, {"Clean": 80}, sha256=digest)
    keep(run, {"Clean": 90}, sha256=digest)
    assert compare(f"runs/a/{BEST} runs {run}").status == 0
    assert [row[-1] for row in cells()] == ["90.00"]


def test_figures_of_an_overwritten_checkpoint_are_left_out(compare, tmp_path):
    run = trained(tmp_path / "runs/a", "AT")
    keep(run, {"Clean": 80})
    keep(run, {"Clean": 90}, LAST)
    (run / BEST).write_bytes(b"another network")
    ended = compare("runs")
    assert ended.status == 0
    assert [row[-1] for row in cells()] == ["90.00"]
    assert f"runs/a/{BEST} has changed since it was evaluated" in ended.out


def test_a_checkpoint_without_settings_is_named_by_its_path(compare, tmp_path):
    keep(tmp_path / "some", checkpoint="net.pth")
    assert compare("some").status == 0
    assert cells()[0][:5] == ["some/net.pth", "small_resnet", "-", "-", "net"]


def test_a_protocol_chooses_its_evaluations(compare, tmp_path):
    run = trained(tmp_path / "runs/a", "AT")
    keep(run, {"Clean": 90, "PGD-10": 50}, protocol="official")
    keep(run, {"Clean": 89, "PGD-20": 40})
    assert compare("runs --protocol official").status == 0
    assert list(read_csv("comparison/comparison.csv")[0])[-2:] == ["Clean (n=20)", "PGD-10 (n=20)"]
    assert cells()[0][-2:] == ["90.00", "50.00"]


def test_the_picture_shows_the_strongest_attack_that_the_rows_share(tmp_path):
    keep(
        trained(tmp_path / "a", "AT"), {"Clean": 90, "PGD-20": 50, "C&W-inf-30": 45, "AutoAttack": 44, "worst case": 1}
    )
    keep(trained(tmp_path / "b", "DGAD"), {"Clean": 91, "PGD-20": 51, "C&W-inf-30": 46, "worst case": 1})
    rows = gather([str(tmp_path)], "paper")
    assert [shared_attack(rows), shared_attack(rows[:1])] == ["C&W-inf-30", "AutoAttack"]
    keep(tmp_path / "other", {"Clean": 90, "FGSM": 60, "PGD-10": 50, "worst case": 49}, protocol="official")
    assert shared_attack(gather([str(tmp_path)], "official")) == "PGD-10"
    keep(trained(tmp_path / "c", "MART"), {"Clean": 92, "PGD-20": 52, "PGD-TRADES-20": 60}, LAST, n=30)
    rows = gather([str(tmp_path)], "paper")
    drawn = picture(rows, shown_columns(rows))
    (axes,) = drawn.axes
    assert axes.get_xlabel() == "clean accuracy (%), n=20 to 30"
    assert axes.get_ylabel() == "robust accuracy under PGD-20 (%), n=20 to 30"
    assert [tuple(float(line.get_data()[k][0]) for k in (0, 1)) for line in axes.lines] == [
        (90, 50),
        (91, 51),
        (92, 52),
    ]
    assert [line.get_marker() for line in axes.lines] == ["o", "o", "s"]
    assert len({line.get_color() for line in axes.lines}) == 3
    assert [text.get_text() for text in drawn.legends[0].get_texts()] == ["AT", "DGAD", "MART", "best", "last"]
    plt.close(drawn)


def test_without_an_attack_there_is_no_picture_not_even_an_old_one(compare, tmp_path):
    keep(trained(tmp_path / "a", "AT"))
    keep(trained(tmp_path / "b", "AT"), {"Clean": 90})
    assert compare("a").status == 0 and Path("comparison/comparison.png").exists()
    ended = compare("b")
    assert ended.status == 0 and "lack Clean and an attack" in ended.out
    assert not Path("comparison/comparison.png").exists() and cells()[0][-1] == "90.00"


def test_a_point_is_named_by_what_colour_and_marker_do_not_tell(tmp_path):
    keep(trained(tmp_path / "a", "AT"), model="resnet18")
    for seed in (1, 2):
        keep(trained(tmp_path / f"b{seed}", "DGAD", seed))
    keep(tmp_path / "b2", checkpoint=LAST)
    rows = gather([str(tmp_path)], "paper")
    assert point_names(rows, shown_columns(rows)) == ["", "seed 1", "seed 2", ""]


def test_names_in_the_picture_cover_neither_each_other_nor_points():
    figure, axes = plt.subplots(layout="constrained")
    points = [(80 + k % 3 / 10, 50 + k // 3 / 10) for k in range(9)] + [(90, 0)]
    axes.plot(*zip(*points, strict=True), "o")
    name_points(axes, points, [f"resnet18, seed {k}" for k in range(9)] + [""])
    figure.draw_without_rendering()
    boxes = [plt.Text.get_window_extent(text) for text in axes.texts]
    assert len(boxes) > 1  # no room for some of nine points that all but coincide
    assert not any(one.overlaps(other) for one, other in combinations(boxes, 2))
    assert not any(box.contains(*pixel) for box in boxes for pixel in axes.transData.transform(points))
    plt.close(figure)


BAD = {
    "": "RUNS",
    "runs --protocol whitebox": "--protocol",
    "runs --protocl paper": "--protocl .*did you mean --protocol[?]",
    "runs nowhere": "nowhere: no such file or folder",
    "runs empty": "empty: nothing there was evaluated by protocol paper; .* python main_eval.py --model_path PATH",
    f"runs empty/{BEST}": f"empty/{BEST}: nothing there was evaluated",
    "runs --protocol official": "runs: nothing there .* --model_path PATH --protocol official",
    "runs torn": "torn/best_PGD10_acc_model_eval/eval.json: ",
    "runs strange": "strange/best_PGD10_acc_model_eval/eval.json: damaged",
    "runs numberless": "numberless/best_PGD10_acc_model_eval/eval.json: damaged",
    "runs unsettled": "unsettled/config.json: damaged",
    "runs --out file": "--out file: cannot be written to",
    "runs --out file/deeper": "--out file/deeper: cannot be written to",
    "runs --out taken": "--out taken: cannot be written to",
}


@pytest.mark.parametrize("words", BAD)
def test_bad_input_is_one_line_and_writes_nothing(compare, tmp_path, words):
    keep(trained(tmp_path / "runs/a", "AT"))
    keep(trained(tmp_path / "runs/b", "DGAD"))
    trained(tmp_path / "empty", "AT").joinpath(BEST).touch()
    torn = keep(tmp_path / "torn")
    torn.write_text(torn.read_text()[:-20])
    keep(tmp_path / "strange").write_text('{"evaluations": [{"figures": {}}]}')
    keep(tmp_path / "numberless", {"Clean": None})
    keep(trained(tmp_path / "unsettled", "AT")).parents[1].joinpath("config.json").write_text("{")
    (tmp_path / "file").touch()
    (tmp_path / "taken/comparison.csv").mkdir(parents=True)
    before = sorted(tmp_path.rglob("*"))
    ended = compare(words)
    assert ended.status == 2
    assert re.fullmatch(f"error: .*{BAD[words]}.*\n", ended.err), ended.err
    assert sorted(tmp_path.rglob("*")) == before
