"""What --log_reliability tells of the teacher: the truth, without another forward, and the same after interruptions."""

import csv
import os
import signal

import matplotlib.pyplot as plt
import pytest
import torch
from commands import SMALL, run_here
from PIL import Image
from test_distributed import torchrun
from test_faults import files_of, seen
from test_trainer import trainer_of
from tiny import tiny_problem

from engine.distributed import Processes, Shard
from engine.training.metrics import EpochMetrics
from methods import METHODS, WITH_TWO_TEACHERS, WITHOUT_TEACHER
from methods.losses import Step
from models import build
from utils.plots import draw_alpha

# Which of the teacher's logits a method computes, on clean and on adversarial images, before and from introspection on.
COMPUTED = {
    "ARD": ("clean", "clean"),
    "IAD-I": ("clean", "clean adv"),
    "RSLAD": ("clean", "clean"),
    "AdaAD": ("clean adv", "clean adv"),
    "AdaIAD": ("adv", "adv"),
    "DGAD": ("clean adv", "clean adv"),
    "DGAD-IAD": ("clean adv", "clean adv"),
    "AKD2": ("adv", "adv"),
    "IAD-II": ("adv", "adv"),
}


def test_every_method_with_a_teacher_is_listed():
    assert COMPUTED.keys() == METHODS.keys() - WITHOUT_TEACHER.keys()


@pytest.mark.parametrize("name", COMPUTED)
@pytest.mark.parametrize("epoch", [0, 60])
def test_a_step_returns_the_teachers_logits_that_it_computes_anyway(name, epoch):
    student, teacher, x, y = tiny_problem()
    seen_by_teacher = []
    trainer = trainer_of(name, student, teacher)
    method = trainer.method

    def watched(live, *rest):
        guide, others = rest[0], rest[1:]

        def counting(images):
            logits = guide(images)
            if not torch.is_grad_enabled():
                seen_by_teacher.append((images, logits))
            return logits

        return method(live, counting, *others)

    trainer.method = watched
    outcome = trainer.step(x, y, epoch)
    words = COMPUTED[name][epoch >= 60].split()
    found = {"clean": outcome.t_clean, "adv": outcome.t_adv}
    assert [key for key, logits in found.items() if logits is not None] == words
    assert len(seen_by_teacher) == len(words), "no forward for the record alone"
    for images, logits in seen_by_teacher:
        kind = "clean" if torch.equal(images, x) else "adv"
        assert torch.equal(found[kind], logits)
        torch.testing.assert_close(logits, teacher(images))


def outcome_of(probabilities, labels):
    """A step whose teacher gives these probabilities of the label, in two classes, on adversarial images."""
    alpha = torch.tensor(probabilities, dtype=torch.float64)
    of_label = torch.nn.functional.one_hot(labels, 2).bool()
    logits = torch.where(of_label, alpha[:, None].log(), (1 - alpha)[:, None].log())
    return Step(torch.tensor(1.0), t_clean=of_label * 1.0, t_adv=logits)


def test_alpha_is_counted_in_twenty_parts_and_one_falls_into_the_last():
    y = torch.tensor([0, 1, 0, 1, 0, 1])
    metrics = EpochMetrics("cpu", teacher=True)
    metrics.add(outcome_of([0.0, 0.049, 0.051, 0.52, 0.999, 1.0], y), y, Shard(slice(0, 6), 6, 1.0))
    found = metrics.reliability()
    assert (found.n, found.clean_acc, found.adv_acc) == (6, 100, 50)
    assert found.alpha == [2, 1, *[0] * 8, 1, *[0] * 8, 2]


def test_an_epochs_shares_weigh_every_image_equally_and_a_state_continues_them():
    y = torch.tensor([0, 1, 0, 1])
    outcome = outcome_of([0.9, 0.2, 0.3, 0.7], y)
    one = Step(outcome.loss, t_clean=outcome.t_clean[:1], t_adv=outcome.t_adv[:1])
    whole = EpochMetrics("cpu", teacher=True)
    parts = EpochMetrics("cpu", teacher=True)
    for step, n in ((outcome, 4), (one, 1)):
        whole.add(step, y[:n], Shard(slice(0, n), n, 1.0))
        parts.add(step, y[:n], Shard(slice(0, n), n, 1.0))
        parts = EpochMetrics("cpu", state=parts.state(), teacher=True)
    assert whole.reliability() == parts.reliability()
    assert whole.reliability().adv_acc == 60 and whole.state() == parts.state()


def test_a_tally_without_the_flag_keeps_and_saves_nothing_of_it():
    y = torch.tensor([0, 1])
    metrics = EpochMetrics("cpu")
    metrics.add(outcome_of([0.9, 0.2], y), y, Shard(slice(0, 2), 2, 1.0))
    assert metrics.reliability() is None
    assert metrics.state().keys() == {"batches", "images", "loss", "clean", "adv"}
    late = EpochMetrics("cpu", state=metrics.state(), teacher=True)  # the flag was given in the middle of an epoch
    late.add(outcome_of([0.9, 0.2], y), y, Shard(slice(0, 2), 2, 1.0))
    assert (late.reliability().n, late.reliability().adv_acc) == (2, 50)


def test_the_parts_of_several_processes_add_up_to_the_whole():
    y = torch.tensor([0, 1, 0, 1, 1])
    outcome = outcome_of([0.9, 0.2, 0.3, 0.7, 0.6], y)
    whole = EpochMetrics("cpu", teacher=True)
    whole.add(outcome, y, Shard(slice(0, 5), 5, 1.0))
    total = 0
    for rank in range(2):
        part = Processes(rank, 2).shard(5)
        metrics = EpochMetrics("cpu", teacher=True)
        logits = {key: getattr(outcome, key)[part.rows] for key in ("t_clean", "t_adv")}
        metrics.add(Step(outcome.loss, **logits), y[part.rows], part)
        total = total + torch.tensor(metrics.state()["alpha"])
    assert total.tolist() == whole.reliability().alpha
    second = EpochMetrics("cpu", Processes(1, 2), whole.state(), teacher=True)
    assert not second.sums["alpha"].any() and not second.sums["t_adv"], "the first process alone goes on with the sums"


def test_a_shared_run_counts_what_one_process_does(run, tmp_path):
    words = distil("DGAD", "--epochs 1 --log_reliability --precision fp32")
    words = words.replace("--limit_train 48", "--limit_train 50")  # a last batch of two
    assert run(f"{words} --root_path alone").status == 0
    shared = torchrun(2, "main.py", f"{words} --root_path shared", tmp_path)
    _, err = shared.communicate(timeout=120)
    assert shared.returncode == 0, err
    (one,), (two,) = rows_of(tmp_path / "alone"), rows_of(tmp_path / "shared")
    assert one["n"] == two["n"] == "50" and one["teacher_clean_acc"] == two["teacher_clean_acc"]
    counts = [[int(cell) for key, cell in row.items() if key.startswith("alpha_")] for row in (one, two)]
    assert sum(counts[0]) == sum(counts[1]) == 50
    # The attacks' signs may differ by rounding, which moves an image or two to the next part.
    assert sum(abs(a - b) for a, b in zip(*counts, strict=True)) <= 8


@pytest.fixture
def run(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    torch.save({"net": build("small_resnet", 10, 16).state_dict()}, tmp_path / "teacher.pth")
    return lambda words: run_here(monkeypatch, capsys, "main.py", words)


def distil(method, *more):
    teachers = "--teacher_model small_resnet --teacher_path teacher.pth --no_teacher_check --std_teacher_model "
    teachers += "small_resnet" + " --std_teacher_path teacher.pth" * (method in WITH_TWO_TEACHERS)
    words = [SMALL, f"--method {method} --lr_schedule constant --device cpu --threads 1", teachers, *more]
    return " ".join(words)


def rows_of(root):
    (path,) = root.rglob("reliability.csv")
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_a_run_writes_a_row_an_epoch_and_a_picture(run, tmp_path):
    assert run(distil("IAD-I", "--epochs 3 --IAD_begin 1 --log_reliability")).status == 0
    rows = rows_of(tmp_path)
    assert [(row["epoch"], row["n"]) for row in rows] == [("0", "48"), ("1", "48"), ("2", "48")]
    assert all(0 <= float(row["teacher_clean_acc"]) <= 100 for row in rows)
    assert rows[0]["teacher_adv_acc"] == rows[0]["alpha_0.00"] == ""  # no introspection yet
    for row in rows[1:]:
        counts = [int(cell) for key, cell in row.items() if key.startswith("alpha_")]
        assert len(counts) == 20 and sum(counts) == 48
    with Image.open(next(tmp_path.rglob("reliability.png"))) as picture:
        assert picture.format == "PNG"


def test_the_flag_changes_nothing_else_of_a_run(run, tmp_path):
    assert run(distil("DGAD", "--epochs 2 --root_path plain")).status == 0
    assert run(distil("DGAD", "--epochs 2 --root_path watched --log_reliability")).status == 0
    plain, watched = files_of(tmp_path / "plain"), files_of(tmp_path / "watched")
    added = {name.rsplit("/", 1)[1] for name in watched.keys() - plain.keys()}
    assert added == {"reliability.csv", "reliability.png"}
    others = [name for name in plain if "resume/" not in name and not name.endswith("config.json")]
    assert all(plain[name] == watched[name] for name in others) and len(others) >= 4


def test_two_epochs_and_two_more_are_four_and_a_run_may_go_on_without(run, tmp_path):
    assert run(distil("DGAD", "--epochs 4 --root_path whole --log_reliability")).status == 0
    assert run(distil("DGAD", "--epochs 2 --root_path parts --log_reliability")).status == 0
    assert run(distil("DGAD", "--epochs 3 --root_path parts --resume")).status == 0
    assert len(rows_of(tmp_path / "parts")) == 2
    assert run(distil("DGAD", "--epochs 4 --root_path parts --resume --log_reliability")).status == 0
    whole, parts = rows_of(tmp_path / "whole"), rows_of(tmp_path / "parts")
    assert parts == [whole[0], whole[1], whole[3]]


def test_a_run_killed_within_an_epoch_ends_with_the_same_bytes(nursery, tmp_path):
    torch.manual_seed(0)
    torch.save({"net": build("small_resnet", 10, 16).state_dict()}, tmp_path / "teacher.pth")
    words = distil("DGAD", "--epochs 3 --save_minutes 0 --resume --log_reliability").replace("--bs 16", "--bs 4")
    words = words.replace("teacher.pth", str(tmp_path / "teacher.pth"))
    nursery.start(tmp_path / "whole", "main.py", words)
    assert nursery.wait() == 0
    for epoch in (0, 1):
        pid = nursery.start(tmp_path / "parts", "main.py", words)
        seen(lambda epoch=epoch: any((tmp_path / "parts").rglob(f"resume/{epoch:04d}-00000[5-9].pth")))
        os.kill(pid, signal.SIGKILL)
        assert nursery.wait() == -signal.SIGKILL
    nursery.start(tmp_path / "parts", "main.py", words)
    assert nursery.wait() == 0
    assert "resuming after epoch" in (tmp_path / "parts/output.txt").read_text()
    assert files_of(tmp_path / "parts") == files_of(tmp_path / "whole")
    assert len(rows_of(tmp_path / "parts")) == 3


def test_a_method_that_returns_no_logits_of_its_teacher_is_named_in_place_of_a_picture(run, tmp_path, monkeypatch):
    made = METHODS["RSLAD"]
    hidden = {"t_clean": None, "t_adv": None}
    monkeypatch.setitem(METHODS, "RSLAD", lambda c: lambda *given: made(c)(*given)._replace(**hidden))
    ended = run(distil("RSLAD", "--epochs 1 --log_reliability"))
    assert ended.status == 0 and "no reliability.png: RSLAD returns no logits" in ended.out
    assert not list(tmp_path.rglob("reliability.png"))


@pytest.mark.parametrize("method", ["AT", "Natural"])
def test_a_method_without_a_teacher_has_none_to_watch(run, tmp_path, method):
    ended = run(f"{SMALL} --method {method} --log_reliability")
    assert ended.status == 2
    assert ended.err == f"error: --log_reliability: {method} has no teacher to watch; leave it out\n"
    assert not (tmp_path / "tuned_models").exists()


def test_the_map_of_alpha_shows_shares_of_each_epoch():
    columns = ["alpha_0.00", "alpha_0.50"]
    rows = [
        {"epoch": 0, "n": 4, columns[0]: None, columns[1]: None},
        {"epoch": 1, "n": 4, columns[0]: 1, columns[1]: 3},
    ]
    figure, axes = plt.subplots()
    draw_alpha(axes, rows, columns)
    (mesh,) = axes.collections
    assert mesh.get_array().flatten().tolist() == [25, 75]
    plt.close(figure)
