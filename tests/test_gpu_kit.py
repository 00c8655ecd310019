"""scripts/reproduce/gpu.py: everything at smoke scale on a CPU, its time limit, and joining the teacher."""

import argparse
import hashlib
import json

import pytest
import torch
from conftest import user_error
from safetensors.torch import load_file
from small_sets import save_network

from models.hub import WEIGHTS
from scripts.reproduce.gpu import Session, gpu
from scripts.reproduce.gpu_results import ATTACKS, PARTS, RESULTS
from utils.errors import UserError


@pytest.fixture
def session(tmp_path):
    def make(minutes=1.0, **changes):
        folders = {name: str(tmp_path / name) for name in ("out", "work", "done", "data_root")}
        options = {"scale": "smoke", "epochs": None, "minutes": minutes} | folders | changes
        return Session(argparse.Namespace(**options))

    return make


@pytest.mark.slow
def test_everything_runs_at_smoke_scale(tmp_path, caplog):
    caplog.set_level("INFO")
    flags = f"--minutes 4 --scale smoke --out {tmp_path / 'out'} --work {tmp_path / 'work'} --done {tmp_path}".split()
    gpu(flags)
    assert {path.name for path in (tmp_path / "out").iterdir()} == {RESULTS, *PARTS}
    results = json.loads((tmp_path / "out" / RESULTS).read_text())
    pieces = results["pieces"]
    assert not {key: piece["error"] for key, piece in pieces.items() if "error" in piece}
    rows = {"teacher", "DGAD", "standard", "IAD-II"}
    evaluations = {f"{row} evaluation" for row in rows - {"standard"}}
    (step,) = [key for key in pieces if key.startswith("step ")]
    assert pieces.keys() == {"tests", step} | rows | evaluations
    assert pieces["DGAD evaluation"]["results"]["best"].keys() >= {"Clean", "FGSM", "PGD-20"}
    assert "main_eval.py" in pieces["DGAD evaluation"]["command"]
    assert results["machine"]["torch"] and results["machine"]["data"] == "Digits"
    caplog.clear()
    gpu(flags)
    assert not caplog.messages  # everything is done
    gpu(["--table", str(tmp_path / "out")])
    assert all(cells in caplog.text for cells in ("| DGAD | best |", "| teacher | best |", "| --method AT"))


BAD = {
    "--minutes 0 --out OUT": "--minutes 0: must be",
    "--minutes 1": "--out: required",
    "--minutes 1 --out OUT --epochs 0": "--epochs 0: must be",
    "--minutes 1 --out OUT --data_root OUT": "no images in train/CLASS/",
    "--table OUT": "has no results",
    "--join OUT --to OUT/to": "has no evaluated teacher",
}


@pytest.mark.parametrize("flags", BAD)
def test_a_bad_request_is_one_line(tmp_path, flags):
    with user_error(BAD[flags]):
        gpu(flags.replace("OUT", str(tmp_path / "out")).split())
    assert not any(tmp_path.iterdir())


def test_accuracies_of_another_card_are_done_its_times_are_not_and_its_folder_stays(session, tmp_path):
    (tmp_path / "done").mkdir()
    pieces = {"step AT": {}, "tests": {}, "DGAD": {"rows": []}, "ARD": {"error": "stopped"}}
    path, content = tmp_path / "done" / RESULTS, json.dumps({"machine": {"device": "NVIDIA H100"}, "pieces": pieces})
    path.write_text(content)
    assert session().done.keys() == {"DGAD"}
    with pytest.raises(UserError, match="has results of NVIDIA H100"):
        session(out=str(tmp_path / "done"))
    assert path.read_text() == content


def test_a_piece_that_does_not_fit_is_not_started_and_each_result_is_written_at_once(session, tmp_path):
    short = session(minutes=0.5)
    short.attempt("long", 60, lambda: pytest.fail("started"))
    short.attempt("first", 1, lambda: {"a": 1})
    kept = json.loads((tmp_path / "out" / RESULTS).read_text())["pieces"]
    assert kept.keys() == {"first"} and kept["first"]["a"] == 1
    short.attempt("tests", 9, lambda: short.command(["-c", "print('the reason'); raise SystemExit(3)"], "tests"))
    short.attempt("step", 0.2, lambda: short.command(["-c", "import time; time.sleep(60)"], "step"))
    short.attempt("first", 1, lambda: pytest.fail("done already"))
    again = session()
    assert again.pieces["tests"]["error"] == "status 3: the reason" and again.done.keys() == {"first"}
    assert again.pieces["tests"]["log"][-1] == "the reason" and "stopped after" in again.pieces["step"]["error"]
    (tmp_path / "out" / PARTS[0]).touch()
    session(work=str(tmp_path / "out")).attempt("second", 1, dict)  # one folder for everything
    assert again.longest("tests") == again.scale["seconds"]["tests"]  # a failure does not say how long it takes


def test_a_teacher_whose_epochs_cannot_finish_in_time_is_not_started(session):
    started = []
    for minutes in (7, 9):
        one = session(minutes, scale="full")
        one.train = one.evaluate = lambda *_, minutes=minutes: started.append(minutes) or {}
        one.train_row("teacher")
    assert started == [9, 9]  # training and evaluation


def test_a_training_that_cannot_finish_in_time_is_stopped(session, tmp_path):
    results = tmp_path / "results.csv"
    results.write_text("epoch\n1\n2\n")  # of an earlier call
    rows = f"import time\nfor n in range(9):\n time.sleep(1); open({str(results)!r}, 'a').write('1\\n')"
    piece = session(minutes=0.4).command(["-c", rows], "training", epochs=100, results=results)
    assert "2 epochs: it would not finish" in piece["error"]  # of 100, a second each


def test_a_stopped_evaluation_keeps_its_attacks_and_tests_of_another_commit_do_not_count(session, monkeypatch):
    one = session()
    one.command = lambda *_: {"error": "stopped"}
    folder = one.runs["DGAD"].folder / "best_PGD10_acc_model_eval"
    folder.mkdir(parents=True)
    monkeypatch.setattr("scripts.reproduce.gpu.read_evaluations", lambda path: [{"figures": {"FGSM": 1}}])
    (folder / "eval.json").touch()
    one.attempt("DGAD evaluation", 1, lambda: one.evaluate("DGAD"))
    assert one.pieces["DGAD evaluation"]["results"] == {"best": {"FGSM": 1}} and not one.done
    one.attempt("tests", 1, dict)
    assert session().done.keys() == {"tests"}
    monkeypatch.setattr("scripts.reproduce.gpu.versions", lambda: {"git": "other"})
    assert not session().done


def test_a_teacher_of_several_earlier_calls_is_joined_from_the_parts_of_one(session, tmp_path):
    for folder in (tmp_path / "done/a", tmp_path / "done/b"):
        folder.mkdir(parents=True)
        for part in PARTS:
            (folder / part).write_text(f"{folder.name}{part} ")
    assert session().weights().read_text() in ("ateacher.1 ateacher.2 ", "bteacher.1 bteacher.2 ")


@pytest.fixture
def teacher(session, tmp_path):
    """A teacher as gpu.py writes it to DIR; its weights."""

    def make(autoattack):
        content = {"model": "small_resnet", "dataset": "Digits", "image_size": 16, "method": "AT"}
        path, one = save_network(tmp_path / "best.pth", **content, classes=list("0123456789")), session()
        kept = one.keep_teacher(path)
        results = {attack: {"accuracy": autoattack, "n": 1000} for attack in ATTACKS}
        one.attempt("teacher", 0, lambda: kept | {"epochs": 30, "command": "python main.py"})
        one.attempt("teacher evaluation", 0, lambda: {"results": {"best": results}})
        return torch.load(path, weights_only=True)["net"]

    return make


def test_a_good_teacher_is_joined_with_its_card(teacher, tmp_path):
    state, target = teacher(autoattack=41.0), tmp_path / "joined"
    gpu(["--join", str(tmp_path / "out"), "--to", str(target)])
    weights = load_file(target / WEIGHTS)
    for key, value in state.items():
        kept = weights[f"model.{key}"]
        assert kept.dtype == (torch.bfloat16 if value.ndim > 1 else value.dtype)
        torch.testing.assert_close(kept.to(value.dtype), value, rtol=2**-8, atol=0)
    card = (target / "README.md").read_text()
    assert "| AutoAttack | 41.00 | 1000 |" in card and "Data: Digits." in card and "python main.py" in card
    assert hashlib.sha256((target / WEIGHTS).read_bytes()).hexdigest() in (tmp_path / "out" / RESULTS).read_text()


def test_a_weak_or_damaged_teacher_is_not_written(teacher, tmp_path):
    teacher(autoattack=39.0)
    for message in ("39.00 % is below 40 %", "damaged"):
        with user_error(message):
            gpu(["--join", str(tmp_path / "out"), "--to", str(tmp_path / "joined")])
        (tmp_path / "out" / PARTS[1]).write_bytes(b"other")
    assert not (tmp_path / "joined").exists()
