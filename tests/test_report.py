"""The page of all runs: whatever state they are in, whatever their files hold, as a browser reads it."""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from dataclasses import asdict
from html.parser import HTMLParser

import pytest
from commands import run_here
from conftest import ROOT
from test_compare import BEST, LAST, keep, trained

from engine.reporting.page import page
from engine.reporting.runs import survey
from utils.config import TrainConfig

HEADER = "epoch,lr,train_loss,train_clean_acc,train_adv_acc,clean_loss,clean_acc,PGD10_loss,PGD10_acc\n"
PNG = bytes.fromhex("89504e470d0a1a0a0000000d4948445200000001000000010806000000") + b"a picture"
VOID = {"br", "img", "meta"}
HOSTILE = "<script>alert(1)</script>&\"'"


class Document(HTMLParser):
    """Reads a page strictly: every element that begins ends, in order."""

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.open, self.tags, self.words, self.rows, self.attributes = [], [], [], [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += [(tag, *pair) for pair in attributes]
        if tag not in VOID:
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)
        if {"td", "th"} & set(self.open):
            self.rows[-1][-1] += data

    def table(self):
        header, *rows = self.rows
        assert all(len(row) == len(header) for row in rows)
        return [dict(zip(header, row, strict=True)) for row in rows]


def epochs(run, *accuracies):
    """Write results.csv with a row for each pair of clean and PGD-10 accuracy."""
    rows = [f"{number},0.1,1.5,,30,1.2,{clean},2.1,{robust}\n" for number, (clean, robust) in enumerate(accuracies)]
    (run / "results.csv").write_text(HEADER + "".join(rows))
    return run


def read(*words):
    return Document(page(survey([str(word) for word in words])))


@pytest.fixture
def tree(tmp_path):
    """Two runs with figures and pictures."""
    first = epochs(trained(tmp_path / "runs/AT/a", "AT", epochs=3, epsilon=8.0), (80, 40), (90, 30))
    keep(first, {"Clean": 90, "PGD-20": 41.5})
    place = keep(first, {"Clean": 91, "PGD-20": 28.25}, LAST)
    (place.parent / "examples.png").write_bytes(PNG)
    second = epochs(trained(tmp_path / "runs/DGAD/b", "DGAD", seed=7, epochs=1, epsilon=0.5), (85, 45))
    keep(second, {"Clean": 85, "PGD-20": 44, "AutoAttack": 42}, n={"Clean": 20, "PGD-20": 20, "AutoAttack": 5})
    return tmp_path / "runs"


def test_the_page_is_well_formed_and_holds_every_run_and_figure(tree):
    document = read(tree)
    one, other = document.table()
    assert {key: one[key] for key in ("run", "method", "network", "teacher", "data set", "seed")} == {
        **{"run": "AT/a", "method": "AT", "network": "small_resnet", "teacher": "-", "data set": "Digits"},
        "seed": "42",
    }
    assert (one["epochsdone of all"], one["epsilonin training, of 255"]) == ("2 of 3", "8")
    assert (one["best cleanin training"], one["best PGD-10in training"]) == ("90.00", "40.00")
    assert (one["PGD-20best"], one["PGD-20last"], one["AutoAttackbest"]) == ("41.50 (n=20)", "28.25 (n=20)", "-")
    assert (other["teacher"], other["epsilonin training, of 255"], other["AutoAttackbest"]) == (
        "resnet18",
        "0.5",
        "42.00 (n=5)",
    )
    assert list(one).index("PGD-20best") + 1 == list(one).index("PGD-20last")
    assert document.tags.count("polyline") == 2 * 2 + 2 * 2  # robust and clean of each run, together and alone
    assert document.tags.count("img") == 1


def test_a_run_shows_the_settings_that_made_it_and_no_others(tmp_path):
    told = {}
    for method in ("AT", "DGAD"):
        run = trained(tmp_path / method, method)
        (run / "config.json").write_text(json.dumps(asdict(TrainConfig(method=method))))
        words = read(tmp_path / method).words
        told[method] = {key: words[words.index(key) + 1] for key in ("lr_max", "alp_beta", "temp") if key in words}
    assert told == {"AT": {"lr_max": "0.1"}, "DGAD": {"lr_max": "0.1", "alp_beta": "1.0"}}


def test_the_page_asks_for_nothing_outside_of_itself(tree):
    text = page(survey([str(tree)]))
    document = Document(text)
    targets = [value for _, key, value in document.attributes if key in ("src", "href", "action", "data")]
    assert targets and all(value.startswith(("data:image/png;base64,", "#")) for value in targets)
    (policy,) = [value for _, key, value in document.attributes if key == "content" and "src" in value]
    assert policy.startswith("default-src 'none'; img-src data:;")
    assert "http://" not in text and "https://" not in text
    assert "@import" not in text and "url(" not in text
    assert str(tree.parent) not in text  # nor does it tell where on this machine the runs lie


def test_what_comes_from_files_is_text_and_never_markup(tmp_path):
    run = trained(tmp_path / "runs" / HOSTILE.replace("/", "∕"), HOSTILE, model=HOSTILE, dataset=HOSTILE)
    epochs(run, (80, 40))
    place = keep(run, {HOSTILE: 50}, seed=HOSTILE)
    (place.parent / "examples.png").write_bytes(PNG)
    (run / "broken<b>_eval").mkdir()
    (run / "broken<b>_eval/eval.json").write_text("{")
    document = read(tmp_path / "runs")
    assert document.tags.count("script") == 1 and "b" not in document.tags
    assert not [key for _, key, _ in document.attributes if key.startswith("on")]
    (row,) = document.table()
    assert row["method"] == row["network"] == HOSTILE and row[f"{HOSTILE}best"] == "50.00 (n=20)"
    assert "broken<b>_eval/eval.json: damaged" in row["run"]


def test_names_in_any_script_and_bytes_that_are_none(tmp_path):
    epochs(trained(tmp_path / "runs/学習 ε=8 🐈", "AT", desc_str="\udcff\x00é"), (80, 40))
    epochs(trained(tmp_path / "runs" / os.fsdecode(b"latin-\xe9"), "AT"), (80, 40))
    text = page(survey([str(tmp_path / "runs")]))
    text.encode("utf-8")  # can be written
    assert {row["run"] for row in Document(text).table()} == {"学習 ε=8 🐈", "latin-\ufffd"}
    assert "\x00" not in text


BROKEN = {
    "config.json": ["", '{"method": "AT", "see', "[1, 2]", '"text"', "[" * 10**5, '{"method": ["AT"], "epochs": {}}'],
    "results.csv": [
        *("", "\0", "a\n" * 3, "\xff", HEADER + "0,0.1,1.5,,30,1.2,80"),
        *(HEADER + "x,0.1,1.5,,30,1.2,80,2,40\n", HEADER + "0,0.1,1.5,,30,1.2,nan,2,1e999\n"),
    ],
    f"{BEST[:-4]}_eval/eval.json": [
        *("", "{", "[]", '{"evaluations": [{"conditions": [], "figures": {}}]}', "[" * 10**5),
        '{"evaluations": [{"conditions": {}, "figures": {"Clean": {"accuracy": 1, "n": 1}}}]}',
        json.dumps(
            {
                "evaluations": [
                    {
                        "conditions": {"checkpoint": BEST, "protocol": "paper", "sha256": ""},
                        "figures": {"Clean": {"accuracy": "NaN", "n": None}},
                    }
                ]
            }
        ),
    ],
    f"{BEST[:-4]}_eval/examples.png": ["", "<svg onload=alert(1)>"],
}


@pytest.mark.parametrize(("place", "number"), [(place, n) for place in BROKEN for n in range(len(BROKEN[place]))])
def test_a_damaged_file_is_named_and_the_other_runs_stay(tree, place, number):
    run = tree / "AT/a"
    keep(run)
    (run / place).write_text(BROKEN[place][number], encoding="latin-1")
    one, other = read(tree).table()
    assert one["run"].startswith("AT/a") and other["PGD-20best"] == "44.00 (n=20)"
    said = {"config.json": "config.json: damaged", "results.csv": "results.csv: "}.get(place, f"{place}: damaged")
    assert said in one["run"] or (place, number) == ("config.json", 5)  # odd, and can be shown


def test_runs_that_have_just_begun_or_lost_files_are_shown(tmp_path):
    (tmp_path / "runs/begun/resume").mkdir(parents=True)
    (tmp_path / "runs/weights").mkdir()
    (tmp_path / "runs/weights" / LAST).write_bytes(b"")
    (tmp_path / "runs/elsewhere").mkdir()
    (tmp_path / "runs/elsewhere/config.json").write_text('{"model_type": "of another program"}')
    epochs(trained(tmp_path / "runs/whole", "AT", epochs=2), (80, 40))
    rows = {row["run"]: row for row in read(tmp_path / "runs").table()}
    assert set(rows) == {
        "beginconfig.json: not there".replace("begin", "begun"),
        "weightsconfig.json: not there",
        "whole",
    }
    assert rows["begunconfig.json: not there"]["epochsdone of all"] == "0 of ?"


def test_no_link_leads_out_of_a_run(tree, tmp_path):
    secret = tmp_path / "secret"
    secret.mkdir()
    (secret / "examples.png").write_bytes(PNG + b"secret")
    epochs(trained(secret / "run", "a secret method"), (99, 98))
    run = tree / "DGAD/b"
    inner = run / f"{BEST[:-4]}_eval"
    (inner / "examples.png").symlink_to(secret / "examples.png")
    (run / "results.csv").unlink()
    (run / "results.csv").symlink_to(secret / "run/results.csv")
    (tree / "linked").symlink_to(secret / "run")
    os.mkfifo(inner / "attacks.png")  # reading it would wait for ever
    (inner / "confusion.png").symlink_to("confusion.png")
    keep(run, {"Clean": 1}, "../../../secret/examples.png")
    document = read(tree)
    _, row = document.table()
    assert len(document.table()) == 2 and row["best PGD-10in training"] == "-"
    assert "results.csv: no file of this folder" in row["run"] and "examples.png: no file of this folder" in row["run"]
    assert document.tags.count("img") == 1  # of the other run
    assert "secret" not in re.sub("(examples|secret).png", "", "".join(document.words))


def test_figures_under_other_conditions_stand_in_other_columns_and_all_are_shown(tree):
    keep(tree / "AT/a", {"PGD-20": 60}, eps=4 / 255)
    keep(tree / "AT/a", {"PGD-20": 40.75}, seed=1)
    one, other = read(tree).table()
    assert one["PGD-20best, eps 4/255"] == "60.00 (n=20)"
    assert one["PGD-20best, eps 8/255"] == "41.50 (n=20)40.75 (n=20)"
    assert (other["PGD-20best, eps 4/255"], other["PGD-20best, eps 8/255"]) == ("-", "44.00 (n=20)")


def test_a_figure_of_a_checkpoint_that_changed_since_is_struck_out(tree):
    struck = [value for _, key, value in read(tree).attributes if (key, value) == ("class", "outdated")]
    (tree / "AT/a" / BEST).write_bytes(b"trained further")
    more = [value for _, key, value in read(tree).attributes if (key, value) == ("class", "outdated")]
    assert len(more) == len(struck) + 2


def test_a_run_named_twice_is_one_row_and_names_begin_where_the_words_part(tree):
    assert [row["run"] for row in read(tree / "AT", tree / "AT/a", tree / "DGAD").table()] == ["AT/a", "DGAD/b"]
    assert [row["run"] for row in read(tree / "AT/a").table()] == ["a"]


@pytest.fixture
def command(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    return lambda words: run_here(monkeypatch, capsys, "utils/tables.py", words)


def test_the_command_writes_the_page_beside_the_runs_or_where_it_is_told(command, tree):
    ended = command("runs")
    assert ended.status == 0 and "runs/report.html: 2 runs" in ended.out
    assert len(Document((tree / "report.html").read_text()).table()) == 2
    assert command("runs/AT runs/DGAD --out page.html").status == 0
    assert len(Document((tree.parent / "page.html").read_text()).table()) == 2
    assert "refresh" not in (tree / "report.html").read_text()


def test_watching_writes_the_page_again_and_ends_with_one_that_stays(command, tree, monkeypatch):
    pages = []

    def sleep(seconds):
        pages.append((tree / "report.html").read_text())
        epochs(tree / "AT/a", (80, 40), (90, 30), (95, 50))
        if len(pages) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(time, "sleep", sleep)
    assert command("runs --watch 5").status == 130
    assert [Document(text).table()[0]["epochsdone of all"] for text in pages] == ["2 of 3", "3 of 3"]
    assert all(("meta", "content", "5") in Document(text).attributes for text in pages)
    assert "refresh" not in (tree / "report.html").read_text()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("absent", "absent: no such folder"),
        ("empty", "empty: no run there"),
        ("runs --watch 0", "--watch 0: must be a number of at least 1"),
        ("runs --watch nan", "--watch nan: must be a number"),
        ("runs --out empty", "--out empty: cannot be written to"),
        ("runs --out absent/page.html", "--out absent/page.html: cannot be written to"),
        ("", "RUNS"),
    ],
)
def test_bad_words_are_one_line(command, tree, words, said):
    (tree.parent / "empty").mkdir()
    ended = command(words)
    assert ended.status == 2 and said in ended.err and ended.err.count("\n") == 1
    assert not list(tree.parent.rglob("*.html")) and not list(tree.parent.rglob(".partial-*"))


BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@pytest.mark.skipif(not BROWSER, reason="no Chromium on the PATH")
def test_a_browser_opens_the_page_from_the_disk_and_sorts_it(tree, tmp_path):
    (tree / "AT/a").rename(tree / "AT" / "<img src=x onerror=document.title='broken'>")
    text = page(survey([str(tree)]))
    # The page's policy lets no script in but its own; the click is therefore put into a copy without the policy.
    click = "for (const h of document.querySelectorAll('th')) if (h.textContent === 'PGD-20best') h.click()"
    text = re.sub("<meta http-equiv=.Content-Security-Policy.*?>", "", text)
    (tmp_path / "page.html").write_text(text.replace("</body>", f"<script>{click}</script></body>"))
    (tmp_path / "real.html").write_text(page(survey([str(tree)])))

    def opened(name):
        flags = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
        command = [BROWSER, *flags, "--enable-logging=stderr", "--dump-dom", (tmp_path / name).as_uri()]
        return subprocess.run(command, capture_output=True, text=True, timeout=120)

    shown = opened("page.html")
    rows = [row["run"] for row in Document(shown.stdout).table()]
    assert rows[0] == "DGAD/b" and len(rows) == 2  # 44.00 before 41.50: figures begin with the largest
    real = opened("real.html")
    assert "<title>Runs</title>" in real.stdout and "CONSOLE" not in real.stderr, real.stderr
    assert [row["run"] for row in Document(real.stdout).table()][-1] == "DGAD/b"


def test_the_tables_never_load_the_engine():
    """utils/tables.py is a command that hands over to the engine, and a module that knows nothing of it."""
    told = "import sys, utils.tables; print([name for name in sys.modules if name.split('.')[0] == 'engine'])"
    assert subprocess.check_output([sys.executable, "-c", told], cwd=ROOT, text=True) == "[]\n"


def test_the_command_is_a_module(tree):
    command = [sys.executable, "-m", "utils.tables", str(tree)]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert (tree / "report.html").exists()
