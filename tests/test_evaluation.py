"""What an evaluation is trusted for: its counts, what it keeps when interrupted, its warnings, its reports."""

import csv
import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from commands import run_here
from conftest import ROOT
from tiny import trained_on_stripes
from torch import nn

from attacks.pgd import pgd_until_fooled
from attacks.suite import Attack, Setting, official_protocol, pgd20
from data import Split
from data.loader import Batches
from engine.distributed import Processes
from engine.eval_pictures import confusion, radius_curve
from engine.eval_state import State
from engine.evaluate import read, strike
from engine.guard import Probe, probe, warn_of_masking
from engine.records import Record, folder_of, place_of, read_evaluations, worst_case
from engine.run_folder import BEST_PGD10, LAST
from models import build
from utils.log import Bar

ALONE = {"seed": 3, "state": State(None, {}), "processes": Processes()}
DIGITS = "--dataset Digits --image_size 16 --no-pictures"


@pytest.fixture
def run(monkeypatch, capsys, tmp_path):
    """Evaluate inside an empty folder and see that it ends with the status that it should."""
    monkeypatch.chdir(tmp_path)

    def start(words, status=0):
        ended = run_here(monkeypatch, capsys, "main_eval.py", words)
        assert ended.status == status, ended.err
        return ended

    return start


def save_network(path, seed=0, classes=10, **facts):
    torch.manual_seed(seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"net": build("small_resnet", classes, 16).state_dict(), **facts}, path)
    return path


class FirstPixel(nn.Module):
    """Reads as class the first pixel's value modulo ten."""

    def forward(self, x):
        return nn.functional.one_hot((255 * x[:, 0, 0, 0]).round().long() % 10, 10).float()


def some_images(n=30):
    """Images as bytes, with the labels that a network reads in four of five of them."""
    net = FirstPixel()
    images = torch.randint(256, (n, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    labels = net(images / 255).argmax(1)
    labels[::5] = (labels[::5] + 1) % 10
    return net, Split(images, labels)


# Counting.


def test_what_is_misread_clean_counts_as_fooled_and_is_not_attacked():
    net, images = some_images()
    seen = []

    def harmless(model, x, y, noise):
        seen.append(len(x))
        return x

    batches = Batches(images, 10, device="cpu")
    outcome = strike(net, batches, read(net, batches), Attack("any", {}, {"": harmless}), **ALONE)
    assert seen == [8, 8, 8]
    assert outcome.fallen.tolist() == [0, 2, 2, 2, 2] * 6


def test_an_attack_on_every_image_is_judged_by_its_result_alone():
    net, images = some_images()
    right = net(images.images / 255).argmax(1)
    batches = Batches(images, 10, device="cpu")
    # Gives for each image the first of the batch, whatever it was.
    first = Attack("any", {}, {"": lambda model, x, y, noise: x[:1].expand_as(x)}, every_image=True)
    outcome = strike(net, batches, read(net, batches), first, **ALONE)
    assert torch.equal(outcome.predicted, right[torch.arange(30) // 10 * 10])
    assert torch.equal(outcome.fallen == 2, outcome.predicted == images.labels)


def test_stages_meet_only_what_the_stages_before_left_standing():
    net, images = some_images(10)
    met = []

    def turns(*numbers):
        def perturb(model, x, y, noise):
            met.append(len(x))
            x_adv = x.clone()
            x_adv[list(numbers), 0, 0, 0] = (x[list(numbers), 0, 0, 0] + 0.01) % 1
            return x_adv

        return perturb

    stages = {"a": turns(0, 1), "b": turns(0), "c": turns()}
    batches = Batches(images, 10, device="cpu")
    outcome = strike(net, batches, read(net, batches), Attack("any", {}, stages), **ALONE)
    assert met == [8, 6, 5]
    assert outcome.fallen.tolist() == [0, 1, 1, 2, 4, 0, 4, 4, 4, 4]


def test_an_images_start_depends_on_no_other_attack_and_on_no_other_process():
    net, images = some_images(40)
    seen = []

    def noting(model, x, y, noise):
        seen.append(noise)
        return x

    attack = Attack("any", {}, {"": noting}, every_image=True)
    batches = Batches(images, 10, device="cpu")
    clean = read(net, batches)
    strike(net, batches, clean, attack, **ALONE)

    class Share(Processes):
        def total(self, values):
            return values

    for rank in range(2):
        strike(net, batches, clean, attack, seed=3, state=State(None, {}), processes=Share(rank, 2))
    alone, shared = seen[:4], seen[4:]
    assert len(shared) == 4
    assert all(torch.equal(alone[k], shared[place]) for place, k in enumerate([0, 2, 1, 3]))


def test_restarts_only_lower_the_figure():
    net, x, y = trained_on_stripes()
    batches = Batches(Split((255 * x).round().byte(), y), 100, device="cpu")
    figures = []
    for restarts in (1, 3):
        attack = pgd20(Setting(16 / 255, 0, steps=2, restarts=restarts))
        outcome = strike(net, batches, read(net, batches), attack, **ALONE)
        figures.append(outcome.fallen > restarts)
    assert (figures[1] <= figures[0]).all() and figures[1].sum() < figures[0].sum()


def test_the_worst_case_is_over_images_that_met_every_attack_in_the_ball():
    figures = {
        "a": {"correct": "11110", "bounded": True},
        "b": {"correct": "01111", "bounded": True},
        "c": {"correct": "--101", "bounded": True},
        "outside the ball": {"correct": "00000", "bounded": False},
    }
    worst = worst_case(figures)["worst case"]
    assert (worst["accuracy"], worst["n"]) == (pytest.approx(100 / 3), 3)
    assert worst["settings"] == "over a, b, c"


def test_the_official_protocol_attacks_every_image():
    protocol = official_protocol(Setting(8 / 255, 0))
    assert all(protocol[key].every_image for key in ("fgsm", "pgd", "cw"))
    assert not protocol["cw"].bounded


# Interruptions, several processes, several checkpoints.


def figures_in(path):
    (evaluation,) = read_evaluations(path)
    return {title: (figure["accuracy"], figure.get("correct")) for title, figure in evaluation["figures"].items()}


@pytest.mark.parametrize("pieces", [1, 3, 6])
def test_an_interrupted_evaluation_keeps_its_figures_and_continues_to_the_same_end(run, tmp_path, monkeypatch, pieces):
    for name in ("whole", "parts"):
        save_network(tmp_path / name / "net.pth")
    words = f"{DIGITS} --limit_test 60 --bs 20 --eps 0.02 --restarts 2 --attacks fgsm,pgd"  # 3 and 6 pieces
    run(f"{words} --model_path whole/net.pth")

    def interrupted(bar, advance=Bar.advance):
        interrupted.done += 1
        if interrupted.done > 3 + pieces:
            raise KeyboardInterrupt
        advance(bar)

    interrupted.done = 0
    with monkeypatch.context() as patch:
        patch.setattr("utils.log.Bar.advance", interrupted)
        run(f"{words} --model_path parts/net.pth --state state", status=130 if pieces < 6 else 0)
    kept = read_evaluations(place_of("parts/net.pth"))[-1]["figures"]
    assert "FGSM" in kept

    climbed = []

    def climb(*where, **ball):
        climbed.append(1)
        return pgd_until_fooled(*where, **ball)

    monkeypatch.setattr("attacks.suite.pgd_until_fooled", climb)
    run(f"{words} --model_path parts/net.pth --state state")
    assert figures_in(place_of("parts/net.pth")) == figures_in(place_of("whole/net.pth"))
    # A piece that was finished is not done again; one more was done than the bar had shown.
    assert len(climbed) == max(0, 6 - pieces - 1)


def test_the_state_of_another_evaluation_is_refused(run, tmp_path):
    save_network(tmp_path / "net.pth")
    words = f"{DIGITS} --model_path net.pth --limit_test 20 --attacks fgsm --state state"
    run(words)
    ended = run(f"{words} --eps 0.1", status=2)
    assert "of another evaluation (eps 0.031" in ended.err and ended.err.count("\n") == 1


def test_processes_of_torchrun_share_the_images_and_one_of_them_writes(run, tmp_path):
    for name in ("alone", "shared"):
        save_network(tmp_path / name / "net.pth")
    words = f"{DIGITS} --limit_test 50 --bs 10 --eps 0.02 --attacks clean,pgd,aa --limit_aa 12"
    run(f"{words} --model_path alone/net.pth")
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    ended = subprocess.run(
        [*launch, str(ROOT / "main_eval.py"), *words.split(), "--model_path", "shared/net.pth"],
        cwd=tmp_path,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert ended.returncode == 0, ended.stderr
    assert figures_in(place_of(tmp_path / "shared/net.pth")) == figures_in(place_of(tmp_path / "alone/net.pth"))
    assert ended.stdout.count("PGD-20  ") == 1


def test_a_folder_gives_best_and_last_of_its_runs_side_by_side(run, tmp_path):
    facts = {"model": "small_resnet", "dataset": "Digits", "image_size": 16}
    for seed, name in enumerate((BEST_PGD10, LAST)):
        save_network(tmp_path / "runs/AT/net" / name, seed, **facts)
    save_network(tmp_path / "runs/AT/net/best_clean_acc_model.pth", 2, **facts)
    save_network(tmp_path / "runs/DGAD/net" / LAST, 3, **facts)
    ended = run("--dataset Digits --model_path runs --limit_test 20 --attacks clean,fgsm --no-pictures")
    rows = ended.out.splitlines()[-2:]
    assert rows[0].split()[:4] == ["AT/net", "best", "/", "last"] and rows[0].count("/") == 2 + 3
    assert rows[1].split()[:2] == ["DGAD/net", "last"]
    for name in (BEST_PGD10, LAST):
        (entry,) = read_evaluations(place_of(Path("runs/AT/net", name)))
        assert entry["conditions"]["checkpoint"] == name


def test_a_network_without_a_name_is_recognised_by_its_shapes(run, tmp_path):
    torch.save(build("vgg16", 10).state_dict(), tmp_path / "net.pt")
    ended = run("--dataset Digits --image_size 32 --model_path net.pt --limit_test 10 --attacks clean --no-pictures")
    assert "net.pt: vgg16 on 10 test images" in ended.out


# Warnings.


class Sure(nn.Module):
    """A network whose softmax saturates in float32, so that its cross entropy has no gradient."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, x):
        return 1e4 * self.network(x)


def record_of(tmp_path, figures, **conditions):
    same = {"sha256": "0", "model": "m", "dataset": "d", "images": 1, "eps": 8 / 255}
    record = Record(tmp_path / "net_eval", same | conditions)
    for title, figure in figures.items():
        record.keep(title, {"n": 500, "bounded": False, "stages": {}} | figure)
    return record


def test_a_network_whose_gradients_vanish_is_called_out_and_an_honest_one_is_not(tmp_path):
    net, x, y = trained_on_stripes()
    images = Split((255 * x).round().byte(), y)
    record = record_of(tmp_path, {})
    assert warn_of_masking(record, 8 / 255, probe(net, images, 8 / 255, "cpu")) == []
    warnings = warn_of_masking(record, 8 / 255, probe(Sure(net), images, 8 / 255, "cpu"))
    assert len(warnings) == 2 and "where nothing should" in warnings[0] and "flat" in warnings[1]


@pytest.mark.parametrize(
    ("figures", "line"),
    [
        ({"FGSM": {"accuracy": 30.0}, "PGD-20": {"accuracy": 40.0}}, "FGSM beats PGD-20 (30.00 < 40.00 %)"),
        ({"Square": {"accuracy": 30.0}, "PGD-20": {"accuracy": 40.0}}, "Square beats PGD-20 (30.00 < 40.00 %)"),
        # Cross entropy is a poor guide to the border between two classes; gradients that find it are not masked.
        ({"Square": {"accuracy": 30.0}, "PGD-20": {"accuracy": 40.0}, "C&W-inf-30": {"accuracy": 29.0}}, None),
        ({"AutoAttack": {"accuracy": 30.0, "stages": {"FAB-T": 32.0, "Square": 30.0}}}, "Square turns 2.00 %"),
        ({"FGSM": {"accuracy": 39.8}, "PGD-20": {"accuracy": 40.0}}, None),
        ({"FGSM": {"accuracy": 50.0}, "PGD-20": {"accuracy": 40.0}}, None),
    ],
)
def test_a_weaker_attack_that_wins_is_called_out(tmp_path, figures, line):
    warnings = warn_of_masking(record_of(tmp_path, figures), 8 / 255, None)
    assert [line in warning for warning in warnings] == [True] * (line is not None)


def test_attacks_of_different_protocols_on_the_same_images_are_compared(tmp_path):
    record_of(tmp_path, {"PGD-20": {"accuracy": 40.0}}, protocol="paper")
    blackbox = record_of(tmp_path, {"Square": {"accuracy": 30.0}}, protocol="blackbox")
    assert len(warn_of_masking(blackbox, 8 / 255, None)) == 1
    elsewhere = record_of(tmp_path, {"Square": {"accuracy": 30.0}}, protocol="blackbox", images=2)
    assert warn_of_masking(elsewhere, 8 / 255, None) == []


def test_a_steady_loss_is_flat_and_a_growing_one_is_not(tmp_path):
    record = record_of(tmp_path, {})
    assert len(warn_of_masking(record, 8 / 255, Probe(1.0, 1.005, 0.0))) == 1
    assert warn_of_masking(record, 8 / 255, Probe(1.0, 2.0, 0.0)) == []


# Reports.


def test_reports_say_all_that_makes_a_figure(run, tmp_path):
    path = save_network(tmp_path / "net.pth")
    words = "--dataset Digits --image_size 16 --model_path net.pth --natural_path net.pth --limit_test 40"
    run(f"{words} --attacks clean,fgsm,pgd --eps 0.02 --restarts 2")
    folder = folder_of(path)
    assert {file.name for file in folder.iterdir()} == {
        *("eval.json", "eval.csv", "eval.md", "attacks.png", "examples.png"),
        *("confusion.png", "confusion_clean.csv", "confusion_PGD-20.csv"),
    }
    (evaluation,) = read_evaluations(folder / "eval.json")
    assert evaluation["conditions"]["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert evaluation["versions"]["torch"] == torch.__version__ and "git" in evaluation["versions"]
    figure = evaluation["figures"]["PGD-20"]
    expected = {"epsilon": 0.02, "steps": 20, "step_size": 0.005, "start": "uniform", "restarts": 2}
    assert figure["parameters"] == expected | {"judged": "at every step"}
    assert figure["accuracy"] == pytest.approx(100 * figure["correct"].count("1") / 40) and figure["n"] == 40
    with open(folder / "eval.csv", newline="") as file:
        rows = {row["attack"]: row for row in csv.DictReader(file)}
    assert float(rows["PGD-20"]["accuracy"]) == figure["accuracy"] and rows["PGD-20"]["restarts"] == "2"
    assert f"| small_resnet | {evaluation['figures']['Clean']['accuracy']:.2f} |" in (folder / "eval.md").read_text()
    for name in ("attacks.png", "examples.png", "confusion.png"):
        assert (folder / name).read_bytes().startswith(b"\x89PNG")
    with open(folder / "confusion_PGD-20.csv", newline="") as file:
        counts = [[int(cell) for cell in row[1:]] for row in list(csv.reader(file))[1:]]
    assert sum(map(sum, counts)) == 40
    assert sum(counts[k][k] for k in range(10)) == figure["correct"].count("1")


def test_confusion_counts_by_true_and_read_class():
    counts = confusion(torch.tensor([0, 1, 1, 2]), torch.tensor([0, 0, 1, 1]), 3)
    assert counts.tolist() == [[1, 1, 0], [0, 1, 1], [0, 0, 0]]


def test_accuracy_against_radius_starts_clean_and_never_rises():
    net, x, y = trained_on_stripes()
    images = Split((255 * x).round().byte(), y)
    curve = radius_curve(net, images, 0, "cpu")
    assert curve[0] == 100 * (net(images.images / 255).argmax(1) == y).float().mean().item()
    assert curve == sorted(curve, reverse=True) and curve[-1] < curve[0]


def test_blackbox_protocol(run, tmp_path):
    save_network(tmp_path / "net.pth")
    save_network(tmp_path / "other.pth", seed=1)
    ended = run(
        f"{DIGITS} --model_path net.pth --limit_test 20 --eps 0.4 --protocol blackbox --surrogate_path other.pth"
    )
    figures = read_evaluations(place_of(tmp_path / "net.pth"))[0]["figures"]
    assert list(figures) == ["Clean", "transfer PGD-20", "transfer C&W-inf-30", "Square", "worst case"]
    assert figures["Square"]["accuracy"] <= figures["Clean"]["accuracy"]
    assert "from other.pth, epsilon 102/255, 20 steps" in ended.out and "5000 queries" in ended.out


def test_epsilon_zero_attacks_nothing(run, tmp_path):
    save_network(tmp_path / "net.pth")
    run(f"{DIGITS} --model_path net.pth --limit_test 40 --eps 0 --attacks clean,fgsm,pgd,pgd_trades,cw")
    figures = figures_in(place_of(tmp_path / "net.pth"))
    assert len({accuracy for accuracy, _ in figures.values()}) == 1


# Bad input.


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ("--model_path net7.pth", "net7.pth: made for 7 classes, not 10: choose the --dataset it was trained on"),
        ("--model_path net.pth --attacks ,", "--attacks ,: names no attack"),
        ("--model_path net.pth --attacks pgdd", "--attacks pgdd: unknown name; nearest: pgd"),
        ("--model_path net.pth --eps 1.5", "--eps 1.5: must be between 0 and 1"),
        ("--model_path net.pth --eps -0.1", "--eps -0.1: must be between 0 and 1"),
        ("--model_path net.pth --limit_test 0", "--limit_test 0: must be a number of at least 1"),
        ("--model_path empty", "--model_path empty: no checkpoint in that folder"),
        ("--model_path none", "none: cannot be read"),
        ("--model_path strange.pth", "--model: needed: strange.pth does not say which network it holds"),
        ("--model_path told.pth --model vgg16", "--model vgg16: told.pth holds a small_resnet; leave the flag out"),
        ("--model_path net.pth --protocol blackbox", "--surrogate_path: needed by transfer_pgd, transfer_cw"),
        ("--model_path net.pth --protocol blackbox --surrogate_path net7.pth", "net7.pth: made for 7 classes, not 10"),
        ("--model_path net.pth --natural_path net7.pth", "net7.pth: made for 7 classes, not 10"),
        ("--model_path net.pth --out /proc/none", "/proc/none/net: cannot be written to"),
        ("--model_path net.pth --out net.pth", "net.pth/net: cannot be written to"),
        ("--model_path net.pth --state net.pth", "--state net.pth/"),
        ("--model_path net.pth --restarts 0", "--restarts 0: must be between 1 and 1000"),
    ],
)
def test_bad_input_is_one_line_and_nothing_is_written(run, tmp_path, words, line):
    save_network(tmp_path / "net.pth")
    save_network(tmp_path / "net7.pth", classes=7)
    save_network(tmp_path / "told.pth", model="small_resnet")
    torch.save(nn.Sequential(nn.Flatten(), nn.Linear(768, 10)).state_dict(), tmp_path / "strange.pth")
    (tmp_path / "empty").mkdir()
    before = sorted(tmp_path.rglob("*"))
    ended = run(f"{DIGITS} {words}", status=2)
    assert ended.err.startswith("error: ") and ended.err.count("\n") == 1 and line in ended.err, ended.err
    assert sorted(tmp_path.rglob("*")) == before
