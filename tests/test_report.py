"""The HTML page of runs in any state, with files of any content, parsed as a browser parses it."""

import json
import os
import re
import shutil
import subprocess
from dataclasses import asdict
from html.parser import HTMLParser
from pathlib import Path

import pytest
from conftest import user_error
from test_compare import BEST, LAST, make_evaluation, make_run

from engine.reporting.__main__ import report
from engine.reporting.page import render
from engine.reporting.runs import read_runs
from utils.config import TrainConfig

HEADER = "epoch,lr,train_loss,clean_acc,PGD10_acc,images_per_s,peak_memory_mib\n"
PNG = bytes.fromhex("89504e470d0a1a0a0000000d4948445200000001000000010806000000") + b"an image"
N = {"Clean": 20, "PGD-20": 20, "AutoAttack": 5}  # images
HOSTILE = "<script>alert(1)</script>&\"'"


class Document(HTMLParser):
    """Parses a page strictly: every element that begins ends, in order."""

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.open, self.tags, self.texts, self.rows, self.attributes = [], [], [], [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += [(tag, *pair) for pair in attributes]
        if tag not in ("br", "img", "meta"):
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)
        if {"td", "th"} & set(self.open):
            self.rows[-1][-1] += data

    def table(self):
        header, *rows = self.rows
        return [{title: cell.strip() for title, cell in zip(header, row, strict=True)} for row in rows]


def write_epochs(run, *accuracies):
    """Write results.csv with a row for each pair of clean and PGD-10 accuracy; "" for none."""
    rows = [f"{n},0.1,1.5,{clean},{robust},{1000 + n},{500 + n}.5\n" for n, (clean, robust) in enumerate(accuracies, 1)]
    (run / "results.csv").write_text(HEADER + "".join(rows))
    return run


def read(*paths):
    return Document(render(read_runs(paths)))


@pytest.fixture
def tree(tmp_path):
    """Two runs with results and an image."""
    first = write_epochs(make_run(tmp_path / "runs/AT/a", "AT", epochs=4, epsilon=8.0), (80, 40), ("", ""), (90, 30))
    make_evaluation(first, {"Clean": 90, "PGD-20": 41.5})
    path = make_evaluation(first, {"Clean": 91, "PGD-20": 28.25}, LAST)
    (path.parent / "examples.png").write_bytes(PNG)
    second = write_epochs(make_run(tmp_path / "runs/DGAD/b", "DGAD", seed=7, epochs=1, epsilon=0.5), (85, 45))
    make_evaluation(second, {"Clean": 85, "PGD-20": 44, "AutoAttack": 42}, n=N)
    return tmp_path / "runs"


def test_the_page_shows_every_run_and_result(tree):
    for seed in (8, 9):  # with the second run three seeds
        write_epochs(make_run(tree / f"DGAD/{seed}", "DGAD", seed=seed, epochs=1, epsilon=0.5), (80, 45))
        make_evaluation(tree / f"DGAD/{seed}", {"Clean": 80 + seed, "PGD-20": 44, "AutoAttack": 42}, n=N)
    make_run(tree / "training", "AT", epochs=9)
    document = read(tree)
    best, last, *others, training, mean = document.table()
    names = ["run", "method", "student", "teacher", "seed", "checkpoint"]
    assert [best[name] for name in names] == ["AT/a", "AT", "small_resnet", "-", "42", "best"]
    assert (best["epochs"], best["images/s"], best["peak memory (MiB)"]) == ("3 of 4", "1002", "504")
    assert (best["best clean in training"], best["best PGD-10 in training"]) == ("90.00 (epoch 3)", "40.00 (epoch 1)")
    assert (best["PGD-20 (n=20)"], last["PGD-20 (n=20)"], last["AutoAttack (n=5)"]) == ("41.50", "28.25", "-")
    assert [row["run"] for row in others] == ["DGAD/8", "DGAD/9", "DGAD/b"]
    assert (others[2]["teacher"], others[2]["AutoAttack (n=5)"], last["checkpoint"]) == ("resnet18", "42.00", "last")
    assert (training["run"], training["epochs"], training["Clean (n=20)"]) == ("training", "0 of 9", "-")
    assert (mean["seed"], mean["Clean (n=20)"], mean["run"]) == ("mean ± sd (3 seeds)", "87.33 ± 2.08", "-")
    assert document.tags.count("svg") == 4 and document.tags.count("img") == 1


def test_the_page_loads_nothing(tree):
    (tree / "AT/a/config.json").write_text(json.dumps(asdict(TrainConfig(method="AT"))))
    make_evaluation(tree / "elsewhere")  # without settings it is named by its path
    text = render(read_runs([tree]))
    document = Document(text)
    targets = [value for _, key, value in document.attributes if key in ("src", "href", "xlink:href", "action", "data")]
    assert targets and all(value.startswith(("data:image/png;base64,", "#")) for value in targets)
    (policy,) = [value for _, key, value in document.attributes if key == "content" and "src" in value]
    (nonce,) = [value for _, key, value in document.attributes if key == "nonce"]
    assert policy.startswith("default-src 'none'; img-src data:;") and policy.endswith(f"script-src 'nonce-{nonce}'")
    assert "lr_max " in document.texts and not {"alp_beta ", "root_path "} & set(document.texts)  # what made the run
    assert not re.search("https?://|@import|url\\((?!#)", text)
    assert str(tree.parent) not in text  # no paths of this machine
    ids = [value for _, key, value in document.attributes if key == "id"]
    assert len(ids) == len(set(ids)) and {target[1:] for target in targets if target.startswith("#")} <= set(ids)


def test_text_from_files_is_never_markup(tmp_path):
    run = make_run(tmp_path / "runs" / HOSTILE.replace("/", "∕"), HOSTILE, model=HOSTILE, dataset=HOSTILE, temp=HOSTILE)
    write_epochs(run, (80, 40))
    path = make_evaluation(run, {"Clean": 60, HOSTILE: 50}, seed=HOSTILE)
    (path.parent / "examples.png").write_bytes(PNG)
    (run / "broken<b>_eval").mkdir()
    (run / "broken<b>_eval/eval.json").write_text("{")
    document = read(tmp_path / "runs")
    assert document.tags.count("script") == 1 and "b" not in document.tags
    assert not [key for _, key, _ in document.attributes if key.startswith("on")]
    (row,) = document.table()
    assert row["method"] == HOSTILE and row[f"{HOSTILE} (n=20)"] == "50.00"
    assert "broken<b>_eval/eval.json: damaged" in row["run"]


def test_names_in_any_script_and_invalid_bytes(tmp_path):
    write_epochs(make_run(tmp_path / "runs/学習 ε=8 🐈", "AT", desc_str="\udcff\x00é"), (80, 40))
    write_epochs(make_run(tmp_path / "runs" / os.fsdecode(b"latin-\xe9"), "AT"), (80, 40))
    text = render(read_runs([tmp_path / "runs"]))
    text.encode("utf-8")  # can be written
    assert {row["run"] for row in Document(text).table()} == {"学習 ε=8 🐈", "latin-\ufffd"}
    assert "\x00" not in text


EVALUATED = f"{BEST[:-4]}_eval"
BROKEN = {
    "config.json": ["", '{"method": "AT", "see', "[1, 2]", '"text"', "[" * 10**5, '{"method": ["AT"], "epochs": {}}'],
    "results.csv": [
        *("", "\0", "a\n" * 3, "\xff", HEADER + "1,0.1,1.5,80"),
        *(HEADER + "x,0.1,1.5,80,40,1,1\n", HEADER + "1,0.1,1.5,nan,1e999,1,1\n"),
    ],
    f"{EVALUATED}/eval.json": ["", '{"evaluations": [{"conditions": {}, "figures": {}}]}'],
    f"{EVALUATED}/examples.png": ["", "<svg onload=alert(1)>"],
}


@pytest.mark.parametrize(("file", "content"), [(file, content) for file in BROKEN for content in BROKEN[file]])
def test_a_damaged_file_is_reported_and_the_rest_is_read(tree, file, content):
    make_evaluation(tree / "AT/a")
    (tree / "AT/a" / file).write_text(content, encoding="latin-1")
    one, other = read_runs([tree])
    assert re.fullmatch("damaged(; .*)?", one.problems[file])
    assert other.evaluations[0].results["PGD-20"]["accuracy"] == 44 and not other.problems


def test_no_link_is_followed_out_of_a_run(tree, tmp_path):
    secret = tmp_path / "secret"
    write_epochs(make_run(secret / "run", "a secret method"), (99, 98))
    (secret / "examples.png").write_bytes(PNG + b"secret")
    (tree / "elsewhere").mkdir()
    (tree / "elsewhere/config.json").write_text('{"model_type": "of another program"}')
    run = tree / "DGAD/b"
    (run / EVALUATED / "examples.png").symlink_to(secret / "examples.png")
    (run / "results.csv").unlink()
    (run / "results.csv").symlink_to(secret / "run/results.csv")
    (tree / "linked").symlink_to(secret / "run")
    os.mkfifo(run / EVALUATED / "attacks.png")  # reading it would never return
    (run / EVALUATED / "confusion.png").symlink_to("confusion.png")
    make_evaluation(run, {"Clean": 1}, "../../../secret/examples.png")
    one, other = read_runs([tree])
    assert one.images and not one.problems
    assert not other.epochs and not other.images and [entry.checkpoint for entry in other.evaluations] == [BEST]
    assert other.problems["results.csv"] == other.problems[f"{EVALUATED}/examples.png"] == "not a file of this folder"
    assert "secret" not in re.sub("(examples|secret).png", "", "".join(read(tree).texts))


def test_a_run_named_twice_is_one_row(tree):
    assert [run.name for run in read_runs([tree / "AT", tree / "AT/a", tree / "DGAD"])] == ["AT/a", "DGAD/b"]
    assert [run.name for run in read_runs([tree / "AT/a"])] == ["a"]


def test_the_command_writes_the_page(tree, monkeypatch, caplog):
    monkeypatch.chdir(tree.parent)
    caplog.set_level("INFO")
    report(["runs"])
    assert "runs/report.html: runs: 2" in caplog.text
    report(["runs/AT", "runs/DGAD", "--out", "page.html"])
    for page in ("runs/report.html", "page.html"):
        assert len(Document(Path(page).read_text()).table()) == 3


BAD = {
    "absent": "absent: no such folder",
    "empty": "empty: no run found",
    "runs --out empty": "--out empty: cannot be written to",
    "runs --out absent/page.html": "--out absent/page.html: cannot be written to",
}


@pytest.mark.parametrize("arguments", BAD)
def test_bad_arguments_are_one_error(tree, monkeypatch, arguments):
    monkeypatch.chdir(tree.parent)
    Path("empty").mkdir()
    with user_error(BAD[arguments]):
        report(arguments.split())
    assert not list(tree.parent.rglob("*.html")) and not list(tree.parent.rglob(".partial-*"))


BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@pytest.mark.slow
@pytest.mark.skipif(not BROWSER, reason="no Chromium on the PATH")
def test_a_browser_opens_and_sorts_the_page(tree, tmp_path):
    (tree / "AT/a").rename(tree / "AT" / "<img src=x onerror=document.title='broken'>")
    text = render(read_runs([tree]))
    (nonce,) = re.findall('nonce="(.*?)"', text)
    click = "for (const h of document.querySelectorAll('th')) if (h.textContent === 'PGD-20 (n=20)') h.click()"
    (tmp_path / "real.html").write_text(text)
    (tmp_path / "sorted.html").write_text(text.replace("</body>", f'<script nonce="{nonce}">{click}</script></body>'))

    def dump(name):
        flags = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
        command = [BROWSER, *flags, "--enable-logging=stderr", "--dump-dom", (tmp_path / name).as_uri()]
        return subprocess.run(command, capture_output=True, text=True, timeout=120)

    real, clicked = dump("real.html"), dump("sorted.html")
    assert "<title>Runs</title>" in real.stdout and "CONSOLE" not in real.stderr, real.stderr
    assert Document(real.stdout).table()[-1]["run"] == "DGAD/b"
    assert Document(clicked.stdout).table()[0]["run"] == "DGAD/b"  # 44.00 before 41.50: the largest first
