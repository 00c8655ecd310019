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
from data import Split, load
from data.loader import Batches
from engine.accuracy import predict
from engine.checkpoint import BEST_PGD10, LAST
from engine.distributed import EVALUATION_TIMEOUT, Processes, init
from engine.evaluation.attack import AttackResult, make_noise, run_attack
from engine.evaluation.figures import confusion, radius_curve
from engine.evaluation.records import Record, make_result, read_evaluations, results_folder, results_path, worst_case
from engine.evaluation.run import make_conditions
from engine.evaluation.sanity import SanityCheck, sanity_check, warn_of_masking
from engine.evaluation.targets import EvalTarget, load_other_network
from engine.fast.frozen import FoldedModel, make_attack_model
from models import build
from utils.config import EvalConfig
from utils.errors import UserError
from utils.progress import Bar

SINGLE_PROCESS = {"seed": 3}
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


def save_network(path, seed=0, classes=10, **metadata):
    torch.manual_seed(seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"net": build("small_resnet", classes, 16).state_dict(), **metadata}, path)
    return path


class FirstPixel(nn.Module):
    """Predicts as class the first pixel's value modulo ten."""

    def forward(self, x):
        return nn.functional.one_hot((255 * x[:, 0, 0, 0]).round().long() % 10, 10).float()


def some_images(n=30):
    """Images as bytes, with the labels that a network predicts for four of five of them."""
    net = FirstPixel()
    images = torch.randint(256, (n, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    labels = net(images / 255).argmax(1)
    labels[::5] = (labels[::5] + 1) % 10
    return net, Split(images, labels)


# Counting.


def test_what_is_misclassified_clean_counts_as_fooled_and_is_not_attacked():
    net, images = some_images()
    seen = []

    def harmless(model, x, y, noise):
        seen.append(len(x))
        return x

    batches = Batches(images, 10, device="cpu")
    outcome = run_attack(
        net, batches, predict(net, batches), Attack("any", {"epsilon": 1.0}, {"": harmless}), **SINGLE_PROCESS
    )
    assert seen == [8, 8, 8]
    assert outcome.fooled_at.tolist() == [0, 2, 2, 2, 2] * 6


def test_an_attack_on_every_image_is_judged_by_its_result_alone():
    net, images = some_images()
    right = net(images.images / 255).argmax(1)
    batches = Batches(images, 10, device="cpu")
    # Gives for each image the first of the batch, whatever it was.
    first = Attack("any", {"epsilon": 1.0}, {"": lambda model, x, y, noise: x[:1].expand_as(x)}, every_image=True)
    outcome = run_attack(net, batches, predict(net, batches), first, **SINGLE_PROCESS)
    assert torch.equal(outcome.predicted, right[torch.arange(30) // 10 * 10])
    assert torch.equal(outcome.fooled_at == 2, outcome.predicted == images.labels)


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
    outcome = run_attack(net, batches, predict(net, batches), Attack("any", {"epsilon": 1.0}, stages), **SINGLE_PROCESS)
    assert met == [8, 6, 5]
    assert outcome.fooled_at.tolist() == [0, 1, 1, 2, 4, 0, 4, 4, 4, 4]


def test_an_images_start_depends_on_no_other_attack_and_on_no_other_process():
    net, images = some_images(40)
    seen = []

    def noting(model, x, y, noise):
        seen.append(noise)
        return x

    attack = Attack("any", {"epsilon": 1.0}, {"": noting}, every_image=True)
    batches = Batches(images, 10, device="cpu")
    clean = predict(net, batches)
    run_attack(net, batches, clean, attack, **SINGLE_PROCESS)

    class Share(Processes):
        def all_reduce_sum(self, values):
            return values

    for rank in range(2):
        run_attack(net, batches, clean, attack, seed=3, processes=Share(rank, 2))
    alone, shared = seen[:4], seen[4:]
    assert len(shared) == 4
    assert all(torch.equal(alone[k], shared[place]) for place, k in enumerate([0, 2, 1, 3]))


def test_every_draw_is_one_of_its_own():
    x = torch.zeros(2, 3, 4, 4)
    about = {"seed": 1, "title": "PGD-20", "stage": "start 1", "batch": 0}
    changed = [{}, {"seed": 2}, {"title": "C&W-inf-30"}, {"stage": "start 2"}, {"batch": 1}]
    draws = [make_noise(x, **about | change) for change in changed]
    assert torch.equal(draws[0], make_noise(x, **about))
    assert all(not torch.equal(draws[0], other) for other in draws[1:])
    assert -1 <= draws[0].min() < -0.9 and 0.9 < draws[0].max() <= 1


def test_an_image_keeps_its_draw_when_others_have_fallen():
    net, images = some_images(10)
    seen = []

    def noting(model, x, y, noise):
        seen.append(noise)
        return x

    batches = Batches(images, 10, device="cpu")
    run_attack(net, batches, predict(net, batches), Attack("any", {}, {"": noting}), **SINGLE_PROCESS)
    whole = make_noise(torch.zeros(10, 3, 8, 8), 3, "any", "", 0)
    assert torch.equal(seen[0], whole[[1, 2, 3, 4, 6, 7, 8, 9]])  # 0 and 5 are misclassified clean


def test_the_network_judges_what_is_found_on_its_copy():
    net, images = some_images(10)
    batches = Batches(images, 10, device="cpu")
    tried = []

    class Elsewhere(nn.Module):  # misclassifies everything
        def forward(self, x):
            return net(x).roll(1, 1)

    def until_fooled(model, x, y, noise):
        tried.append((type(model), len(x)))
        fooled = model(x).argmax(1) != y
        x_adv = x.clone()
        x_adv[~fooled, 0, 0, 0] = (x_adv[~fooled, 0, 0, 0] + 1 / 255) % 1
        return x_adv

    attack = Attack("any", {"epsilon": 1.0}, {"": until_fooled})
    outcome = run_attack(net, batches, predict(net, batches), attack, **SINGLE_PROCESS, attack_model=Elsewhere())
    # The copy ended the attack on every image at once; on the network itself it goes on and succeeds.
    assert tried == [(Elsewhere, 8), (FirstPixel, 8)]
    assert outcome.fooled_at.tolist() == [0, 1, 1, 1, 1] * 2


def test_a_copy_that_computes_something_else_is_not_climbed(monkeypatch, caplog):
    net, x, _ = trained_on_stripes(n=20)
    assert type(make_attack_model(net, x)) is FoldedModel

    class Wrong(FoldedModel):
        def forward(self, x):
            return super().forward(x) * 1.01

    monkeypatch.setattr("engine.fast.frozen.FoldedModel", Wrong)
    assert make_attack_model(net, x) is net
    assert "cannot be folded faithfully" in caplog.text


def test_a_network_of_nan_is_refused():
    net, images = some_images()
    with pytest.raises(UserError, match="nan or inf"):
        predict(lambda_of(lambda x: net(x) * float("nan")), Batches(images, 10, device="cpu"))


def lambda_of(forward):
    module = nn.Identity()
    module.forward = forward
    return module


def test_an_attack_that_leaves_its_ball_makes_no_figure():
    net, images = some_images()
    batches = Batches(images, 10, device="cpu")
    far = Attack("far", {"epsilon": 0.1}, {"": lambda model, x, y, noise: (x + 0.2).clamp(0, 1)})
    with pytest.raises(RuntimeError, match="far left its ball"):
        run_attack(net, batches, predict(net, batches), far, **SINGLE_PROCESS)


def test_an_image_that_fell_at_one_start_stays_fallen():
    net, images = some_images(10)
    batches = Batches(images, 10, device="cpu")
    turn = lambda model, x, y, noise: (x + 1 / 255) % 1  # noqa: E731
    stages = {"start 1": turn, "start 2": lambda model, x, y, noise: x}
    attack = Attack("any", {"epsilon": 1.0}, stages, every_image=True)
    outcome = run_attack(net, batches, predict(net, batches), attack, **SINGLE_PROCESS)
    assert set(outcome.fooled_at[1:5].tolist()) == {1}


def test_what_stands_after_each_stage_and_of_each_class_by_hand():
    outcome = AttackResult(torch.tensor([0, 1, 2, 3, 0]), torch.tensor([3, 3, 1, 2, 0]))
    attack = Attack("any", {}, {"a": None, "b": None})
    labels = torch.tensor([0, 1, 1, 1, 1])
    attacked = torch.tensor([True, True, False, True, True, True])
    figure = make_result(attack, outcome, labels, attacked, 1.0, ["cat", "dog", "frog"])
    assert figure["stages"] == {"a": 60.0, "b": 40.0}
    assert (figure["accuracy"], figure["n"], figure["correct"]) == (40.0, 5, "11-000")
    assert figure["per_class"] == {"cat": 100.0, "dog": 25.0}


CHANGES = [{"bs": 7}, {"judge": "last"}, {"restarts": 2}, {"eps": 0.1}, {"steps": 3}, {"seed": 1}]


@pytest.mark.parametrize("change", [*CHANGES, {"protocol": "official"}], ids=str)
def test_figures_under_other_conditions_are_kept_apart(tmp_path, change):
    target = EvalTarget(save_network(tmp_path / "net.pth"), "small_resnet", None)
    _, images = some_images()
    first = make_conditions(target, images, EvalConfig())
    assert first == make_conditions(target, images, EvalConfig())
    assert first != make_conditions(target, images, EvalConfig(**change))


def test_figures_on_other_images_or_from_another_surrogate_are_kept_apart(tmp_path):
    target = EvalTarget(save_network(tmp_path / "net.pth"), "small_resnet", None)
    _, images = some_images()
    other = Split(255 - images.images, images.labels)
    assert make_conditions(target, images, EvalConfig()) != make_conditions(target, other, EvalConfig())
    paths = [str(save_network(tmp_path / f"{seed}.pth", seed)) for seed in (1, 2)]
    blackbox = [EvalConfig(protocol="blackbox", surrogate_path=path) for path in paths]
    assert make_conditions(target, images, blackbox[0]) != make_conditions(target, images, blackbox[1])


def test_a_surrogate_stands_still(tmp_path):
    save_network(tmp_path / "net.pth")
    splits = load("Digits", image_size=16)
    surrogate = load_other_network(
        str(tmp_path / "net.pth"), None, "--surrogate_model", EvalConfig(), splits, torch.device("cpu")
    )
    assert not surrogate.training and not any(p.requires_grad for p in surrogate.parameters())


def test_restarts_only_lower_the_figure():
    net, x, y = trained_on_stripes()
    batches = Batches(Split((255 * x).round().byte(), y), 100, device="cpu")
    figures = []
    for restarts in (1, 3):
        attack = pgd20(Setting(16 / 255, 0, steps=2, restarts=restarts))
        outcome = run_attack(net, batches, predict(net, batches), attack, **SINGLE_PROCESS)
        figures.append(outcome.fooled_at > restarts)
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
        patch.setattr("utils.progress.Bar.advance", interrupted)
        run(f"{words} --model_path parts/net.pth --state state", status=130 if pieces < 6 else 0)
    kept = read_evaluations(results_path("parts/net.pth"))[-1]["figures"]
    assert "FGSM" in kept

    attack_model = []

    def climb(*where, **ball):
        attack_model.append(1)
        return pgd_until_fooled(*where, **ball)

    monkeypatch.setattr("attacks.suite.pgd_until_fooled", climb)
    run(f"{words} --model_path parts/net.pth --state state")
    assert figures_in(results_path("parts/net.pth")) == figures_in(results_path("whole/net.pth"))
    # A piece that was finished is not done again; one more was done than the bar had shown.
    assert len(attack_model) == max(0, 6 - pieces - 1)


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
    assert figures_in(results_path(tmp_path / "shared/net.pth")) == figures_in(results_path(tmp_path / "alone/net.pth"))
    assert ended.stdout.count("PGD-20  ") == 1


def test_a_damaged_table_of_figures_is_not_written_over(run, tmp_path):
    place = results_path(save_network(tmp_path / "net.pth"))
    place.parent.mkdir()
    for damage in ('{"evaluations": [{', '{"evaluations": [{}]}', "[]"):
        place.write_text(damage)
        ended = run(f"{DIGITS} --model_path net.pth --limit_test 20 --attacks clean", status=2)
        assert "eval.json: damaged" in ended.err and ended.err.count("\n") == 1
        assert place.read_text() == damage


def test_a_damaged_piece_of_a_state_is_done_again(run, tmp_path):
    save_network(tmp_path / "net.pth")
    words = f"{DIGITS} --model_path net.pth --limit_test 20 --attacks fgsm --state state"
    run(words)
    before = figures_in(results_path("net.pth"))
    (piece,) = Path("state").rglob("FGSM*")
    piece.write_text("{")
    run(words)
    assert figures_in(results_path("net.pth")) == before and len(piece.read_text()) > 1


def test_the_state_of_a_file_serves_it_under_another_name(run, tmp_path):
    save_network(tmp_path / "net.pth")
    words = f"{DIGITS} --limit_test 20 --attacks fgsm --state state --model_path"
    run(f"{words} net.pth")
    (tmp_path / "net.pth").rename(tmp_path / "moved.pth")
    run(f"{words} moved.pth")


def test_processes_wait_for_the_longest_attack(monkeypatch):
    given = {}
    monkeypatch.setattr("torch.distributed.is_torchelastic_launched", lambda: True)
    monkeypatch.setattr("torch.distributed.init_process_group", lambda *a, **options: given.update(options))
    monkeypatch.setattr("torch.distributed.get_rank", lambda: 1)
    monkeypatch.setattr("torch.distributed.get_world_size", lambda: 2)
    assert init(EVALUATION_TIMEOUT) == Processes(1, 2)
    assert given["timeout"].days >= 7


def test_a_shell_of_slurm_is_one_process(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert init(EVALUATION_TIMEOUT) == Processes(0, 1)


def test_a_folder_gives_best_and_last_of_its_runs_side_by_side(run, tmp_path):
    metadata = {"model": "small_resnet", "dataset": "Digits", "image_size": 16}
    for seed, name in enumerate((BEST_PGD10, LAST)):
        save_network(tmp_path / "runs/AT/net" / name, seed, **metadata)
    save_network(tmp_path / "runs/AT/net/best_clean_acc_model.pth", 2, **metadata)
    save_network(tmp_path / "runs/DGAD/net" / LAST, 3, **metadata)
    ended = run("--dataset Digits --model_path runs --limit_test 20 --attacks clean,fgsm --no-pictures")
    rows = ended.out.splitlines()[-2:]
    assert rows[0].split()[:4] == ["AT/net", "best", "/", "last"] and rows[0].count("/") == 2 + 3
    assert rows[1].split()[:2] == ["DGAD/net", "last"]
    for name in (BEST_PGD10, LAST):
        (entry,) = read_evaluations(results_path(Path("runs/AT/net", name)))
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


CROSSING = {"epsilon": 8 / 255, "step_size": 2 / 255, "steps": 20}


def record_of(tmp_path, figures, **conditions):
    same = {"sha256": "0", "model": "m", "dataset": "d", "images": 1, "eps": 8 / 255, "restarts": 1, "seed": 0}
    record = Record(tmp_path / "net_eval", same | conditions)
    for title, figure in figures.items():
        record.keep(title, {"n": 500, "bounded": False, "stages": {}, "parameters": CROSSING} | figure)
    return record


def test_a_network_whose_gradients_vanish_is_called_out_and_an_honest_one_is_not(tmp_path):
    net, x, y = trained_on_stripes()
    images = Split((255 * x).round().byte(), y)
    record = record_of(tmp_path, {})
    assert warn_of_masking(record, 8 / 255, sanity_check(net, images, 8 / 255, "cpu", batch_size=50, seed=0)) == []
    warnings = warn_of_masking(record, 8 / 255, sanity_check(Sure(net), images, 8 / 255, "cpu", batch_size=50, seed=0))
    assert len(warnings) == 2 and "where nothing should" in warnings[0] and "flat" in warnings[1]


def test_a_network_of_one_answer_is_called_untrained_and_not_masked(run, tmp_path):
    net = build("small_resnet", 10, 16)
    with torch.no_grad():
        net.linear.weight.zero_()
        net.linear.bias.copy_(torch.eye(10)[3])
    torch.save({"net": net.state_dict()}, tmp_path / "net.pth")
    words = (
        "--dataset Digits --image_size 16 --model_path net.pth --limit_test 40 --attacks clean,fgsm,pgd --no-pictures"
    )
    ended = run(words)
    assert ended.status == 0, ended.err
    assert "WARNING: reads every image as '3': hardly trained" in ended.out and "masking" not in ended.out


@pytest.mark.parametrize(
    ("figures", "line"),
    [
        ({"FGSM": {"accuracy": 30.0}, "PGD-20": {"accuracy": 40.0}}, "FGSM beats PGD-20 (30.00 < 40.00 %)"),
        ({"Square": {"accuracy": 30.0}, "PGD-20": {"accuracy": 40.0}}, "Square beats PGD-20 (30.00 < 40.00 %)"),
        # Cross entropy is a poor guide to the border between two classes; gradients that find it are not masked.
        ({"Square": {"accuracy": 30.0}, "PGD-20": {"accuracy": 40.0}, "C&W-inf-30": {"accuracy": 29.0}}, None),
        ({"AutoAttack": {"accuracy": 30.0, "stages": {"FAB-T": 32.0, "Square": 30.0}}}, "Square turns 2.00 %"),
        (  # two steps cannot cross the ball
            {"FGSM": {"accuracy": 30.0}, "PGD-2": {"accuracy": 40.0, "parameters": CROSSING | {"steps": 2}}},
            None,
        ),
        ({"FGSM": {"accuracy": 30.0, "n": 100}, "PGD-20": {"accuracy": 40.0}}, None),  # not the same images
        ({"FGSM": {"accuracy": 39.0, "n": 100}, "PGD-20": {"accuracy": 40.0, "n": 100}}, None),  # one image
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
    assert len(warn_of_masking(record, 8 / 255, SanityCheck(1.0, 1.005, 0.0))) == 1
    assert warn_of_masking(record, 8 / 255, SanityCheck(1.0, 2.0, 0.0)) == []


# Reports.


def test_reports_say_all_that_makes_a_figure(run, tmp_path):
    path = save_network(tmp_path / "net.pth")
    words = "--dataset Digits --image_size 16 --model_path net.pth --natural_path net.pth --limit_test 40"
    run(f"{words} --attacks clean,fgsm,pgd --eps 0.02 --restarts 2")
    folder = results_folder(path)
    assert {file.name for file in folder.iterdir()} == {
        *("eval.json", "eval.csv", "eval.md", "attacks.png", "examples.png"),
        *("confusion.png", "confusion_clean.csv", "confusion_PGD-20.csv"),
    }
    (evaluation,) = read_evaluations(folder / "eval.json")
    assert evaluation["conditions"]["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    figure = evaluation["figures"]["PGD-20"]
    assert figure["versions"]["torch"] == torch.__version__ and "git" in figure["versions"]
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


def test_what_falls_at_one_radius_has_fallen_at_every_larger_one(monkeypatch):
    net, images = some_images()
    turned = (images.images[:, 0, 0, 0] < 254) & (images.labels == net(images.images / 255).argmax(1))

    def at_four(setting):
        def perturb(model, x, y, noise):
            return (x + 1 / 255).clamp(0, 1) if abs(255 * setting.epsilon - 4) < 0.1 else x

        return Attack("PGD-20", {"epsilon": setting.epsilon}, {"": perturb})

    monkeypatch.setattr("engine.evaluation.figures.pgd20", at_four)
    curve = radius_curve(net, images, 30, 0, "cpu")
    assert turned.any()
    assert curve[:4] == [80.0] * 4 and len(set(curve[4:])) == 1 and curve[4] < 80


def test_accuracy_against_radius_starts_clean_and_never_rises():
    net, x, y = trained_on_stripes()
    images = Split((255 * x).round().byte(), y)
    curve = radius_curve(net, images, 100, 0, "cpu")
    assert curve[0] == 100 * (net(images.images / 255).argmax(1) == y).float().mean().item()
    assert curve == sorted(curve, reverse=True) and curve[-1] < curve[0]


def test_blackbox_protocol(run, tmp_path):
    save_network(tmp_path / "net.pth")
    save_network(tmp_path / "other.pth", seed=1)
    ended = run(
        f"{DIGITS} --model_path net.pth --limit_test 20 --eps 0.4 --protocol blackbox --surrogate_path other.pth"
    )
    figures = read_evaluations(results_path(tmp_path / "net.pth"))[0]["figures"]
    assert list(figures) == ["Clean", "transfer PGD-20", "transfer C&W-inf-30", "Square", "worst case"]
    assert figures["Square"]["accuracy"] <= figures["Clean"]["accuracy"]
    assert "from other.pth, epsilon 102/255, 20 steps" in ended.out and "5000 queries" in ended.out


def test_epsilon_zero_attacks_nothing(run, tmp_path):
    save_network(tmp_path / "net.pth")
    run(f"{DIGITS} --model_path net.pth --limit_test 40 --eps 0 --attacks clean,fgsm,pgd,pgd_trades,cw")
    figures = figures_in(results_path(tmp_path / "net.pth"))
    assert len({accuracy for accuracy, _ in figures.values()}) == 1


# Bad input.


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ("--model_path net7.pth", "net7.pth: has 7 classes, not 10; choose the --dataset it was trained on"),
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
        ("--model_path net.pth --protocol blackbox --surrogate_path net7.pth", "net7.pth: has 7 classes, not 10"),
        ("--model_path net.pth --natural_path net7.pth", "net7.pth: has 7 classes, not 10"),
        ("--model_path net.pth --out /proc/none", "/proc/none/net_eval: cannot be written to"),
        ("--model_path net.pth --out net.pth", "net.pth/net_eval: cannot be written to"),
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
